/* --- ONNX Runtime's C API, without its header
 *
 * All of it is one table of functions. The order of its members never changes, new ones come at
 * the end, so that the members used here can be declared at their places in it.
 */

typedef void *status; /* NULL is good */
typedef void (*unused)(void);
enum { API_VERSION = 17, SEVERITY_ERROR = 3, ARENA = 1, DEFAULT_MEMORY = 0 };

struct ort_api {
    unused from_0[2];
    const char *(*GetErrorMessage)(const void *status);
    status (*CreateEnv)(int severity, const char *name, void **environment);
    unused from_4[2];
    status (*DisableTelemetryEvents)(const void *environment);
    status (*CreateSession)(const void *environment, const char *path, const void *options,
                            void **session);
    unused from_8[1];
    status (*Run)(void *session, const void *run_options, const char *const *input_names,
                  void *const *inputs, size_t input_count, const char *const *output_names,
                  size_t output_count, void **outputs);
    status (*CreateSessionOptions)(void **options);
    unused from_11[2];
    status (*SetSessionExecutionMode)(void *options, int mode);
    unused from_14[2];
    status (*EnableMemPattern)(void *options);
    status (*DisableMemPattern)(void *options);
    status (*EnableCpuMemArena)(void *options);
    status (*DisableCpuMemArena)(void *options);
    unused from_20[2];
    status (*SetSessionLogSeverityLevel)(void *options, int severity);
    status (*SetSessionGraphOptimizationLevel)(void *options, int level);
    status (*SetIntraOpNumThreads)(void *options, int threads);
    status (*SetInterOpNumThreads)(void *options, int threads);
    unused from_26[23];
    status (*CreateTensorWithDataAsOrtValue)(const void *memory, void *values, size_t bytes,
                                             const int64_t *shape, size_t rank, int element,
                                             void **tensor);
    unused from_50[19];
    status (*CreateCpuMemoryInfo)(int allocator, int kind, void **memory);
    unused from_70[22];
    void (*ReleaseEnv)(void *environment);
    void (*ReleaseStatus)(void *status);
    void (*ReleaseMemoryInfo)(void *memory);
    void (*ReleaseSession)(void *session);
    void (*ReleaseValue)(void *tensor);
    unused from_97[3];
    void (*ReleaseSessionOptions)(void *options);
    unused from_101[29];
    status (*AddSessionConfigEntry)(void *options, const char *key, const char *value);
    unused from_131[142];
    status (*SetDeterministicCompute)(void *options, bool value);
};

_Static_assert(offsetof(struct ort_api, AddSessionConfigEntry) == 130 * sizeof(unused), "table");
_Static_assert(offsetof(struct ort_api, SetDeterministicCompute) == 273 * sizeof(unused), "table");

struct ort_api_base {
    const struct ort_api *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
};

static const struct ort_api *ort;
static void *environment, *session, *memory;
static void *taken[INPUTS], *given[OUTPUTS];             /* tensors, */
static void *taken_values[INPUTS], *given_values[OUTPUTS]; /* over memory that is ours */
static const char *taken_names[INPUTS], *given_names[OUTPUTS];

static void check(status found, const char *what) {
    if (found) fail("%s failed: %s", what, ort->GetErrorMessage(found));
}

#define CALL(name, ...) check(ort->name(__VA_ARGS__), #name)

/* As it was measured. */
static void *session_options(void) {
    void *options;
    CALL(CreateSessionOptions, &options);
    CALL(SetSessionLogSeverityLevel, options, SEVERITY_ERROR);
    @@options@@
    return options;
}

static int element(enum dtype dtype) {
    switch (dtype) {
    case FLOAT32: return 1;
    case UINT8: return 2;
    case INT8: return 3;
    case INT16: return 5;
    case INT32: return 6;
    case INT64: return 7;
    case BOOL: return 9;
    case FLOAT64: return 11;
    }
    return 0;
}

static void *tensor_over(const struct tensor *tensor, void **values) {
    void *made;
    size_t bytes = stored_bytes(tensor);
    *values = allocate(bytes);
    CALL(CreateTensorWithDataAsOrtValue, memory, *values, bytes, tensor->shape,
         (size_t)tensor->rank, element(tensor->stored), &made);
    return made;
}

static void open_model(void *library, const char *path) {
    const struct ort_api_base *(*base)(void);
    setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* a model needs none */
    symbol(library, "OrtGetApiBase", &base, sizeof base);
    ort = base()->GetApi(API_VERSION);
    if (!ort) fail("ONNX Runtime %s is too old", base()->GetVersionString());
    CALL(CreateEnv, SEVERITY_ERROR, "example", &environment);
    CALL(DisableTelemetryEvents, environment);
    void *options = session_options();
    CALL(CreateSession, environment, path, options, &session);
    ort->ReleaseSessionOptions(options);
    CALL(CreateCpuMemoryInfo, ARENA, DEFAULT_MEMORY, &memory);
    for (int i = 0; i < INPUTS; i++) {
        taken[i] = tensor_over(&TAKEN[i], &taken_values[i]);
        taken_names[i] = TAKEN[i].name;
    }
    for (int i = 0; i < OUTPUTS; i++) {
        given[i] = tensor_over(&GIVEN[i], &given_values[i]);
        given_names[i] = GIVEN[i].name;
    }
}

static void run_model(void) {
    CALL(Run, session, NULL, taken_names, taken, INPUTS, given_names, OUTPUTS, given);
}

static void set_input(int number, const void *values) {
    to_artifact(&TAKEN[number], values, taken_values[number]);
}

static void get_output(int number, void *values) {
    from_artifact(&GIVEN[number], given_values[number], values);
}

static void close_model(void) {
    for (int i = 0; i < INPUTS; i++) {
        ort->ReleaseValue(taken[i]);
        free(taken_values[i]);
    }
    for (int i = 0; i < OUTPUTS; i++) {
        ort->ReleaseValue(given[i]);
        free(given_values[i]);
    }
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseEnv(environment);
}
