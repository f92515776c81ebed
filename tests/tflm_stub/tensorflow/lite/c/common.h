/* Stub: see tests/tflm_stub/README.md. */
#ifndef TFLM_STUB_COMMON_H
#define TFLM_STUB_COMMON_H

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

enum TfLiteType {
    kTfLiteNoType = 0,
    kTfLiteFloat32 = 1,
    kTfLiteInt32 = 2,
    kTfLiteUInt8 = 3,
    kTfLiteInt64 = 4,
    kTfLiteBool = 6,
    kTfLiteInt16 = 7,
    kTfLiteInt8 = 9
};

union TfLitePtrUnion {
    void *data;
    int8_t *int8;
};

struct TfLiteTensor {
    TfLitePtrUnion data;
    TfLiteType type;
    size_t bytes;
};

#endif
