#include "selftest.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "onmetal_model.h"
#include "onmetal_text.h"

/* 0 leaves the golden vectors out of the firmware: `check` then has none to run. */
#ifndef ONMETAL_SELFTEST
#define ONMETAL_SELFTEST 1
#endif

/* By how many steps a whole number may be off. TFLite Micro's own kernels and CMSIS-NN's agree to
 * the bit, so that any difference is a fault. */
#ifndef ONMETAL_TOLERANCE
#define ONMETAL_TOLERANCE 0
#endif

/* By how much a float may be off, in parts of the largest of its output. */
#ifndef ONMETAL_FLOAT_TOLERANCE
#define ONMETAL_FLOAT_TOLERANCE 1e-4f
#endif

#if ONMETAL_SELFTEST
#include "golden_data.h"

namespace {

/* A value, wherever its bytes lie. */
template <typename Value>
Value at(const unsigned char *bytes, size_t place) {
    Value value;
    memcpy(&value, bytes + place * sizeof value, sizeof value);
    return value;
}

/* How many of the values differ, and the largest step. */
struct Difference {
    size_t count;
    uint64_t largest;
};

template <typename Value>
Difference whole_numbers(const unsigned char *wanted, const unsigned char *found, size_t count) {
    Difference made = {0, 0};
    for (size_t i = 0; i < count; ++i) {
        int64_t here = static_cast<int64_t>(at<Value>(found, i));
        int64_t there = static_cast<int64_t>(at<Value>(wanted, i));
        uint64_t more = static_cast<uint64_t>(here), less = static_cast<uint64_t>(there);
        uint64_t step = here > there ? more - less : less - more;
        if (step > made.largest) made.largest = step;
        if (step > static_cast<uint64_t>(ONMETAL_TOLERANCE)) ++made.count;
    }
    return made;
}

float magnitude(float value) { return value < 0.0f ? -value : value; }

Difference floats(const unsigned char *wanted, const unsigned char *found, size_t count) {
    float peak = 0.0f;
    for (size_t i = 0; i < count; ++i) {
        float value = magnitude(at<float>(wanted, i));
        if (value > peak) peak = value;
    }
    Difference made = {0, 0};
    for (size_t i = 0; i < count; ++i) {
        float gap = magnitude(at<float>(wanted, i) - at<float>(found, i));
        if (!(gap <= ONMETAL_FLOAT_TOLERANCE * peak)) ++made.count;
    }
    return made;
}

Difference compared(const onmetal_tensor &tensor, const unsigned char *wanted,
                    const unsigned char *found) {
    switch (tensor.dtype) {
        case ONMETAL_FLOAT32: return floats(wanted, found, tensor.count);
        case ONMETAL_INT8: return whole_numbers<int8_t>(wanted, found, tensor.count);
        case ONMETAL_INT16: return whole_numbers<int16_t>(wanted, found, tensor.count);
        case ONMETAL_INT32: return whole_numbers<int32_t>(wanted, found, tensor.count);
        case ONMETAL_INT64: return whole_numbers<int64_t>(wanted, found, tensor.count);
        case ONMETAL_UINT8:
        case ONMETAL_BOOL: break;
    }
    return whole_numbers<uint8_t>(wanted, found, tensor.count);
}

void tell(unsigned vector, size_t output, const Difference &found) {
    onmetal_text("golden vector ");
    onmetal_text_unsigned(vector);
    onmetal_text(", output ");
    onmetal_text_unsigned(output);
    if (found.count == 0) {
        onmetal_text(": agrees\r\n");
        return;
    }
    onmetal_text(": ");
    onmetal_text_unsigned(found.count);
    onmetal_text(" values differ");
    if (found.largest != 0) {
        onmetal_text(", by up to ");
        onmetal_text_unsigned(found.largest);
    }
    onmetal_text("\r\n");
}

bool agrees(unsigned vector, bool say) {
    const unsigned char *golden = onmetal_golden_data[vector];
    if (onmetal_reset() != ONMETAL_OK) return false;
    for (size_t i = 0; i < ONMETAL_INPUTS; ++i) {
        memcpy(onmetal_input(i), golden, onmetal_inputs[i].bytes);
        golden += onmetal_inputs[i].bytes;
    }
    if (onmetal_invoke() != ONMETAL_OK) return false;
    bool good = true;
    for (size_t i = 0; i < ONMETAL_OUTPUTS; ++i) {
        const auto *found = static_cast<const unsigned char *>(onmetal_output(i));
        Difference made = compared(onmetal_outputs[i], golden, found);
        golden += onmetal_outputs[i].bytes;
        good = good && made.count == 0;
        if (say) tell(vector, i, made);
    }
    return good;
}

}  // namespace

unsigned onmetal_check_count(void) { return ONMETAL_GOLDEN_VECTORS; }

unsigned onmetal_check(int say) {
    unsigned passed = 0;
    for (unsigned vector = 0; vector < ONMETAL_GOLDEN_VECTORS; ++vector) {
        if (agrees(vector, say != 0)) ++passed;
    }
    return passed;
}

#else

unsigned onmetal_check_count(void) { return 0; }

unsigned onmetal_check(int say) {
    (void)say;
    return 0;
}

#endif

int onmetal_selftest(void) {
    int status = onmetal_init();
    if (status != ONMETAL_OK) {
        onmetal_text(onmetal_status_text(status));
        onmetal_text("\r\n");
        return 1;
    }
    return onmetal_check(1) == onmetal_check_count() ? 0 : 1;
}
