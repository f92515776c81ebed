/* What newlib asks of a system, where TFLite Micro or the C library prints or aborts: text goes over
 * the port, and there is neither a heap nor a file.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "onmetal_port.h"

int _write(int file, const char *text, int length);
int _read(int file, char *text, int length);
int _close(int file);
int _lseek(int file, int offset, int from);
int _fstat(int file, struct stat *facts);
int _isatty(int file);
int _getpid(void);
int _kill(int process, int signal);
void *_sbrk(ptrdiff_t bytes);
void _exit(int status) __attribute__((noreturn));

static int refuse(void) {
    errno = ENOSYS;
    return -1;
}

int _write(int file, const char *text, int length) {
    (void)file;
    for (int i = 0; i < length; ++i) {
        if (text[i] == '\n') onmetal_port_putchar('\r');
        onmetal_port_putchar(text[i]);
    }
    return length;
}

int _read(int file, char *text, int length) {
    (void)file, (void)text, (void)length;
    return 0;
}

int _close(int file) {
    (void)file;
    return refuse();
}

int _lseek(int file, int offset, int from) {
    (void)file, (void)offset, (void)from;
    return refuse();
}

int _fstat(int file, struct stat *facts) {
    (void)file;
    facts->st_mode = S_IFCHR;
    return 0;
}

int _isatty(int file) {
    (void)file;
    return 1;
}

int _getpid(void) { return 1; }

int _kill(int process, int signal) {
    (void)process, (void)signal;
    return refuse();
}

void *_sbrk(ptrdiff_t bytes) {
    (void)bytes;
    errno = ENOMEM;
    return (void *)-1;
}

void _exit(int status) {
    (void)status;
    for (;;) {
    }
}
