/* What a board gives to the firmware: three functions, and four more that it may give.
 *
 * All of them are called from one thread. `ports/` has some boards; to write another, define the
 * first three.
 */
#ifndef ONMETAL_PORT_H
#define ONMETAL_PORT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The next character that came in, 0 to 255, or -1 where none is there. It does not wait: a port
 * that has nothing else to do may wait a little. */
int onmetal_port_getchar(void);

/* Sends a character, and waits as long as that takes. */
void onmetal_port_putchar(char character);

/* A free-running clock; it may wrap around at 32 bits. */
uint32_t onmetal_port_microseconds(void);

/* The following have weak definitions, to be replaced by ones of the same name. */

/* Called once, before anything else. Does nothing. */
void onmetal_port_initialize(void);

/* Called at both ends of the inferences that are timed, and by `timestamp`: for a pulse on a pin
 * that an energy meter sees. Does nothing. */
void onmetal_port_pulse(void);

/* A finer clock than microseconds, and its rate; a rate of 0, which is what they give, says that
 * there is none. */
uint64_t onmetal_port_ticks(void);
uint32_t onmetal_port_ticks_per_second(void);

#ifdef __cplusplus
}
#endif

#endif
