/* onmetal's native runner: what runner.c asks of a runtime, and what it offers to one. */
#ifndef ONMETAL_RUNNER_H
#define ONMETAL_RUNNER_H

#include <stddef.h>
#include <stdint.h>

enum { TENSORS = 64, RANK = 8 };

typedef struct {
  char name[256];
  const char *dtype; /* numpy's name */
  int rank;
  int64_t shape[RANK];
  size_t bytes;
  double scale; /* of an integer tensor that stands for reals; 0: it does not */
  int64_t zero;
  void *data; /* where the runtime takes its input from, or leaves its output */
} Tensor;

typedef struct {
  int inputs, outputs;
  Tensor input[TENSORS], output[TENSORS];
} Model;

typedef struct {
  const char *name;
  /* Load the library, as importing it does; NULL, or what went wrong. */
  const char *(*load)(const char *library);
  /* Open a model file and fill in the Model. `options` are "name=value" words. */
  const char *(*open)(const char *path, int count, char **options, Model *model);
  /* One inference on what lies in the inputs' data; outputs' data is there afterwards. */
  const char *(*run)(Model *model);
  /* The state of a recurrent model as it was when opened. */
  const char *(*reset)(Model *model);
  /* What the runtime's own profile says of the inferences since it was opened with profile=PATH:
     written to that path. */
  const char *(*profile)(Model *model);
  void (*close)(Model *model);
} Runtime;

/* RUNTIMES is given to the compiler: X(NAME) of every runtime that is compiled in. */
#define X(name) extern const Runtime name;
RUNTIMES
#undef X

/* The value of option `name`, or NULL. */
const char *option(int count, char **options, const char *name);
/* A message built as by printf, in a buffer that the next call overwrites. */
const char *say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
