/* Commands over a serial line, as the runner of MLPerf Tiny sends them, and a few more.
 *
 * A command is words with blanks between them and `%` at its end. It is answered by lines, the last
 * of which is `m-ready`. README.md lists them.
 *
 *     onmetal_protocol_start();
 *     for (;;) onmetal_protocol_poll();
 */
#ifndef ONMETAL_PROTOCOL_H
#define ONMETAL_PROTOCOL_H

#ifdef __cplusplus
extern "C" {
#endif

/* Says that the firmware is there. To be called once, after onmetal_init. */
void onmetal_protocol_start(void);

/* Runs the command that is complete, if one is; else takes what onmetal_port_getchar has. */
void onmetal_protocol_poll(void);

/* One character of a command, for ports that are told by an interrupt: their onmetal_port_getchar
 * returns -1. What comes while a command runs is lost; hosts wait for `m-ready`. */
void onmetal_protocol_receive(char character);

/* A line for the host, for a program's own messages. */
void onmetal_protocol_say(const char *line);

#ifdef __cplusplus
}
#endif

#endif
