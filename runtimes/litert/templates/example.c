/* --- LiteRT's C API, without its headers: what is declared here is checked with 2.3.0 */

typedef int status; /* 0 is good */
enum { ON_CPU = 1, LOCK_READ = 0, LOCK_WRITE = 1 };

struct tensor_type {
    int element;
    struct {
        unsigned rank : 7, has_strides : 1;
        int32_t shape[8];
        uint32_t strides[8];
    } layout;
};

/* Every object of LiteRT is an opaque pointer, `void *` here. */
static struct {
    status (*CreateEnvironment)(int options, const void *values, void **environment);
    void (*DestroyEnvironment)(void *environment);
    status (*CreateModelFromFile)(void *environment, const char *path, void **model);
    void (*DestroyModel)(void *model);
    status (*CreateOptions)(void **options);
    void (*DestroyOptions)(void *options);
    status (*SetOptionsHardwareAccelerators)(void *options, int accelerators);
    status (*CreateOpaqueOptions)(const char *kind, void *toml, void (*release)(void *),
                                  void **opaque);
    status (*AddOpaqueOptions)(void *options, void *opaque);
    status (*CreateCompiledModel)(void *environment, void *model, void *options, void **compiled);
    void (*DestroyCompiledModel)(void *compiled);
    status (*GetModelSignature)(void *model, size_t number, void **signature);
    status (*GetSignatureInputTensorByIndex)(void *signature, size_t place, void **tensor);
    status (*GetSignatureOutputTensorByIndex)(void *signature, size_t place, void **tensor);
    status (*GetRankedTensorType)(void *tensor, struct tensor_type *type);
    status (*GetCompiledModelInputBufferRequirements)(void *compiled, size_t signature,
                                                      size_t place, void **requirements);
    status (*GetCompiledModelOutputBufferRequirements)(void *compiled, size_t signature,
                                                       size_t place, void **requirements);
    status (*CreateManagedTensorBufferFromRequirements)(void *environment,
                                                        const struct tensor_type *type,
                                                        void *requirements, void **buffer);
    status (*GetTensorBufferPackedSize)(void *buffer, size_t *bytes);
    void (*DestroyTensorBuffer)(void *buffer);
    status (*LockTensorBuffer)(void *buffer, void **host, int mode);
    status (*UnlockTensorBuffer)(void *buffer);
    status (*RunCompiledModel)(void *compiled, size_t signature, size_t inputs, void **taken,
                               size_t outputs, void **given);
} litert;

static void *environment, *model, *options, *compiled;
static void *taken[INPUTS], *given[OUTPUTS]; /* buffers, in the artifact's own order */

static void check(status code, const char *what) {
    if (code != 0) fail("LiteRt%s failed with status %d", what, code);
}

#define CALL(name, ...) check(litert.name(__VA_ARGS__), #name)
#define LOAD(name) symbol(library, "LiteRt" #name, &litert.name, sizeof litert.name)

static void load_functions(void *library) {
    LOAD(CreateEnvironment);
    LOAD(DestroyEnvironment);
    LOAD(CreateModelFromFile);
    LOAD(DestroyModel);
    LOAD(CreateOptions);
    LOAD(DestroyOptions);
    LOAD(SetOptionsHardwareAccelerators);
    LOAD(CreateOpaqueOptions);
    LOAD(AddOpaqueOptions);
    LOAD(CreateCompiledModel);
    LOAD(DestroyCompiledModel);
    LOAD(GetModelSignature);
    LOAD(GetSignatureInputTensorByIndex);
    LOAD(GetSignatureOutputTensorByIndex);
    LOAD(GetRankedTensorType);
    LOAD(GetCompiledModelInputBufferRequirements);
    LOAD(GetCompiledModelOutputBufferRequirements);
    LOAD(CreateManagedTensorBufferFromRequirements);
    LOAD(GetTensorBufferPackedSize);
    LOAD(DestroyTensorBuffer);
    LOAD(LockTensorBuffer);
    LOAD(UnlockTensorBuffer);
    LOAD(RunCompiledModel);
}

/* The number of threads goes to XNNPACK, whose kernels compute, as a line of TOML. */
static void set_threads(void) {
    void *opaque;
    char *toml = allocate(32);
    snprintf(toml, 32, "num_threads = %d\n", THREADS);
    CALL(CreateOpaqueOptions, "xnnpack", toml, free, &opaque);
    CALL(AddOpaqueOptions, options, opaque); /* belongs to the options now */
}

/* Memory as LiteRT wants it for one input or output of the first signature. */
static void *buffer(const struct tensor *tensor, bool input) {
    void *signature, *found, *requirements, *made;
    struct tensor_type type;
    size_t bytes, place = (size_t)tensor->place;
    CALL(GetModelSignature, model, 0, &signature);
    if (input) {
        CALL(GetSignatureInputTensorByIndex, signature, place, &found);
        CALL(GetCompiledModelInputBufferRequirements, compiled, 0, place, &requirements);
    } else {
        CALL(GetSignatureOutputTensorByIndex, signature, place, &found);
        CALL(GetCompiledModelOutputBufferRequirements, compiled, 0, place, &requirements);
    }
    CALL(GetRankedTensorType, found, &type);
    CALL(CreateManagedTensorBufferFromRequirements, environment, &type, requirements, &made);
    CALL(GetTensorBufferPackedSize, made, &bytes);
    if (bytes != stored_bytes(tensor))
        fail("%s has %zu bytes where %zu are expected", tensor->name, bytes, stored_bytes(tensor));
    return made;
}

static void open_model(void *library, const char *path) {
    load_functions(library);
    CALL(CreateEnvironment, 0, NULL, &environment);
    CALL(CreateModelFromFile, environment, path, &model);
    CALL(CreateOptions, &options);
    CALL(SetOptionsHardwareAccelerators, options, ON_CPU);
    set_threads();
    CALL(CreateCompiledModel, environment, model, options, &compiled);
    for (int i = 0; i < INPUTS; i++) taken[TAKEN[i].place] = buffer(&TAKEN[i], true);
    for (int i = 0; i < OUTPUTS; i++) given[GIVEN[i].place] = buffer(&GIVEN[i], false);
}

static void run_model(void) {
    CALL(RunCompiledModel, compiled, 0, INPUTS, taken, OUTPUTS, given);
}

static void set_input(int number, const void *values) {
    void *host, *to = taken[TAKEN[number].place];
    CALL(LockTensorBuffer, to, &host, LOCK_WRITE);
    to_artifact(&TAKEN[number], values, host);
    CALL(UnlockTensorBuffer, to);
}

static void get_output(int number, void *values) {
    void *host, *from = given[GIVEN[number].place];
    CALL(LockTensorBuffer, from, &host, LOCK_READ);
    from_artifact(&GIVEN[number], host, values);
    CALL(UnlockTensorBuffer, from);
}

static void close_model(void) {
    for (int i = 0; i < INPUTS; i++) litert.DestroyTensorBuffer(taken[i]);
    for (int i = 0; i < OUTPUTS; i++) litert.DestroyTensorBuffer(given[i]);
    litert.DestroyCompiledModel(compiled);
    litert.DestroyOptions(options);
    litert.DestroyModel(model);
    litert.DestroyEnvironment(environment);
}
