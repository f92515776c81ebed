/* The golden vectors, run on the board. */
#ifndef ONMETAL_SELFTEST_H
#define ONMETAL_SELFTEST_H

#ifdef __cplusplus
extern "C" {
#endif

/* How many vectors are compiled in, and how many of them agree; `say` not 0: a line for each goes
 * over the port. onmetal_init must have been called. */
unsigned onmetal_check_count(void);
unsigned onmetal_check(int say);

/* Initializes the model and checks all vectors. -> 0 where they agree, else 1 */
int onmetal_selftest(void);

#ifdef __cplusplus
}
#endif

#endif
