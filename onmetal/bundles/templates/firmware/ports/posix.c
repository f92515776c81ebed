/* A PC as the board: to try the firmware, and to run its golden vectors.
 *
 *     firmware                  speaks over standard input and output
 *     firmware --pty            opens a pseudo-terminal and says its name: a serial:// device
 *     firmware --listen PORT    waits for a host at 127.0.0.1: a socket:// device
 *     firmware --selftest       runs the golden vectors; exit code 0 if they agree, else 1
 */
#define _XOPEN_SOURCE 700

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "onmetal_main.h"
#include "onmetal_port.h"
#include "selftest.h"

static int input = STDIN_FILENO, output = STDOUT_FILENO;
static int listener = -1; /* where a host that hangs up may call again */

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t onmetal_port_microseconds(void) { return (uint32_t)(nanoseconds() / 1000u); }
uint64_t onmetal_port_ticks(void) { return nanoseconds(); }
uint32_t onmetal_port_ticks_per_second(void) { return 1000000000u; }

/* What is sent is gathered up to the end of a line. */
static char line[256];
static size_t filled;

static void flush(void) {
    size_t sent = 0;
    while (sent < filled) {
        ssize_t done = write(output, line + sent, filled - sent);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) break; /* nobody listens any more, which reading will tell */
        sent += (size_t)done;
    }
    filled = 0;
}

void onmetal_port_putchar(char character) {
    line[filled++] = character;
    if (character == '\n' || filled == sizeof line) flush();
}

static void answer_the_next(void) {
    input = output = accept(listener, NULL, NULL);
    if (input < 0) fail("accept");
}

/* Waits until a character is there: a PC has better things to do than to look again and again. */
int onmetal_port_getchar(void) {
    static char taken[256];
    static size_t at, end;
    if (at == end) {
        flush();
        ssize_t got = read(input, taken, sizeof taken);
        if (got < 0 && errno == EINTR) return -1;
        if (got <= 0) {
            if (listener < 0) exit(0);
            close(input);
            answer_the_next();
            return -1;
        }
        at = 0;
        end = (size_t)got;
    }
    return (unsigned char)taken[at++];
}

static void open_pty(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) fail("posix_openpt");
    const char *name = ptsname(master);
    if (name == NULL) fail("ptsname");
    /* It is held open, so that reading does not fail while no host has it open. */
    int slave = open(name, O_RDWR | O_NOCTTY);
    struct termios raw;
    if (slave < 0 || tcgetattr(slave, &raw) != 0) fail(name);
    raw.c_iflag = 0;
    raw.c_oflag = 0;
    raw.c_lflag = 0;
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    if (tcsetattr(slave, TCSANOW, &raw) != 0) fail(name);
    input = output = master;
    printf("%s\n", name);
    fflush(stdout);
}

static void listen_at(const char *port) {
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)strtoul(port, NULL, 10));
    listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    socklen_t length = sizeof address;
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        fail("listen");
    }
    printf("127.0.0.1:%u\n", (unsigned)ntohs(address.sin_port)); /* port 0: a free one */
    fflush(stdout);
    answer_the_next();
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    if (count == 2 && strcmp(words[1], "--selftest") == 0) {
        int failed = onmetal_selftest();
        flush();
        return failed;
    }
    if (count == 2 && strcmp(words[1], "--pty") == 0) {
        open_pty();
    } else if (count == 3 && strcmp(words[1], "--listen") == 0) {
        listen_at(words[2]);
    } else if (count != 1) {
        fprintf(stderr, "usage: %s [--pty | --listen PORT | --selftest]\n", words[0]);
        return 2;
    }
    onmetal_main();
    return 0;
}
