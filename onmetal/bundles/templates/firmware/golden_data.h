/* Inputs and what the model gives for them in TFLite Micro on a PC, as the file stores them.
 *
 * One vector is all inputs one after another, then all outputs, little-endian.
 */
#ifndef ONMETAL_GOLDEN_DATA_H
#define ONMETAL_GOLDEN_DATA_H

#include "onmetal_model.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ONMETAL_GOLDEN_VECTORS @@vectors@@u
#define ONMETAL_GOLDEN_BYTES (ONMETAL_INPUT_BYTES + ONMETAL_OUTPUT_BYTES)

extern const unsigned char onmetal_golden_data[ONMETAL_GOLDEN_VECTORS][ONMETAL_GOLDEN_BYTES];

#ifdef __cplusplus
}
#endif

#endif
