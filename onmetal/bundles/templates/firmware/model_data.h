/* The model's file, as it lies in flash. */
#ifndef ONMETAL_MODEL_DATA_H
#define ONMETAL_MODEL_DATA_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ONMETAL_MODEL_BYTES @@bytes@@u

/* Aligned to 16 bytes; after the last one comes a zero, which is not the file's. */
extern const unsigned char onmetal_model_data[ONMETAL_MODEL_BYTES + 1];
extern const size_t onmetal_model_bytes;
extern const char onmetal_model_sha256[65]; /* of the file, in hexadecimal digits */

#ifdef __cplusplus
}
#endif

#endif
