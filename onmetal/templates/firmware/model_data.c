#include "model_data.h"

#include <stdalign.h>

/* Where it goes: such as -DONMETAL_MODEL_SECTION='__attribute__((section(".qspi")))'. */
#ifndef ONMETAL_MODEL_SECTION
#define ONMETAL_MODEL_SECTION
#endif

const size_t onmetal_model_bytes = ONMETAL_MODEL_BYTES;

const char onmetal_model_sha256[65] =
    "@@sha256@@";

ONMETAL_MODEL_SECTION alignas(16) const unsigned char onmetal_model_data[ONMETAL_MODEL_BYTES] = {
@@model_data@@
};
