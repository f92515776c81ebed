#include "onmetal_quantize.h"

#include <string.h>

int32_t onmetal_quantize_one(float value, float scale, int32_t zero_point, int32_t least,
                             int32_t most) {
    /* Clipped before it is rounded, which is the same, since the limits are whole numbers; and what
     * is left fits an integer. A NaN becomes `least`. */
    float low = (float)least - (float)zero_point;
    float high = (float)most - (float)zero_point;
    float steps = value / scale;
    if (!(steps > low)) return least;
    if (steps >= high) return most;
    int32_t whole = (int32_t)steps;
    float rest = steps - (float)whole;
    int odd = (int)(whole & 1);
    if (rest > 0.5f || (rest == 0.5f && odd)) ++whole;
    if (rest < -0.5f || (rest == -0.5f && odd)) --whole;
    return whole + zero_point;
}

/* The value at a place, written or read through memcpy: the bytes may lie anywhere. */
#define STORE(type, number)                                             \
    do {                                                                \
        type kept = (type)(number);                                     \
        memcpy((char *)stored + place * sizeof kept, &kept, sizeof kept); \
    } while (0)

static void store(const struct onmetal_tensor *tensor, float value, void *stored, size_t place) {
    float scale = tensor->scale != 0.0f ? tensor->scale : 1.0f;
    int32_t zero = tensor->zero_point;
    switch (tensor->dtype) {
        case ONMETAL_FLOAT32: STORE(float, value); break;
        case ONMETAL_INT8:
            STORE(int8_t, onmetal_quantize_one(value, scale, zero, INT8_MIN, INT8_MAX));
            break;
        case ONMETAL_UINT8:
            STORE(uint8_t, onmetal_quantize_one(value, scale, zero, 0, UINT8_MAX));
            break;
        case ONMETAL_INT16:
            STORE(int16_t, onmetal_quantize_one(value, scale, zero, INT16_MIN, INT16_MAX));
            break;
        case ONMETAL_INT32:
            STORE(int32_t, onmetal_quantize_one(value, scale, zero, INT32_MIN, INT32_MAX));
            break;
        case ONMETAL_INT64:
            STORE(int64_t, onmetal_quantize_one(value, scale, zero, INT32_MIN, INT32_MAX));
            break;
        case ONMETAL_BOOL: STORE(uint8_t, value != 0.0f); break;
    }
}

#define LOAD(type)                                                           \
    do {                                                                     \
        type kept;                                                           \
        memcpy(&kept, (const char *)stored + place * sizeof kept, sizeof kept); \
        number = (float)kept;                                                \
    } while (0)

float onmetal_dequantize_one(const struct onmetal_tensor *tensor, const void *stored,
                             size_t place) {
    float number = 0.0f;
    switch (tensor->dtype) {
        case ONMETAL_FLOAT32: LOAD(float); break;
        case ONMETAL_INT8: LOAD(int8_t); break;
        case ONMETAL_UINT8: LOAD(uint8_t); break;
        case ONMETAL_INT16: LOAD(int16_t); break;
        case ONMETAL_INT32: LOAD(int32_t); break;
        case ONMETAL_INT64: LOAD(int64_t); break;
        case ONMETAL_BOOL: LOAD(uint8_t); break;
    }
    /* Without a branch around the conversion: GCC 12 makes a conditional one of it for a Cortex-M55,
     * which its assembler takes for an instruction of Helium. */
    float scale = tensor->scale != 0.0f ? tensor->scale : 1.0f;
    return (number - (float)tensor->zero_point) * scale;
}

size_t onmetal_place(const struct onmetal_tensor *tensor, size_t place) {
    if (!tensor->channels_last) return place;
    size_t height = (size_t)tensor->shape[1], width = (size_t)tensor->shape[2];
    size_t channels = (size_t)tensor->shape[3], area = height * width;
    size_t pixel = place % area, channel = place / area % channels;
    size_t image = place / area / channels;
    return (image * area + pixel) * channels + channel;
}

void onmetal_quantize(const struct onmetal_tensor *tensor, const float *values, void *stored) {
    for (size_t i = 0; i < tensor->count; ++i) store(tensor, values[i], stored, i);
}

void onmetal_quantize_original(const struct onmetal_tensor *tensor, const float *values,
                               void *stored) {
    for (size_t i = 0; i < tensor->count; ++i) {
        store(tensor, values[i], stored, onmetal_place(tensor, i));
    }
}

void onmetal_dequantize(const struct onmetal_tensor *tensor, const void *stored, float *values) {
    for (size_t i = 0; i < tensor->count; ++i) {
        values[i] = onmetal_dequantize_one(tensor, stored, i);
    }
}

void onmetal_dequantize_original(const struct onmetal_tensor *tensor, const void *stored,
                                 float *values) {
    for (size_t i = 0; i < tensor->count; ++i) {
        values[i] = onmetal_dequantize_one(tensor, stored, onmetal_place(tensor, i));
    }
}
