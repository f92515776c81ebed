/* The whole firmware as one function, for a port to call. */
#ifndef ONMETAL_MAIN_H
#define ONMETAL_MAIN_H

#ifdef __cplusplus
extern "C" {
#endif

/* Initializes port and model, and answers the host's commands. Does not return. */
void onmetal_main(void);

#ifdef __cplusplus
}
#endif

#endif
