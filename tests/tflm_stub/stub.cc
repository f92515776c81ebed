/* An interpreter of one model: see README.md. */
#include "tensorflow/lite/micro/micro_interpreter.h"

#include <cstring>

namespace {

/* A convolution without padding and with a stride of 1; a dense layer is one of a single pixel. */
struct Layer {
    const char *operation;
    size_t from, to; /* tensors */
    int height, width, channels;
    int kernel_height, kernel_width, filters;
    size_t weights, biases; /* where they are in the model's file */
    int32_t input_zero, output_zero, least, most;
    const int32_t *multipliers;
    const int *shifts;
};

}  // namespace

#include "stub_model.h"

namespace {

/* value * multiplier * 2^(shift - 31), rounded twice, as TFLite does it. */
int32_t scaled(int32_t value, int32_t multiplier, int shift) {
    int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    int64_t product = static_cast<int64_t>(value) * (1 << left) * multiplier;
    int64_t nudge = product >= 0 ? (1 << 30) : 1 - (1 << 30);
    int32_t high = static_cast<int32_t>((product + nudge) / (int64_t{1} << 31));
    int32_t mask = static_cast<int32_t>((int64_t{1} << right) - 1);
    int32_t rest = high & mask, half = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> right) + (rest > half ? 1 : 0);
}

void run(const Layer &layer, const unsigned char *file, const int8_t *from, int8_t *to) {
    const unsigned char *weights = file + layer.weights;
    for (int y = 0; y + layer.kernel_height <= layer.height; ++y) {
        for (int x = 0; x + layer.kernel_width <= layer.width; ++x) {
            for (int filter = 0; filter < layer.filters; ++filter) {
                int32_t sum;
                std::memcpy(&sum, file + layer.biases + 4 * static_cast<size_t>(filter), 4);
                const unsigned char *weight = weights + static_cast<size_t>(
                    filter * layer.kernel_height * layer.kernel_width * layer.channels);
                for (int i = 0; i < layer.kernel_height; ++i) {
                    for (int j = 0; j < layer.kernel_width * layer.channels; ++j) {
                        int32_t value = from[((y + i) * layer.width + x) * layer.channels + j];
                        sum += (value - layer.input_zero) * static_cast<int8_t>(*weight++);
                    }
                }
                int32_t made = scaled(sum, layer.multipliers[filter], layer.shifts[filter]) +
                               layer.output_zero;
                made = made < layer.least ? layer.least : made > layer.most ? layer.most : made;
                *to++ = static_cast<int8_t>(made);
            }
        }
    }
}

}  // namespace

namespace tflite {

TfLiteStatus MicroInterpreter::AllocateTensors() {
    for (const Layer &layer : LAYERS) {
        if (!resolver_.has(layer.operation)) return kTfLiteError;
    }
    for (size_t i = 0; i < TENSORS; ++i) {
        if (used_ + BYTES[i] > arena_bytes_) return kTfLiteError;
        tensors_[i] = {{arena_ + used_}, kTfLiteInt8, BYTES[i]};
        used_ += (BYTES[i] + 15) / 16 * 16;
    }
    return kTfLiteOk;
}

TfLiteStatus MicroInterpreter::Invoke() {
    for (const Layer &layer : LAYERS) {
        run(layer, model_->bytes(), tensors_[layer.from].data.int8, tensors_[layer.to].data.int8);
    }
    /* As TFLite Micro's planner may have it: an input's memory is not its own for long. */
    std::memset(tensors_[INPUT_TENSORS[0]].data.data, 0x55, BYTES[INPUT_TENSORS[0]]);
    return kTfLiteOk;
}

TfLiteTensor *MicroInterpreter::input(size_t index) { return &tensors_[INPUT_TENSORS[index]]; }
TfLiteTensor *MicroInterpreter::output(size_t index) { return &tensors_[OUTPUT_TENSORS[index]]; }
size_t MicroInterpreter::inputs_size() const { return sizeof INPUT_TENSORS / sizeof(size_t); }
size_t MicroInterpreter::outputs_size() const { return sizeof OUTPUT_TENSORS / sizeof(size_t); }

}  // namespace tflite
