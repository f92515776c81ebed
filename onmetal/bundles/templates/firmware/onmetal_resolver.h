/* The operators of this model and no others, so that no other kernel is linked. */
#ifndef ONMETAL_RESOLVER_H
#define ONMETAL_RESOLVER_H

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace onmetal {

using Resolver = tflite::MicroMutableOpResolver<@@count@@>;

/* To be called once for a resolver. */
inline TfLiteStatus add_operators(Resolver &resolver) {
    TfLiteStatus status = kTfLiteOk;
@@adds@@
    return status;
}

}  // namespace onmetal

#endif
