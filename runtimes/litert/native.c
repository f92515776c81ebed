/* LiteRT through its C library, without its headers: the few functions that are called, declared.
 * Checked against ai-edge-litert 2.3.0; the layout of LiteRtRankedTensorType is that version's, and
 * the library is shipped beside the runner in the very version that it was built for. */
#include "runner.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
typedef int Status; /* 0: ok */

typedef struct {
  int type;
  struct {
    unsigned rank : 7, has_strides : 1;
    int32_t dimensions[RANK];
    uint32_t strides[RANK];
  } layout;
} Ranked;

typedef struct {
  float scale;
  int64_t zero_point;
} PerTensor;

enum { CPU = 1, READ = 0, WRITE = 1, PER_TENSOR = 1, UNSUPPORTED = 5 };

#define FUNCTIONS(F)                                                                           \
  F(Status, CreateEnvironment, (int, const void *, Handle *))                                  \
  F(Status, CreateModelFromFile, (Handle, const char *, Handle *))                             \
  F(void, DestroyModel, (Handle))                                                              \
  F(Status, CreateOptions, (Handle *))                                                         \
  F(void, DestroyOptions, (Handle))                                                            \
  F(Status, SetOptionsHardwareAccelerators, (Handle, int))                                     \
  F(Status, CreateOpaqueOptions, (const char *, void *, void (*)(void *), Handle *))           \
  F(Status, AddOpaqueOptions, (Handle, Handle))                                                \
  F(Status, CreateCompiledModel, (Handle, Handle, Handle, Handle *))                           \
  F(void, DestroyCompiledModel, (Handle))                                                      \
  F(Status, CompiledModelIsFullyAccelerated, (Handle, bool *))                                 \
  F(Status, CompiledModelGetProfiler, (Handle, Handle *))                                      \
  F(Status, StartProfiler, (Handle))                                                           \
  F(Status, StopProfiler, (Handle))                                                            \
  F(Status, GetProfileSummary, (Handle, Handle, const char **))                                \
  F(Status, GetNumModelSignatures, (Handle, size_t *))                                         \
  F(Status, GetModelSignature, (Handle, size_t, Handle *))                                     \
  F(Status, GetNumSignatureInputs, (Handle, size_t *))                                         \
  F(Status, GetNumSignatureOutputs, (Handle, size_t *))                                        \
  F(Status, GetSignatureInputName, (Handle, size_t, const char **))                            \
  F(Status, GetSignatureOutputName, (Handle, size_t, const char **))                           \
  F(Status, GetSignatureInputTensorByIndex, (Handle, size_t, Handle *))                        \
  F(Status, GetSignatureOutputTensorByIndex, (Handle, size_t, Handle *))                       \
  F(Status, GetRankedTensorType, (Handle, Ranked *))                                           \
  F(Status, GetQuantizationTypeId, (Handle, int *))                                            \
  F(Status, GetPerTensorQuantization, (Handle, PerTensor *))                                   \
  F(Status, GetCompiledModelInputBufferRequirements, (Handle, size_t, size_t, Handle *))       \
  F(Status, GetCompiledModelOutputBufferRequirements, (Handle, size_t, size_t, Handle *))      \
  F(Status, CreateManagedTensorBufferFromRequirements, (Handle, const Ranked *, Handle, Handle *)) \
  F(Status, GetTensorBufferPackedSize, (Handle, size_t *))                                     \
  F(void, DestroyTensorBuffer, (Handle))                                                       \
  F(Status, LockTensorBuffer, (Handle, void **, int))                                          \
  F(Status, UnlockTensorBuffer, (Handle))                                                      \
  F(Status, RunCompiledModel, (Handle, size_t, size_t, Handle *, size_t, Handle *))

#define DECLARE(kind, name, arguments) static kind(*name) arguments;
FUNCTIONS(DECLARE)

static Handle environment, file, compiled;
static Handle taken[TENSORS], given[TENSORS];
static int threads;
static const char *summary_path;

#define CHECK(call)                                                              \
  do {                                                                           \
    Status status_ = (call);                                                     \
    if (status_) return say("LiteRT: %s gave status %d", #call, status_);        \
  } while (0)

static const char *load(const char *library) {
  if (environment) return NULL;
  void *loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!loaded) return say("LiteRT's library cannot be loaded: %s", dlerror());
#define FIND(kind, name, arguments)                                     \
  *(void **)&name = dlsym(loaded, "LiteRt" #name);                      \
  if (!name) return say("%s has no function LiteRt%s", library, #name);
  FUNCTIONS(FIND)
  CHECK(CreateEnvironment(0, NULL, &environment));
  return NULL;
}

static const char *dtype_of(int type) {
  switch (type) { /* LiteRtElementType, which is TfLiteType */
    case 1: return "float32";
    case 2: return "int32";
    case 3: return "uint8";
    case 4: return "int64";
    case 6: return "bool";
    case 7: return "int16";
    case 9: return "int8";
    case 10: return "float16";
    case 11: return "float64";
    case 16: return "uint32";
    case 17: return "uint16";
  }
  return NULL;
}

static const char *describe(Tensor *tensor, const char *name, Handle of, const Ranked *ranked) {
  snprintf(tensor->name, sizeof tensor->name, "%s", name);
  tensor->dtype = dtype_of(ranked->type);
  if (!tensor->dtype) return say("LiteRT: %s has element type %d", name, ranked->type);
  tensor->rank = ranked->layout.rank;
  for (int axis = 0; axis < tensor->rank; axis++)
    tensor->shape[axis] = ranked->layout.dimensions[axis];
  int kind = 0;
  PerTensor quantization = {0, 0};
  CHECK(GetQuantizationTypeId(of, &kind));
  if (kind == PER_TENSOR) CHECK(GetPerTensorQuantization(of, &quantization));
  tensor->scale = quantization.scale;
  tensor->zero = quantization.zero_point;
  return NULL;
}

static const char *bind(Model *model, Handle signature, int output, size_t place) {
  Tensor *tensor = output ? &model->output[place] : &model->input[place];
  Handle *buffer = output ? &given[place] : &taken[place];
  const char *name;
  Handle of, requirements;
  Ranked ranked;
  if (output) {
    CHECK(GetSignatureOutputName(signature, place, &name));
    CHECK(GetSignatureOutputTensorByIndex(signature, place, &of));
    CHECK(GetCompiledModelOutputBufferRequirements(compiled, 0, place, &requirements));
  } else {
    CHECK(GetSignatureInputName(signature, place, &name));
    CHECK(GetSignatureInputTensorByIndex(signature, place, &of));
    CHECK(GetCompiledModelInputBufferRequirements(compiled, 0, place, &requirements));
  }
  CHECK(GetRankedTensorType(of, &ranked));
  CHECK(CreateManagedTensorBufferFromRequirements(environment, &ranked, requirements, buffer));
  CHECK(GetTensorBufferPackedSize(*buffer, &tensor->bytes));
  /* Memory of the CPU's own stays where it is when unlocked, so one address serves all runs. */
  tensor->data = malloc(tensor->bytes ? tensor->bytes : 1);
  if (!tensor->data) return "out of memory";
  return describe(tensor, name, of, &ranked);
}

static const char *attach(Handle options, const char *kind, const char *text) {
  Handle opaque;
  char *owned = strdup(text);
  CHECK(CreateOpaqueOptions(kind, owned, free, &opaque));
  CHECK(AddOpaqueOptions(options, opaque));
  return NULL;
}

static const char *compile(void) {
  Handle options;
  char toml[64];
  CHECK(CreateOptions(&options));
  CHECK(SetOptionsHardwareAccelerators(options, CPU));
  snprintf(toml, sizeof toml, "num_threads = %d\n", threads);
  const char *wrong = attach(options, "xnnpack", toml);
  if (!wrong && summary_path) wrong = attach(options, "runtime_options_string", "enable_profiling = true\n");
  if (wrong) return wrong;
  CHECK(CreateCompiledModel(environment, file, options, &compiled));
  DestroyOptions(options);
  if (summary_path) {
    Handle profiler;
    CHECK(CompiledModelGetProfiler(compiled, &profiler));
    CHECK(StartProfiler(profiler));
  }
  return NULL;
}

static const char *open_file(const char *path, int count, char **options, Model *model) {
  const char *asked = option(count, options, "num_threads");
  size_t signatures, inputs, outputs;
  Handle signature;
  threads = asked ? atoi(asked) : 1;
  summary_path = option(count, options, "profile");
  if (summary_path) summary_path = strdup(summary_path);
  Status status = CreateModelFromFile(environment, path, &file);
  if (status == UNSUPPORTED)
    return "LiteRT's C library does not load this file: it takes no variable tensors, in which "
           "recurrent models keep their state; a device whose Python has LiteRT runs it";
  if (status) return say("LiteRT: the file cannot be loaded (status %d)", status);
  const char *wrong = compile();
  if (wrong) return wrong;
  CHECK(GetNumModelSignatures(file, &signatures));
  if (signatures != 1) return say("the model has %zu signatures where one is run", signatures);
  CHECK(GetModelSignature(file, 0, &signature));
  CHECK(GetNumSignatureInputs(signature, &inputs));
  CHECK(GetNumSignatureOutputs(signature, &outputs));
  if (inputs > TENSORS || outputs > TENSORS) return "the model has too many inputs or outputs";
  model->inputs = (int)inputs;
  model->outputs = (int)outputs;
  for (size_t i = 0; i < inputs && !wrong; i++) wrong = bind(model, signature, 0, i);
  for (size_t i = 0; i < outputs && !wrong; i++) wrong = bind(model, signature, 1, i);
  return wrong;
}

static const char *run(Model *model) {
  void *place;
  for (int i = 0; i < model->inputs; i++) {
    CHECK(LockTensorBuffer(taken[i], &place, WRITE));
    memcpy(place, model->input[i].data, model->input[i].bytes);
    CHECK(UnlockTensorBuffer(taken[i]));
  }
  CHECK(RunCompiledModel(compiled, 0, (size_t)model->inputs, taken, (size_t)model->outputs, given));
  for (int i = 0; i < model->outputs; i++) {
    CHECK(LockTensorBuffer(given[i], &place, READ));
    memcpy(model->output[i].data, place, model->output[i].bytes);
    CHECK(UnlockTensorBuffer(given[i]));
  }
  return NULL;
}

/* The C library cannot reset a model's state: the model is compiled anew. */
static const char *reset(Model *model) {
  (void)model;
  DestroyCompiledModel(compiled);
  return compile();
}

static const char *profile(Model *model) {
  Handle profiler;
  const char *summary;
  bool all = false;
  (void)model;
  CHECK(CompiledModelGetProfiler(compiled, &profiler));
  CHECK(StopProfiler(profiler));
  CHECK(GetProfileSummary(profiler, compiled, &summary));
  CHECK(CompiledModelIsFullyAccelerated(compiled, &all));
  FILE *out = fopen(summary_path, "w");
  if (!out) return say("%s cannot be written", summary_path);
  fprintf(out, "fully accelerated: %d\n%s", all, summary);
  return fclose(out) ? "the profile cannot be written" : NULL;
}

static void close_model(Model *model) {
  for (int i = 0; i < model->inputs; i++) {
    DestroyTensorBuffer(taken[i]);
    free(model->input[i].data);
  }
  for (int i = 0; i < model->outputs; i++) {
    DestroyTensorBuffer(given[i]);
    free(model->output[i].data);
  }
  DestroyCompiledModel(compiled);
  DestroyModel(file);
}

const Runtime litert = {"litert", load, open_file, run, reset, profile, close_model};
