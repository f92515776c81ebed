/* Between real numbers and what the model's file stores, as the bundle's run.py does it: divided by
 * the scale, rounded to the nearest whole number (a half to the even one), the zero point added,
 * clipped to the type. All in single precision.
 */
#ifndef ONMETAL_QUANTIZE_H
#define ONMETAL_QUANTIZE_H

#include "onmetal_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One value. `least` and `most` are the type's limits: -128 and 127 for int8. */
int32_t onmetal_quantize_one(float value, float scale, int32_t zero_point, int32_t least,
                             int32_t most);

/* `count` values in the order in which the file has them -> its bytes. Floats are copied where the
 * file stores floats; whole numbers without a scale are rounded and clipped. */
void onmetal_quantize(const struct onmetal_tensor *tensor, const float *values, void *stored);

/* The same from the order of the original model: [N, C, H, W] where `channels_last` is set. */
void onmetal_quantize_original(const struct onmetal_tensor *tensor, const float *values,
                               void *stored);

/* The value at one place of the bytes, and all of them. */
float onmetal_dequantize_one(const struct onmetal_tensor *tensor, const void *stored, size_t place);
void onmetal_dequantize(const struct onmetal_tensor *tensor, const void *stored, float *values);
void onmetal_dequantize_original(const struct onmetal_tensor *tensor, const void *stored,
                                 float *values);

/* Where the value at `place` of the original model's order is in the file's order. */
size_t onmetal_place(const struct onmetal_tensor *tensor, size_t place);

#ifdef __cplusplus
}
#endif

#endif
