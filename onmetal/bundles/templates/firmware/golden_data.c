#include "golden_data.h"

#ifndef ONMETAL_MODEL_SECTION
#define ONMETAL_MODEL_SECTION
#endif

ONMETAL_MODEL_SECTION
const unsigned char onmetal_golden_data[ONMETAL_GOLDEN_VECTORS][ONMETAL_GOLDEN_BYTES] = {
@@golden_data@@
};
