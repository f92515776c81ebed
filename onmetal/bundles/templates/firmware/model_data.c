#include "model_data.h"

#include <stdalign.h>

/* Where it goes: such as -DONMETAL_MODEL_SECTION='__attribute__((section(".qspi")))'. */
#ifndef ONMETAL_MODEL_SECTION
#define ONMETAL_MODEL_SECTION
#endif

const size_t onmetal_model_bytes = ONMETAL_MODEL_BYTES;

const char onmetal_model_sha256[65] =
    "@@sha256@@";

/* As a string, which compilers read some twenty times faster than a list of numbers; ISO C promises
 * no more than 4095 characters of one. */
#pragma GCC diagnostic ignored "-Woverlength-strings"

ONMETAL_MODEL_SECTION alignas(16) const unsigned char onmetal_model_data[ONMETAL_MODEL_BYTES + 1] =
@@model_data@@;
