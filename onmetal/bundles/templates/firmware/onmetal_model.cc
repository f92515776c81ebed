#include "onmetal_model.h"

#include <new>

#include "model_data.h"
#include "onmetal_resolver.h"
#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

/* Where the arena goes: such as -DONMETAL_ARENA_SECTION='__attribute__((section(".sram")))'. */
#ifndef ONMETAL_ARENA_SECTION
#define ONMETAL_ARENA_SECTION
#endif

namespace {

ONMETAL_ARENA_SECTION alignas(16) uint8_t arena[ONMETAL_ARENA_BYTES];

/* Made in place by onmetal_init and never destroyed: a static object with a destructor would bring
 * the C++ runtime's lists of them with it. */
alignas(onmetal::Resolver) unsigned char resolver_place[sizeof(onmetal::Resolver)];
alignas(tflite::MicroInterpreter) unsigned char interpreter_place[sizeof(tflite::MicroInterpreter)];
tflite::MicroInterpreter *interpreter = nullptr;

TfLiteType tflite_type(onmetal_dtype dtype) {
    switch (dtype) {
        case ONMETAL_FLOAT32: return kTfLiteFloat32;
        case ONMETAL_INT8: return kTfLiteInt8;
        case ONMETAL_UINT8: return kTfLiteUInt8;
        case ONMETAL_INT16: return kTfLiteInt16;
        case ONMETAL_INT32: return kTfLiteInt32;
        case ONMETAL_INT64: return kTfLiteInt64;
        case ONMETAL_BOOL: return kTfLiteBool;
    }
    return kTfLiteNoType;
}

bool same(const TfLiteTensor *found, const onmetal_tensor &told) {
    return found != nullptr && found->type == tflite_type(told.dtype) && found->bytes == told.bytes;
}

bool as_told(tflite::MicroInterpreter &made) {
    if (made.inputs_size() != ONMETAL_INPUTS || made.outputs_size() != ONMETAL_OUTPUTS) {
        return false;
    }
    for (size_t i = 0; i < ONMETAL_INPUTS; ++i) {
        if (!same(made.input(i), onmetal_inputs[i])) return false;
    }
    for (size_t i = 0; i < ONMETAL_OUTPUTS; ++i) {
        if (!same(made.output(i), onmetal_outputs[i])) return false;
    }
    return true;
}

}  // namespace

const onmetal_tensor onmetal_inputs[ONMETAL_INPUTS] = {
    @@inputs@@
};

const onmetal_tensor onmetal_outputs[ONMETAL_OUTPUTS] = {
    @@outputs@@
};

int onmetal_init(void) {
    if (interpreter != nullptr) return ONMETAL_OK;
    const tflite::Model *model = tflite::GetModel(onmetal_model_data);
    if (model->version() != TFLITE_SCHEMA_VERSION) return ONMETAL_ERROR_SCHEMA;
    auto *resolver = new (resolver_place) onmetal::Resolver();
    if (onmetal::add_operators(*resolver) != kTfLiteOk) return ONMETAL_ERROR_OPERATORS;
    auto *made = new (interpreter_place)
        tflite::MicroInterpreter(model, *resolver, arena, ONMETAL_ARENA_BYTES);
    if (made->AllocateTensors() != kTfLiteOk) return ONMETAL_ERROR_ARENA;
    if (!as_told(*made)) return ONMETAL_ERROR_TENSORS;
    interpreter = made;
    return ONMETAL_OK;
}

void *onmetal_input(size_t number) {
    if (interpreter == nullptr || number >= ONMETAL_INPUTS) return nullptr;
    return interpreter->input(number)->data.data;
}

const void *onmetal_output(size_t number) {
    if (interpreter == nullptr || number >= ONMETAL_OUTPUTS) return nullptr;
    return interpreter->output(number)->data.data;
}

int onmetal_invoke(void) {
    if (interpreter == nullptr) return ONMETAL_ERROR_NOT_READY;
    return interpreter->Invoke() == kTfLiteOk ? ONMETAL_OK : ONMETAL_ERROR_INVOKE;
}

int onmetal_reset(void) {
    if (interpreter == nullptr) return ONMETAL_ERROR_NOT_READY;
#if ONMETAL_STATEFUL
    return interpreter->Reset() == kTfLiteOk ? ONMETAL_OK : ONMETAL_ERROR_INVOKE;
#else
    return ONMETAL_OK;
#endif
}

size_t onmetal_arena_used(void) {
    return interpreter == nullptr ? 0 : interpreter->arena_used_bytes();
}

const char *onmetal_status_text(int status) {
    switch (status) {
        case ONMETAL_OK: return "good";
        case ONMETAL_ERROR_SCHEMA: return "the model is of a version that TFLite Micro has not";
        case ONMETAL_ERROR_OPERATORS: return "an operator could not be registered";
        case ONMETAL_ERROR_ARENA:
            return "the tensors could not be allocated: the arena is too small, or TFLite Micro "
                   "lacks a kernel";
        case ONMETAL_ERROR_TENSORS: return "the model takes or gives other tensors than expected";
        case ONMETAL_ERROR_NOT_READY: return "the model is not ready";
        case ONMETAL_ERROR_INVOKE: return "an operator failed";
        default: return "unknown";
    }
}
