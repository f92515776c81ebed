/* Runs this bundle's model through the C API of @@title@@: an example to copy from.
 *
 * It loads the runtime's library, opens the artifact, runs the golden vectors, compares what comes
 * out with what is expected, and says how long an inference takes. Exit code: 0 the golden vectors
 * agree, 1 they do not, 2 it could not be run.
 *
 * In the bundle's folder, where PYTHON is the interpreter of an environment that has what
 * requirements.txt says (for example ../.venv/bin/python; left out, it is python3):
 *
 *     cc -O2 -Wall -Wextra -Werror example.c -o ../example -ldl -lm
 *     ../example "$("${PYTHON:-python3}" run.py --library)" .
 *
 * The arguments are the runtime's library (any build of @@title@@ @@version@@; run.py says where the
 * one of the Python package is) and the bundle's folder. The program is written beside that folder,
 * which `deploy verify` wants as it is. Only the C library is needed to compile it, and no header of the runtime; for another
 * machine use its compiler, such as aarch64-linux-gnu-gcc.
 *
 * Values lie in files and buffers as a little-endian machine has them.
 */

#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- this model */

enum dtype { FLOAT32, FLOAT64, INT8, UINT8, INT16, INT32, INT64, BOOL };

/* One input or output: what the caller hands over, and what the artifact has instead of it. */
struct tensor {
    const char *name;
    enum dtype dtype;   /* of the caller's values */
    enum dtype stored;  /* of the artifact's values */
    int place;          /* its number among the artifact's inputs or outputs */
    bool channels_last; /* the artifact has images as [N, H, W, C], the caller as [N, C, H, W] */
    float scale;        /* real = scale * (integer - zero_point); 0: nothing is quantized here */
    int zero_point;
    int rank;
    int64_t shape[@@max_rank@@]; /* the caller's */
};

enum { INPUTS = @@input_count@@, OUTPUTS = @@output_count@@, VECTORS = @@vectors@@, THREADS = @@threads@@ };
static const char ARTIFACT[] = @@artifact@@;
/* Of the largest magnitude of an output; whole numbers must be equal. */
static const double TOLERANCE = @@tolerance@@;

static const struct tensor TAKEN[INPUTS] = {
    @@inputs@@
};

static const struct tensor GIVEN[OUTPUTS] = {
    @@outputs@@
};

/* --- help */

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) fail("there are no %zu bytes of memory left", bytes);
    return memory;
}

/* A function of the library; through memcpy, since ISO C knows no cast from data to functions. */
static void symbol(void *library, const char *name, void *function, size_t size) {
    void *found = dlsym(library, name);
    if (!found) fail("the library has no %s: it is another one, or another version", name);
    memcpy(function, &found, size);
}

static void read_file(const char *folder, const char *name, void *values, size_t bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s cannot be opened", path);
    if (fread(values, 1, bytes, file) != bytes || fgetc(file) != EOF)
        fail("%s does not have %zu bytes", path, bytes);
    fclose(file);
}

/* --- layout and type */

static size_t width(enum dtype dtype) {
    switch (dtype) {
    case INT8:
    case UINT8:
    case BOOL: return 1;
    case INT16: return 2;
    case FLOAT32:
    case INT32: return 4;
    case FLOAT64:
    case INT64: return 8;
    }
    return 0;
}

static size_t count(const struct tensor *tensor) {
    size_t found = 1;
    for (int axis = 0; axis < tensor->rank; axis++) found *= (size_t)tensor->shape[axis];
    return found;
}

static size_t given_bytes(const struct tensor *tensor) {
    return count(tensor) * width(tensor->dtype);
}

static size_t stored_bytes(const struct tensor *tensor) {
    return count(tensor) * width(tensor->stored);
}

/* Where the artifact has the value that the caller has at `place`. */
static size_t place_in_artifact(const struct tensor *tensor, size_t place) {
    if (!tensor->channels_last) return place;
    size_t channels = (size_t)tensor->shape[1];
    size_t plane = (size_t)(tensor->shape[2] * tensor->shape[3]);
    size_t image = place / (channels * plane), channel = place / plane % channels;
    return (image * plane + place % plane) * channels + channel;
}

/* To the nearest integer, half a step to the even one, as NumPy does. */
static void quantize(const struct tensor *tensor, float real, void *stored, size_t place) {
    float steps = nearbyintf(real / tensor->scale) + (float)tensor->zero_point;
    switch (tensor->stored) {
    case INT8: ((int8_t *)stored)[place] = (int8_t)fminf(fmaxf(steps, -128), 127); break;
    case UINT8: ((uint8_t *)stored)[place] = (uint8_t)fminf(fmaxf(steps, 0), 255); break;
    case INT16: ((int16_t *)stored)[place] = (int16_t)fminf(fmaxf(steps, -32768), 32767); break;
    default: fail("%s cannot be quantized", tensor->name);
    }
}

static float dequantize(const struct tensor *tensor, const void *stored, size_t place) {
    int steps = 0;
    switch (tensor->stored) {
    case INT8: steps = ((const int8_t *)stored)[place]; break;
    case UINT8: steps = ((const uint8_t *)stored)[place]; break;
    case INT16: steps = ((const int16_t *)stored)[place]; break;
    default: fail("%s cannot be dequantized", tensor->name);
    }
    return (float)(steps - tensor->zero_point) * tensor->scale;
}

static void to_artifact(const struct tensor *tensor, const void *values, void *stored) {
    size_t wide = width(tensor->stored);
    for (size_t i = 0; i < count(tensor); i++) {
        size_t place = place_in_artifact(tensor, i);
        if (tensor->scale != 0)
            quantize(tensor, ((const float *)values)[i], stored, place);
        else
            memcpy((char *)stored + place * wide, (const char *)values + i * wide, wide);
    }
}

static void from_artifact(const struct tensor *tensor, const void *stored, void *values) {
    size_t wide = width(tensor->stored);
    for (size_t i = 0; i < count(tensor); i++) {
        size_t place = place_in_artifact(tensor, i);
        if (tensor->scale != 0)
            ((float *)values)[i] = dequantize(tensor, stored, place);
        else
            memcpy((char *)values + i * wide, (const char *)stored + place * wide, wide);
    }
}

@@runtime_part@@
/* --- the golden vectors */

static double real_at(const struct tensor *tensor, const void *values, size_t place) {
    if (tensor->dtype == FLOAT32) return ((const float *)values)[place];
    return ((const double *)values)[place];
}

/* Whether an output is what is expected. The tolerance is relative to the largest magnitude. */
static bool agrees(const struct tensor *tensor, const void *expected, const void *found) {
    if (tensor->dtype != FLOAT32 && tensor->dtype != FLOAT64)
        return memcmp(expected, found, given_bytes(tensor)) == 0;
    double worst = 0, peak = 0;
    for (size_t i = 0; i < count(tensor); i++) {
        double left = real_at(tensor, expected, i), right = real_at(tensor, found, i);
        if (isfinite(left)) peak = fmax(peak, fabs(left));
        if (left == right || (isnan(left) && isnan(right))) continue;
        double gap = fabs(left - right);
        worst = isnan(gap) ? INFINITY : fmax(worst, gap);
    }
    if (worst <= TOLERANCE * peak) return true;
    fprintf(stderr, "%s is off by %g where %g is allowed\n", tensor->name, worst, TOLERANCE * peak);
    return false;
}

static void *read_vector(const char *bundle, const char *kind, const struct tensor *tensor,
                         int number, int vector) {
    char name[96];
    snprintf(name, sizeof name, "example-golden/%s-%d-%d.bin", kind, number, vector);
    void *values = allocate(given_bytes(tensor));
    read_file(bundle, name, values, given_bytes(tensor));
    return values;
}

static void set_inputs(const char *bundle, int vector) {
    for (int i = 0; i < INPUTS; i++) {
        void *values = read_vector(bundle, "input", &TAKEN[i], i, vector);
        set_input(i, values);
        free(values);
    }
}

/* Runs one vector. -> how many outputs are not what is expected */
static int wrong_outputs(const char *bundle, int vector) {
    int wrong = 0;
    set_inputs(bundle, vector);
    run_model();
    for (int i = 0; i < OUTPUTS; i++) {
        void *expected = read_vector(bundle, "output", &GIVEN[i], i, vector);
        void *found = allocate(given_bytes(&GIVEN[i]));
        get_output(i, found);
        if (!agrees(&GIVEN[i], expected, found)) {
            fprintf(stderr, "golden vector %d, output %d does not agree\n", vector, i);
            wrong++;
        }
        free(expected);
        free(found);
    }
    return wrong;
}

/* --- latency */

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Of the runtime alone: what set_input and get_output do comes on top. */
static void print_latency(void) {
    enum { RUNS = 100, WARM_UP = 10 };
    double taken_ms[RUNS];
    for (int i = -WARM_UP; i < RUNS; i++) {
        double start = now_ms();
        run_model();
        if (i >= 0) taken_ms[i] = now_ms() - start;
    }
    qsort(taken_ms, RUNS, sizeof *taken_ms, ascending);
    printf("latency of %d runs with %d threads: p50 %.4f ms, p90 %.4f ms\n", RUNS, THREADS,
           taken_ms[RUNS / 2], taken_ms[RUNS * 9 / 10]);
}

int main(int count_of_arguments, char **arguments) {
    if (count_of_arguments != 3) fail("usage: %s LIBRARY BUNDLE", arguments[0]);
    const char *bundle = arguments[2];
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("the library cannot be loaded: %s", dlerror());
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", bundle, ARTIFACT);
    open_model(library, path);
    int wrong = 0;
    for (int vector = 0; vector < VECTORS; vector++) wrong += wrong_outputs(bundle, vector);
    if (!wrong) printf("%d golden vectors agree\n", VECTORS);
    print_latency();
    close_model();
    return wrong ? 1 : 0;
}
