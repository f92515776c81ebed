/* Runs and times models on a device that has nothing: no Python, no runtime.
 *
 * Requests come on standard input, one a line, words parted by tabs; answers go to standard output,
 * one JSON object a line: {"result": …}, {"error": "kind", "message": …} or {"progress": [n, of]}.
 *
 *   open RUNTIME LIBRARY MODEL [name=value …]   -> load_ms, inputs, outputs
 *   feeds FILE COUNT                            inputs to time with, raw, one feed after another
 *   warm SECONDS LEAST                          -> inferences run
 *   round SECONDS LEAST WARM_SECONDS FEED       -> base64 of int64 nanoseconds, one an inference
 *   run IN COUNT OUT                            every sample of IN; the outputs, raw, go to OUT
 *   memory RUNTIME LIBRARY TRIVIAL MODEL [name=value …]   -> baseline and peak, bytes
 *   profile SECONDS                             the model was opened with profile=FILE
 *
 * Raw: tensors one after another as the model takes and gives them, little endian, nothing between.
 * It ends when standard input does, even in the middle of an inference: a cut line leaves nothing
 * running. The runtimes' libraries are opened by dlopen; see native.c in the folder of each.
 */
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 96, IDLE_S = 3600 };

static Model model;
static const Runtime *runtime;
static int stateful;
static char *feeds; /* COUNT times all inputs */
static int feed_count;
static FILE *answers;

const char *say(const char *format, ...) {
  static char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

const char *option(int count, char **options, const char *name) {
  size_t length = strlen(name);
  for (int i = 0; i < count; i++)
    if (!strncmp(options[i], name, length) && options[i][length] == '=')
      return options[i] + length + 1;
  return NULL;
}

/* --- answers */

/* Bytes of the UTF-8 character that begins here; 0 where none does (a name cut off, no UTF-8). */
static int character(const unsigned char *c) {
  int length = *c < 0x80 ? 1 : *c >= 0xc2 && *c < 0xe0 ? 2 : *c >= 0xe0 && *c < 0xf0 ? 3 : 4;
  if (*c >= 0x80 && (*c < 0xc2 || *c > 0xf4)) return 0;
  for (int i = 1; i < length; i++)
    if (c[i] >> 6 != 2) return 0;
  unsigned first = c[0] << 8 | c[1]; /* overlong forms, surrogates, beyond the last character */
  if (length == 3 && (first < 0xe0a0 || (first >= 0xeda0 && first < 0xee00))) return 0;
  if (length == 4 && (first < 0xf090 || first >= 0xf490)) return 0;
  return length;
}

static void quoted(const char *text) {
  fputc('"', answers);
  for (const unsigned char *c = (const unsigned char *)text; *c;) {
    int length = character(c);
    if (!length)
      fputs("\\ufffd", answers);
    else if (*c == '"' || *c == '\\')
      fprintf(answers, "\\%c", *c);
    else if (*c < 0x20 || *c == 0x7f)
      fprintf(answers, "\\u%04x", *c);
    else
      fwrite(c, 1, (size_t)length, answers);
    c += length ? length : 1;
  }
  fputc('"', answers);
}

static void fail(const char *kind, const char *message) {
  fprintf(answers, "{\"error\": \"%s\", \"message\": ", kind);
  quoted(message);
  fputs("}\n", answers);
  fflush(answers);
}

static void tensors(const char *title, int count, const Tensor *found) {
  fprintf(answers, ", \"%s\": [", title);
  for (int i = 0; i < count; i++) {
    fputs(i ? ", {\"name\": " : "{\"name\": ", answers);
    quoted(found[i].name);
    fprintf(answers, ", \"dtype\": \"%s\", \"bytes\": %zu, \"scale\": %.9g, \"zero\": %lld",
            found[i].dtype, found[i].bytes, found[i].scale, (long long)found[i].zero);
    fputs(", \"shape\": [", answers);
    for (int axis = 0; axis < found[i].rank; axis++)
      fprintf(answers, axis ? ", %lld" : "%lld", (long long)found[i].shape[axis]);
    fputs("]}", answers);
  }
  fputc(']', answers);
}

static void base64(const unsigned char *bytes, size_t count) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < count; i += 3) {
    unsigned three = bytes[i] << 16;
    if (i + 1 < count) three |= bytes[i + 1] << 8;
    if (i + 2 < count) three |= bytes[i + 2];
    fputc(digits[three >> 18], answers);
    fputc(digits[three >> 12 & 63], answers);
    fputc(i + 1 < count ? digits[three >> 6 & 63] : '=', answers);
    fputc(i + 2 < count ? digits[three & 63] : '=', answers);
  }
}

/* --- time */

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

typedef struct {
  int64_t *ns;
  size_t count, room;
} Samples;

static void keep(Samples *samples, int64_t ns) {
  if (samples->count == samples->room) {
    samples->room = samples->room ? 2 * samples->room : 4096;
    samples->ns = realloc(samples->ns, samples->room * sizeof *samples->ns);
    if (!samples->ns) abort();
  }
  samples->ns[samples->count++] = ns;
}

static const char *no_model(void) { return runtime ? NULL : "no model is open"; }

static size_t input_bytes(void) {
  size_t all = 0;
  for (int i = 0; i < model.inputs; i++) all += model.input[i].bytes;
  return all;
}

static void give(int number) {
  const char *from = feeds + (size_t)(number % feed_count) * input_bytes();
  for (int i = 0; i < model.inputs; i++) {
    memcpy(model.input[i].data, from, model.input[i].bytes);
    from += model.input[i].bytes;
  }
}

/* Inference after inference for a time and a count. The inputs are handed over anew each time, as
   an application does. */
static const char *burst(int feed, double seconds, size_t least, Samples *samples) {
  int64_t before = now_ns(), end = before + (int64_t)(seconds * 1e9);
  for (;;) {
    give(feed);
    const char *wrong = runtime->run(&model);
    if (wrong) return wrong;
    int64_t after = now_ns();
    keep(samples, after - before);
    if (after >= end && samples->count >= least) return NULL;
    before = now_ns();
  }
}

static int by_size(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static double median(const int64_t *from, size_t count) {
  int64_t *sorted = malloc(count * sizeof *sorted);
  if (!sorted) abort();
  memcpy(sorted, from, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, by_size);
  double found = sorted[count / 2];
  free(sorted);
  return found;
}

/* --- the operations; each returns what went wrong, or NULL after it has answered */

static const Runtime *find(const char *name) {
#define X(runtime) \
  if (!strcmp(name, #runtime)) return &runtime;
  RUNTIMES
#undef X
  return NULL;
}

static const char *open_model(int count, char **words) {
  if (count < 4) return "open needs RUNTIME LIBRARY MODEL";
  if (runtime) return "a model is open already";
  const Runtime *chosen = find(words[1]);
  if (!chosen) return say("unknown runtime %s", words[1]);
  const char *wrong = chosen->load(words[2]);
  if (wrong) return wrong;
  int64_t began = now_ns();
  wrong = chosen->open(words[3], count - 4, words + 4, &model);
  if (wrong) return wrong;
  double load_ms = (now_ns() - began) / 1e6;
  runtime = chosen;
  const char *state = option(count - 4, words + 4, "stateful");
  stateful = state && strcmp(state, "0");
  fprintf(answers, "{\"result\": {\"load_ms\": %.6f", load_ms);
  tensors("inputs", model.inputs, model.input);
  tensors("outputs", model.outputs, model.output);
  fputs("}}\n", answers);
  return NULL;
}

static const char *read_feeds(int count, char **words) {
  if (count < 3) return "feeds needs FILE COUNT";
  if (no_model()) return no_model();
  size_t number = strtoul(words[2], NULL, 10), all;
  if (!number || number > INT_MAX || __builtin_mul_overflow(input_bytes(), number, &all))
    return say("%s is no number of feeds", words[2]);
  FILE *file = fopen(words[1], "rb");
  if (!file) return say("%s: %s", words[1], strerror(errno));
  char *read = malloc(all ? all : 1);
  size_t got = read ? fread(read, 1, all, file) : 0;
  fclose(file);
  if (!read || got != all) {
    free(read);
    if (!read) return "out of memory";
    return say("%s holds %zu bytes where %zu are needed", words[1], got, all);
  }
  free(feeds);
  feeds = read;
  feed_count = (int)number;
  fputs("{\"result\": null}\n", answers);
  return NULL;
}

static const char *warm(int count, char **words) {
  if (count < 3) return "warm needs SECONDS LEAST";
  if (no_model() || !feed_count) return "no model is open, or it has no feeds";
  double seconds = atof(words[1]);
  size_t least = (size_t)atoi(words[2]) > 6 ? (size_t)atoi(words[2]) : 6;
  Samples samples = {0};
  int64_t began = now_ns();
  for (;;) { /* until the medians of the last two thirds differ by less than 3 % */
    const char *wrong = burst(0, seconds / 6, samples.count + 1, &samples);
    if (wrong) return wrong;
    double spent = (now_ns() - began) / 1e9;
    if (spent > 3 * seconds && samples.count > 1) break;
    if (spent < seconds || samples.count < least) continue;
    size_t third = samples.count / 3;
    double middle = median(samples.ns + third, third);
    double last = median(samples.ns + 2 * third, samples.count - 2 * third);
    if (middle - last < 0.03 * last && last - middle < 0.03 * last) break;
  }
  fprintf(answers, "{\"result\": %zu}\n", samples.count);
  free(samples.ns);
  return NULL;
}

static const char *timed_round(int count, char **words) {
  if (count < 5) return "round needs SECONDS LEAST WARM_SECONDS FEED";
  if (no_model() || !feed_count) return "no model is open, or it has no feeds";
  Samples thrown = {0}, samples = {0};
  const char *wrong = burst(atoi(words[4]), atof(words[3]), 2, &thrown);
  free(thrown.ns);
  if (!wrong) wrong = burst(atoi(words[4]), atof(words[1]), (size_t)atoi(words[2]), &samples);
  if (wrong) return wrong;
  fputs("{\"result\": \"", answers);
  base64((unsigned char *)samples.ns, samples.count * sizeof *samples.ns);
  fputs("\"}\n", answers);
  free(samples.ns);
  return NULL;
}

static const char *one_sample(FILE *in, FILE *out) {
  const char *wrong;
  for (int i = 0; i < model.inputs; i++)
    if (fread(model.input[i].data, 1, model.input[i].bytes, in) != model.input[i].bytes)
      return "the samples end too early";
  if (stateful && (wrong = runtime->reset(&model))) return wrong;
  if ((wrong = runtime->run(&model))) return wrong;
  for (int i = 0; i < model.outputs; i++)
    if (fwrite(model.output[i].data, 1, model.output[i].bytes, out) != model.output[i].bytes)
      return say("the outputs cannot be written: %s", strerror(errno));
  return NULL;
}

static const char *run_samples(int count, char **words) {
  if (count < 4) return "run needs IN COUNT OUT";
  if (no_model()) return no_model();
  int all = atoi(words[2]);
  FILE *in = fopen(words[1], "rb"), *out = in ? fopen(words[3], "wb") : NULL;
  if (!out) {
    const char *wrong = say("%s: %s", in ? words[3] : words[1], strerror(errno));
    if (in) fclose(in);
    return wrong;
  }
  const char *wrong = NULL;
  int64_t told = now_ns();
  for (int done = 0; done < all && !wrong; done++) {
    wrong = one_sample(in, out);
    if (now_ns() - told > 500000000) {
      told = now_ns();
      fprintf(answers, "{\"progress\": [%d, %d]}\n", done + 1, all);
      fflush(answers);
    }
  }
  fclose(in);
  if (fclose(out) && !wrong) wrong = say("%s: %s", words[3], strerror(errno));
  if (!wrong) fputs("{\"result\": null}\n", answers);
  return wrong;
}

/* A field of /proc/self/status in bytes; -1 where it cannot be read. */
static long long status(const char *field) {
  char line[256];
  long long kib = -1;
  FILE *file = fopen("/proc/self/status", "r");
  if (!file) return -1;
  while (kib < 0 && fgets(line, sizeof line, file))
    if (!strncmp(line, field, strlen(field))) kib = atoll(line + strlen(field));
  fclose(file);
  return kib < 0 ? -1 : kib * 1024;
}

static int reset_peak(void) {
  FILE *file = fopen("/proc/self/clear_refs", "w"); /* proc(5): resets VmHWM */
  if (!file) return 0;
  int done = fputs("5", file) >= 0;
  return !fclose(file) && done;
}

static const char *run_some(const Runtime *chosen, int times) {
  for (int i = 0; i < model.inputs; i++) memset(model.input[i].data, 0, model.input[i].bytes);
  for (int i = 0; i < times; i++) {
    const char *wrong = chosen->run(&model);
    if (wrong) return wrong;
  }
  return NULL;
}

/* In a process that has done nothing else: the baseline is taken after a model of one operator was
   opened and run, so that the library, its threads and allocators are in it. */
static const char *memory(int count, char **words) {
  if (count < 5) return "memory needs RUNTIME LIBRARY TRIVIAL MODEL";
  if (runtime) return "memory is measured in a process of its own";
  const Runtime *chosen = find(words[1]);
  if (!chosen) return say("unknown runtime %s", words[1]);
  const char *wrong = chosen->load(words[2]);
  if (!wrong) wrong = chosen->open(words[3], count - 5, words + 5, &model);
  if (!wrong) wrong = run_some(chosen, 1);
  if (wrong) return wrong;
  chosen->close(&model);
  int exact = reset_peak();
  long long baseline = status("VmRSS:");
  if (baseline < 0) return "/proc/self/status cannot be read";
  wrong = chosen->open(words[4], count - 5, words + 5, &model);
  if (!wrong) wrong = run_some(chosen, 5);
  if (wrong) return wrong;
  fprintf(answers, "{\"result\": {\"baseline\": %lld, \"peak\": %lld, \"exact\": %s}}\n", baseline,
          status("VmHWM:"), exact ? "true" : "false");
  return NULL;
}

static const char *profile(int count, char **words) {
  if (count < 2) return "profile needs SECONDS";
  if (no_model() || !feed_count) return "no model is open, or it has no feeds";
  Samples samples = {0};
  const char *wrong = burst(0, atof(words[1]), 3, &samples);
  if (!wrong) wrong = runtime->profile(&model);
  if (!wrong) fprintf(answers, "{\"result\": {\"inferences\": %zu}}\n", samples.count);
  free(samples.ns);
  return wrong;
}

static const struct {
  const char *name, *kind; /* of the error, where it fails */
  const char *(*answer)(int count, char **words);
} operations[] = {
    {"open", "UnsupportedError", open_model}, {"feeds", "DeviceError", read_feeds},
    {"warm", "DeviceError", warm},            {"round", "DeviceError", timed_round},
    {"run", "DeviceError", run_samples},      {"memory", "DeviceError", memory},
    {"profile", "DeviceError", profile},
};

static void serve(char *line) {
  char *words[WORDS], *rest = line, *word;
  int count = 0;
  line[strcspn(line, "\r\n")] = 0;
  while (count < WORDS && (word = strsep(&rest, "\t"))) words[count++] = word;
  if (rest) {
    fail("DeviceError", say("more than %d words", WORDS));
    return;
  }
  for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
    if (strcmp(words[0], operations[i].name)) continue;
    const char *wrong = operations[i].answer(count, words);
    if (wrong) fail(operations[i].kind, wrong);
    fflush(answers);
    return;
  }
  fail("DeviceError", say("unknown request %s", words[0]));
}

/* Ends the process when nobody can ask any more, whatever it is doing. */
static void *watch(void *unused) {
  (void)unused;
  struct pollfd input = {.fd = 0, .events = POLLRDHUP};
  while (poll(&input, 1, -1) < 0 && errno == EINTR) continue;
  _exit(0);
}

/* The first line: who this is, and the cores that it may run on. */
static void greet(void) {
  cpu_set_t set;
  int more = 0;
  fprintf(answers, "{\"runner\": \"native\", \"pid\": %ld, \"cores\": [", (long)getpid());
  if (!sched_getaffinity(0, sizeof set, &set))
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set)) fprintf(answers, more++ ? ", %d" : "%d", cpu);
  fputs("]}\n", answers);
  fflush(answers);
}

int main(void) {
  pthread_t watcher;
  /* What a library prints goes to standard error: only answers may go to standard output. */
  answers = fdopen(dup(1), "w");
  if (!answers || dup2(2, 1) < 0 || pthread_create(&watcher, NULL, watch, NULL)) return 70;
  greet();
  char *line = NULL;
  size_t room = 0;
  for (;;) {
    alarm(IDLE_S); /* nobody asked for an hour: the one who could is gone */
    if (getline(&line, &room, stdin) <= 0) return 0;
    alarm(0);
    serve(line);
  }
}
