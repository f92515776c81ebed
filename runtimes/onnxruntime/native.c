/* ONNX Runtime through its C library, without its header. OrtApi is a table of functions that only
 * ever grows at its end (ORT_API_VERSION), so the places of its first members are fixed: they are
 * counted from onnxruntime_c_api.h. */
#include "runner.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle; /* OrtEnv, OrtSession, … */
typedef void *Failure; /* OrtStatus; NULL: ok */
typedef void (*Function)(void);

typedef struct {
  const Function *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} Base;

enum { API_VERSION = 17, ERROR = 3, ARENA = 1, DEFAULT = 0 };

static const Function *api;
static Handle env, session, memory_info, allocator;
static Handle values[TENSORS];
static char *input_names[TENSORS], *output_names[TENSORS];
static const char *profile_path;

#define GetErrorMessage(status) ((const char *(*)(Failure))api[2])(status)
#define CreateEnv(level, name, out) ((Failure(*)(int, const char *, Handle *))api[3])(level, name, out)
#define DisableTelemetryEvents(env) ((Failure(*)(Handle))api[6])(env)
#define CreateSession(env, path, options, out) \
  ((Failure(*)(Handle, const char *, Handle, Handle *))api[7])(env, path, options, out)
#define Run(session, in_names, in, n_in, out_names, n_out, out)                                \
  ((Failure(*)(Handle, Handle, const char *const *, const Handle *, size_t, const char *const *, \
               size_t, Handle *))api[9])(session, NULL, in_names, in, n_in, out_names, n_out, out)
#define CreateSessionOptions(out) ((Failure(*)(Handle *))api[10])(out)
#define SetInt(place, options, value) ((Failure(*)(Handle, int))api[place])(options, value)
#define Switch(place, options) ((Failure(*)(Handle))api[place])(options)
#define EnableProfiling(options, prefix) ((Failure(*)(Handle, const char *))api[14])(options, prefix)
#define AddConfigEntry(options, name, value) \
  ((Failure(*)(Handle, const char *, const char *))api[130])(options, name, value)
#define Count(place, session, out) ((Failure(*)(Handle, size_t *))api[place])(session, out)
#define TypeInfo(place, session, i, out) \
  ((Failure(*)(Handle, size_t, Handle *))api[place])(session, i, out)
#define Name(place, session, i, out) \
  ((Failure(*)(Handle, size_t, Handle, char **))api[place])(session, i, allocator, out)
#define CreateTensor(data, bytes, shape, rank, type, out)                                 \
  ((Failure(*)(Handle, void *, size_t, const int64_t *, size_t, int, Handle *))api[49])(  \
      memory_info, data, bytes, shape, rank, type, out)
#define GetTensorMutableData(value, out) ((Failure(*)(Handle, void **))api[51])(value, out)
#define CastTypeInfo(info, out) ((Failure(*)(Handle, Handle *))api[55])(info, out)
#define GetElementType(info, out) ((Failure(*)(Handle, int *))api[60])(info, out)
#define GetDimensions(info, out, rank) ((Failure(*)(Handle, int64_t *, size_t))api[62])(info, out, rank)
#define GetTypeAndShape(value, out) ((Failure(*)(Handle, Handle *))api[65])(value, out)
#define CreateCpuMemoryInfo(out) ((Failure(*)(int, int, Handle *))api[69])(ARENA, DEFAULT, out)
#define GetAllocator(out) ((Failure(*)(Handle *))api[78])(out)
#define ReleaseStatus(status) ((void (*)(Failure))api[93])(status)
#define ReleaseSession(session) ((void (*)(Handle))api[95])(session)
#define ReleaseValue(value) ((void (*)(Handle))api[96])(value)
#define ReleaseTypeInfo(info) ((void (*)(Handle))api[98])(info)
#define ReleaseShapeInfo(info) ((void (*)(Handle))api[99])(info)
#define ReleaseOptions(options) ((void (*)(Handle))api[100])(options)
#define EndProfiling(session, out) ((Failure(*)(Handle, Handle, char **))api[110])(session, allocator, out)

enum {
  SET_EXECUTION_MODE = 13,
  ENABLE_MEM_PATTERN = 16,
  ENABLE_CPU_MEM_ARENA = 18,
  SET_LOG_SEVERITY = 22,
  SET_OPTIMIZATION = 23,
  SET_INTRA_THREADS = 24,
  SET_INTER_THREADS = 25,
  INPUT_COUNT = 30,
  OUTPUT_COUNT = 31,
  INPUT_TYPE = 33,
  OUTPUT_TYPE = 34,
  INPUT_NAME = 36,
  OUTPUT_NAME = 37,
};

#define CHECK(call)                                                        \
  do {                                                                     \
    Failure failure_ = (call);                                             \
    if (failure_) {                                                        \
      const char *said_ = say("ONNX Runtime: %s", GetErrorMessage(failure_)); \
      ReleaseStatus(failure_);                                             \
      return said_;                                                        \
    }                                                                      \
  } while (0)

static const char *load(const char *library) {
  if (api) return NULL;
  void *loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!loaded) return say("ONNX Runtime's library cannot be loaded: %s", dlerror());
  const Base *(*base)(void);
  *(void **)&base = dlsym(loaded, "OrtGetApiBase");
  if (!base) return say("%s has no OrtGetApiBase", library);
  api = base()->GetApi(API_VERSION);
  if (!api) return say("ONNX Runtime %s is too old", base()->GetVersionString());
  CHECK(CreateEnv(ERROR, "onmetal", &env));
  CHECK(DisableTelemetryEvents(env));
  CHECK(CreateCpuMemoryInfo(&memory_info));
  CHECK(GetAllocator(&allocator));
  return NULL;
}

static const struct {
  const char *dtype;
  size_t bytes;
} types[] = { /* ONNXTensorElementDataType */
    {NULL, 0},      {"float32", 4}, {"uint8", 1}, {"int8", 1},    {"uint16", 2},  {"int16", 2},
    {"int32", 4},   {"int64", 8},   {NULL, 0},    {"bool", 1},    {"float16", 2}, {"float64", 8},
    {"uint32", 4},  {"uint64", 8},
};

static const char *shape_of(Tensor *tensor, Handle info) {
  int type;
  size_t rank;
  CHECK(GetElementType(info, &type));
  CHECK(Count(61, info, &rank));
  if (type < 0 || (size_t)type >= sizeof types / sizeof *types || !types[type].dtype)
    return say("ONNX Runtime: %s has element type %d", tensor->name, type);
  if (rank > RANK) return say("ONNX Runtime: %s has %zu axes", tensor->name, rank);
  CHECK(GetDimensions(info, tensor->shape, rank));
  tensor->dtype = types[type].dtype;
  tensor->rank = (int)rank;
  tensor->bytes = types[type].bytes;
  for (size_t axis = 0; axis < rank; axis++) {
    if (tensor->shape[axis] < 0) return say("the shape of %s is not static", tensor->name);
    tensor->bytes *= (size_t)tensor->shape[axis];
  }
  return NULL;
}

static int type_of(const Tensor *tensor) {
  for (size_t type = 1; type < sizeof types / sizeof *types; type++)
    if (types[type].dtype && !strcmp(types[type].dtype, tensor->dtype)) return (int)type;
  return 0;
}

static const char *describe(int output, size_t place, Model *model) {
  Tensor *tensor = output ? &model->output[place] : &model->input[place];
  char **name = output ? &output_names[place] : &input_names[place];
  Handle info, shaped;
  CHECK(Name(output ? OUTPUT_NAME : INPUT_NAME, session, place, name));
  snprintf(tensor->name, sizeof tensor->name, "%s", *name);
  CHECK(TypeInfo(output ? OUTPUT_TYPE : INPUT_TYPE, session, place, &info));
  CHECK(CastTypeInfo(info, &shaped));
  if (!shaped) return say("%s is no tensor", tensor->name);
  const char *wrong = shape_of(tensor, shaped);
  ReleaseTypeInfo(info);
  if (wrong || output) return wrong;
  tensor->data = malloc(tensor->bytes ? tensor->bytes : 1);
  if (!tensor->data) return "out of memory";
  CHECK(CreateTensor(tensor->data, tensor->bytes, tensor->shape, (size_t)tensor->rank,
                     type_of(tensor), &values[place]));
  return NULL;
}

static const char *set(Handle options, const char *name, const char *value) {
  int on = !strcmp(value, "True") || !strcmp(value, "1");
  if (strchr(name, '.'))
    CHECK(AddConfigEntry(options, name, value));
  else if (!strcmp(name, "graph_optimization_level"))
    CHECK(SetInt(SET_OPTIMIZATION, options,
                 !strcmp(value, "ORT_ENABLE_ALL") ? 99 : !strcmp(value, "ORT_ENABLE_EXTENDED") ? 2
                                                     : !strcmp(value, "ORT_ENABLE_BASIC")      ? 1
                                                                                               : 0));
  else if (!strcmp(name, "execution_mode"))
    CHECK(SetInt(SET_EXECUTION_MODE, options, !strcmp(value, "ORT_PARALLEL")));
  else if (!strcmp(name, "intra_op_num_threads"))
    CHECK(SetInt(SET_INTRA_THREADS, options, atoi(value)));
  else if (!strcmp(name, "inter_op_num_threads"))
    CHECK(SetInt(SET_INTER_THREADS, options, atoi(value)));
  else if (!strcmp(name, "enable_mem_pattern"))
    CHECK(Switch(ENABLE_MEM_PATTERN + !on, options));
  else if (!strcmp(name, "enable_cpu_mem_arena"))
    CHECK(Switch(ENABLE_CPU_MEM_ARENA + !on, options));
  else if (!strcmp(name, "profile"))
    CHECK(EnableProfiling(options, value));
  else if (strcmp(name, "stateful"))
    return say("the native runner knows no option %s of ONNX Runtime", name);
  return NULL;
}

static const char *open_file(const char *path, int count, char **words, Model *model) {
  Handle options;
  size_t inputs, outputs;
  CHECK(CreateSessionOptions(&options));
  CHECK(SetInt(SET_LOG_SEVERITY, options, ERROR));
  for (int i = 0; i < count; i++) {
    char *value = strchr(words[i], '=');
    if (!value) return say("%s is no option", words[i]);
    char *name = strndup(words[i], (size_t)(value - words[i]));
    const char *wrong = set(options, name, value + 1);
    free(name);
    if (wrong) return wrong;
  }
  profile_path = option(count, words, "profile");
  if (profile_path) profile_path = strdup(profile_path);
  CHECK(CreateSession(env, path, options, &session));
  ReleaseOptions(options);
  CHECK(Count(INPUT_COUNT, session, &inputs));
  CHECK(Count(OUTPUT_COUNT, session, &outputs));
  if (inputs > TENSORS || outputs > TENSORS) return "the model has too many inputs or outputs";
  model->inputs = (int)inputs;
  model->outputs = (int)outputs;
  const char *wrong = NULL;
  for (size_t i = 0; i < inputs && !wrong; i++) wrong = describe(0, i, model);
  for (size_t i = 0; i < outputs && !wrong; i++) wrong = describe(1, i, model);
  return wrong;
}

static Handle results[TENSORS];

static const char *run(Model *model) {
  size_t outputs = (size_t)model->outputs;
  for (size_t i = 0; i < outputs; i++) {
    if (results[i]) ReleaseValue(results[i]);
    results[i] = NULL;
  }
  CHECK(Run(session, (const char *const *)input_names, values, (size_t)model->inputs,
            (const char *const *)output_names, outputs, results));
  for (size_t i = 0; i < outputs; i++) {
    Handle info;
    CHECK(GetTypeAndShape(results[i], &info));
    const char *wrong = shape_of(&model->output[i], info); /* what it is, not what was declared */
    ReleaseShapeInfo(info);
    if (wrong) return wrong;
    CHECK(GetTensorMutableData(results[i], &model->output[i].data));
  }
  return NULL;
}

static const char *reset(Model *model) { /* a session keeps no state between runs */
  (void)model;
  return NULL;
}

static const char *profile(Model *model) {
  char *written;
  (void)model;
  CHECK(EndProfiling(session, &written)); /* prefix_<date>.json */
  return rename(written, profile_path) ? "the profile cannot be renamed" : NULL;
}

static void close_model(Model *model) {
  for (int i = 0; i < model->inputs; i++) {
    ReleaseValue(values[i]);
    free(model->input[i].data);
  }
  for (int i = 0; i < model->outputs; i++) {
    if (results[i]) ReleaseValue(results[i]);
    results[i] = NULL;
  }
  ReleaseSession(session);
}

const Runtime onnxruntime = {"onnxruntime", load, open_file, run, reset, profile, close_model};
