/* The model: what it takes, what it gives, and how to run it. For C and C++.
 *
 *     int status = onmetal_init();
 *     onmetal_quantize(&onmetal_inputs[0], values, onmetal_input(0));
 *     status = onmetal_invoke();
 *     onmetal_dequantize(&onmetal_outputs[0], onmetal_output(0), results);
 *
 * Everything is static: no heap, one model, one thread at a time. An input's memory is used for
 * other tensors while the model runs: fill it anew before each `onmetal_invoke`.
 */
#ifndef ONMETAL_MODEL_H
#define ONMETAL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ONMETAL_MODEL_NAME @@name@@
#define ONMETAL_INPUTS @@input_count@@u
#define ONMETAL_OUTPUTS @@output_count@@u
#define ONMETAL_INPUT_BYTES @@input_bytes@@u   /* of all inputs together */
#define ONMETAL_OUTPUT_BYTES @@output_bytes@@u /* of all outputs together */
#define ONMETAL_MAX_RANK @@max_rank@@
#define ONMETAL_STATEFUL @@stateful@@ /* 1: the model keeps state from one inference to the next */

/* What the interpreter may use for tensors and for itself; `onmetal_arena_used` says what it took.
 * -DONMETAL_ARENA_BYTES=... gives it another. */
#ifndef ONMETAL_ARENA_BYTES
#define ONMETAL_ARENA_BYTES @@arena_bytes@@u
#endif

enum onmetal_dtype {
    ONMETAL_FLOAT32,
    ONMETAL_INT8,
    ONMETAL_UINT8,
    ONMETAL_INT16,
    ONMETAL_INT32,
    ONMETAL_INT64,
    ONMETAL_BOOL
};

@@constants@@

enum onmetal_status {
    ONMETAL_OK = 0,
    ONMETAL_ERROR_SCHEMA,    /* the model's file is of a version that this TFLite Micro has not */
    ONMETAL_ERROR_OPERATORS, /* an operator could not be registered */
    ONMETAL_ERROR_ARENA,     /* the tensors could not be allocated: mostly, too small an arena; or
                              * TFLite Micro was built without a kernel, such as Ethos-U's */
    ONMETAL_ERROR_TENSORS,   /* the model's inputs or outputs are not those that are told here */
    ONMETAL_ERROR_NOT_READY, /* onmetal_init was not called, or it failed */
    ONMETAL_ERROR_INVOKE     /* an operator failed */
};

/* An input or output, as the file has it. */
struct onmetal_tensor {
    const char *name;
    enum onmetal_dtype dtype;
    size_t bytes;
    size_t count;                    /* of values */
    float scale;                     /* real = scale * (stored - zero_point); 0: not quantized */
    int32_t zero_point;
    int channels_last;               /* 1: [N, H, W, C] here, where the original has [N, C, H, W] */
    int rank;
    int32_t shape[ONMETAL_MAX_RANK]; /* 0 beyond `rank` */
};

extern const struct onmetal_tensor onmetal_inputs[ONMETAL_INPUTS];
extern const struct onmetal_tensor onmetal_outputs[ONMETAL_OUTPUTS];

/* Prepares the model; once is enough, and a second call does nothing. -> enum onmetal_status */
int onmetal_init(void);

/* The bytes of an input or output, aligned for their type; NULL before onmetal_init, or where there
 * is no such tensor. */
void *onmetal_input(size_t number);
const void *onmetal_output(size_t number);

/* Runs the model once. -> enum onmetal_status */
int onmetal_invoke(void);

/* Makes a model that keeps state begin anew. -> enum onmetal_status */
int onmetal_reset(void);

/* Bytes of the arena that are taken; 0 before onmetal_init. */
size_t onmetal_arena_used(void);

/* A status in words. */
const char *onmetal_status_text(int status);

#ifdef __cplusplus
}
#endif

#endif
