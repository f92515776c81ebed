/* The firmware: the model behind the line protocol. */
#include "onmetal_main.h"

#include "onmetal_model.h"
#include "onmetal_port.h"
#include "onmetal_protocol.h"
#include "selftest.h"

/* 1: the golden vectors are run, and a line is said of each, before the host is told that the board
 * is ready. */
#ifndef ONMETAL_SELFTEST_AT_START
#define ONMETAL_SELFTEST_AT_START 0
#endif

void onmetal_main(void) {
    onmetal_port_initialize();
    int status = onmetal_init();
    if (status != ONMETAL_OK) onmetal_protocol_say(onmetal_status_text(status));
#if ONMETAL_SELFTEST_AT_START
    if (onmetal_selftest() != 0) onmetal_protocol_say("the golden vectors do not agree");
#endif
    onmetal_protocol_start();
    for (;;) onmetal_protocol_poll();
}
