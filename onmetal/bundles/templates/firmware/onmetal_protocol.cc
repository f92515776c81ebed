#include "onmetal_protocol.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model_data.h"
#include "onmetal_model.h"
#include "onmetal_port.h"
#include "onmetal_quantize.h"
#include "onmetal_text.h"
#include "selftest.h"

/* What the host calls the board: <vendor>/<board>, without brackets. */
#ifndef ONMETAL_BOARD_NAME
#define ONMETAL_BOARD_NAME "onmetal"
#endif

/* 1: inputs are kept beside the arena and copied into it for every inference, as an application does
 * it. 0 spares that memory: inputs go right into the arena, where an inference may overwrite them,
 * so that each needs a `db load` of its own. */
#ifndef ONMETAL_KEEP_INPUT
#define ONMETAL_KEEP_INPUT 1
#endif

/* Added to every byte that is loaded, modulo 256: 128 for a host that sends images of unsigned bytes
 * to a model of int8 with the zero point -128, as MLPerf Tiny's does. */
#ifndef ONMETAL_DB_OFFSET
#define ONMETAL_DB_OFFSET 0
#endif

extern "C" {
__attribute__((weak)) void onmetal_port_initialize(void) {}
__attribute__((weak)) void onmetal_port_pulse(void) {}
__attribute__((weak)) uint64_t onmetal_port_ticks(void) { return 0; }
__attribute__((weak)) uint32_t onmetal_port_ticks_per_second(void) { return 0; }
}

namespace {

constexpr size_t COMMAND = 512;                   /* characters of a command, without the `%` */
constexpr size_t DATA = (COMMAND - 3) / 2;        /* bytes that `db` and a blank leave room for */
constexpr size_t LINE_BYTES = 64, PRINTED = 8;    /* bytes a line, of outputs and of the input */
constexpr uint32_t INFERENCES = 1, WARM_UPS = 10; /* where `infer` does not say */

char command[COMMAND + 1];
volatile size_t received = 0;
volatile bool complete = false, overlong = false;

size_t loaded = 0;        /* bytes of the input so far */
bool loading = false;     /* a `db load` has not got all of its bytes */

/* --- the input: all tensors, one after another */

#if ONMETAL_KEEP_INPUT
uint8_t kept[ONMETAL_INPUT_BYTES];

uint8_t *input_byte(size_t place) { return &kept[place]; }

void deliver() {
    const uint8_t *from = kept;
    for (size_t i = 0; i < ONMETAL_INPUTS; ++i) {
        memcpy(onmetal_input(i), from, onmetal_inputs[i].bytes);
        from += onmetal_inputs[i].bytes;
    }
}
#else
uint8_t *input_byte(size_t place) {
    size_t number = 0;
    while (place >= onmetal_inputs[number].bytes) place -= onmetal_inputs[number++].bytes;
    return static_cast<uint8_t *>(onmetal_input(number)) + place;
}

void deliver() {}
#endif

/* --- words of a command */

/* The next word, ended by a zero; nullptr where none is left. */
char *word(char **rest) {
    char *at = *rest;
    while (*at == ' ') ++at;
    if (*at == '\0') return nullptr;
    char *begin = at;
    while (*at != ' ' && *at != '\0') ++at;
    if (*at != '\0') *at++ = '\0';
    *rest = at;
    return begin;
}

bool is(const char *text, const char *wanted) { return strcmp(text, wanted) == 0; }

/* A whole number of at most 32 bits. */
bool number(const char *text, uint32_t *found) {
    uint64_t value = 0;
    for (const char *at = text; *at != '\0'; ++at) {
        if (*at < '0' || *at > '9') return false;
        value = value * 10 + static_cast<uint64_t>(*at - '0');
        if (value > UINT32_MAX) return false;
    }
    *found = static_cast<uint32_t>(value);
    return *text != '\0';
}

int digit(char character) {
    if (character >= '0' && character <= '9') return character - '0';
    if (character >= 'a' && character <= 'f') return character - 'a' + 10;
    if (character >= 'A' && character <= 'F') return character - 'A' + 10;
    return -1;
}

/* --- answers */

void error(const char *text) {
    onmetal_text("e-[");
    onmetal_text(text);
    onmetal_text("]\r\n");
}

void numbered(const char *before, uint64_t value, const char *after) {
    onmetal_text(before);
    onmetal_text_unsigned(value);
    onmetal_text(after);
}

void time_stamp(uint32_t microseconds) { numbered("m-lap-us-", microseconds, "\r\n"); }

bool ready() {
    if (onmetal_input(0) != nullptr) return true;
    error("The model is not ready: see what was said at the start");
    return false;
}

void show_results() {
    if (!ready()) return;
    const void *stored = onmetal_output(0);
    onmetal_text("m-results-[");
    for (size_t i = 0; i < onmetal_outputs[0].count; ++i) {
        if (i > 0) onmetal_text(",");
        onmetal_text_real(onmetal_dequantize_one(&onmetal_outputs[0], stored, i));
    }
    onmetal_text("]\r\n");
}

void show_outputs() {
    if (!ready()) return;
    for (size_t k = 0; k < ONMETAL_OUTPUTS; ++k) {
        const auto *stored = static_cast<const uint8_t *>(onmetal_output(k));
        size_t bytes = onmetal_outputs[k].bytes;
        for (size_t i = 0; i < bytes; i += LINE_BYTES) {
            size_t end = bytes - i > LINE_BYTES ? i + LINE_BYTES : bytes;
            numbered("m-output-", k, "-[");
            for (size_t j = i; j < end; ++j) onmetal_text_byte(stored[j]);
            onmetal_text("]\r\n");
        }
    }
}

void show_profile() {
    onmetal_text("m-profile-[onmetal firmware 1]\r\n");
    onmetal_text("m-model-[" ONMETAL_MODEL_NAME "]\r\n");
    onmetal_text("m-sha256-[");
    onmetal_text(onmetal_model_sha256);
    onmetal_text("]\r\n");
    numbered("m-buffer-[", DATA, "]\r\n");
    numbered("m-arena-[", onmetal_arena_used(), " ");
    numbered("", ONMETAL_ARENA_BYTES, "]\r\n");
}

void show_help() {
    onmetal_text(
        "onmetal firmware 1\r\n"
        "\r\n"
        "name           The board's name\r\n"
        "timestamp      The clock, in microseconds\r\n"
        "profile        The firmware, the model, its digest and its memory\r\n"
        "db load N      Bytes of the input are to come: N, all inputs one after another\r\n"
        "db HH[HH...]   Bytes in hexadecimal digits\r\n"
        "db print       What was loaded\r\n"
        "infer N [W]    N inferences that are timed, after W that are not\r\n"
        "results        The first output as real numbers\r\n"
        "output         All outputs, byte by byte as the model stores them\r\n"
        "check          Runs the golden vectors that are compiled in\r\n");
}

/* --- commands */

void load(char **rest) {
    const char *said = word(rest);
    uint32_t bytes = 0;
    if (said == nullptr || !number(said, &bytes)) {
        error("Command 'db load' requires the number of bytes");
    } else if (bytes != ONMETAL_INPUT_BYTES) {
        numbered("e-[The input has ", ONMETAL_INPUT_BYTES, " bytes");
        numbered(", not ", bytes, "]\r\n");
    } else if (ready()) {
        loaded = 0;
        loading = true;
        numbered("m-[Expecting ", bytes, " bytes]\r\n");
    }
}

void take(const char *digits) {
    size_t length = strlen(digits);
    if (!loading) return error("Data without a 'db load' before");
    if (length % 2 != 0) return error("An odd number of hex digits");
    for (size_t i = 0; i < length; ++i) {
        if (digit(digits[i]) < 0) return error("Invalid hex digit");
    }
    for (size_t i = 0; i < length && loading; i += 2) {
        int value = digit(digits[i]) * 16 + digit(digits[i + 1]) + ONMETAL_DB_OFFSET;
        *input_byte(loaded++) = static_cast<uint8_t>(value & 0xff);
        loading = loaded < ONMETAL_INPUT_BYTES;
    }
    if (!loading) onmetal_text("m-load-done\r\n");
}

void print(char **rest) {
    uint32_t bytes = ONMETAL_INPUT_BYTES, from = 0;
    const char *said = word(rest);
    if (said != nullptr && !number(said, &bytes)) return error("Not a number of bytes");
    said = word(rest);
    if (said != nullptr && !number(said, &from)) return error("Not an offset");
    if (!ready()) return;
    if (from > ONMETAL_INPUT_BYTES) from = ONMETAL_INPUT_BYTES;
    if (bytes > ONMETAL_INPUT_BYTES - from) bytes = ONMETAL_INPUT_BYTES - from;
    for (size_t i = 0; i < bytes; ++i) {
        onmetal_text(i % PRINTED == 0 ? "m-buffer-" : "-");
        onmetal_text_byte(*input_byte(from + i));
        if ((i + 1) % PRINTED == 0 || i + 1 == bytes) onmetal_text("\r\n");
    }
}

void data(char **rest) {
    const char *said = word(rest);
    if (said == nullptr) {
        error("Command 'db' requires a subcommand");
    } else if (is(said, "load")) {
        load(rest);
    } else if (is(said, "print")) {
        print(rest);
    } else {
        take(said);
    }
}

int infer_times(uint32_t times) {
    for (uint32_t i = 0; i < times; ++i) {
        deliver();
        int status = onmetal_invoke();
        if (status != ONMETAL_OK) return status;
    }
    return ONMETAL_OK;
}

/* What is read from the clocks is sent when the inferences are over: a serial line is slow. */
void timed(uint32_t inferences, uint32_t warm_ups) {
    numbered("m-warmup-start-", warm_ups, "\r\n");
    int status = infer_times(warm_ups);
    onmetal_text("m-warmup-done\r\n");
    if (status == ONMETAL_OK) status = onmetal_reset();
    numbered("m-infer-start-", inferences, "\r\n");
    onmetal_port_pulse();
    uint32_t start = onmetal_port_microseconds();
    uint64_t first = onmetal_port_ticks();
    if (status == ONMETAL_OK) status = infer_times(inferences);
    uint64_t last = onmetal_port_ticks();
    uint32_t end = onmetal_port_microseconds();
    onmetal_port_pulse();
    if (status != ONMETAL_OK) return error(onmetal_status_text(status));
    time_stamp(start);
    time_stamp(end);
    onmetal_text("m-infer-done\r\n");
    uint32_t rate = onmetal_port_ticks_per_second();
    if (rate != 0) {
        numbered("m-ticks-[", last - first, " ");
        numbered("", rate, "]\r\n");
    }
    show_results();
}

void infer(char **rest) {
    uint32_t inferences = INFERENCES, warm_ups = WARM_UPS;
    const char *said = word(rest);
    if (said != nullptr && (!number(said, &inferences) || inferences == 0)) {
        return error("Inference iterations must be > 0");
    }
    said = word(rest);
    if (said != nullptr && !number(said, &warm_ups)) {
        return error("Inference warmup must be >= 0");
    }
    if (!ready()) return;
    if (loading) {
        numbered("e-[Only ", loaded, " of ");
        return numbered("", ONMETAL_INPUT_BYTES, " bytes were loaded]\r\n");
    }
    timed(inferences, warm_ups);
}

void check() {
    if (!ready()) return;
    numbered("m-check-[", onmetal_check(0), " of ");
    numbered("", onmetal_check_count(), "]\r\n");
}

void run(char *text) {
    char *rest = text;
    const char *name = word(&rest);
    if (name == nullptr) return;
    if (is(name, "name")) {
        onmetal_text("m-name-dut-[" ONMETAL_BOARD_NAME "]\r\n");
    } else if (is(name, "timestamp")) {
        onmetal_port_pulse();
        time_stamp(onmetal_port_microseconds());
    } else if (is(name, "profile")) {
        show_profile();
    } else if (is(name, "help")) {
        show_help();
    } else if (is(name, "db")) {
        data(&rest);
    } else if (is(name, "infer")) {
        infer(&rest);
    } else if (is(name, "results")) {
        show_results();
    } else if (is(name, "output")) {
        show_outputs();
    } else if (is(name, "check")) {
        check();
    } else {
        onmetal_text("e-[Unknown command: ");
        onmetal_text(name);
        onmetal_text("]\r\n");
    }
}

}  // namespace

void onmetal_protocol_receive(char character) {
    if (complete) return;
    size_t length = received;
    if (character == '%') {
        command[length] = '\0';
        complete = true;
    } else if (length == COMMAND) {
        overlong = true;
    } else {
        /* Ends of lines too are blanks, and bytes beyond ASCII would only confuse the host. */
        bool plain = character > ' ' && character < 127;
        command[length] = plain ? character : ' ';
        received = length + 1;
    }
}

void onmetal_protocol_poll(void) {
    if (!complete) {
        int character = onmetal_port_getchar();
        if (character >= 0) onmetal_protocol_receive(static_cast<char>(character));
        if (!complete) return;
    }
    if (overlong) {
        numbered("e-[A command has at most ", COMMAND, " characters]\r\n");
    } else {
        run(command);
    }
    received = 0;
    overlong = false;
    onmetal_text("m-ready\r\n");
    complete = false;
}

void onmetal_protocol_start(void) {
    onmetal_text("m-init-done\r\n");
    onmetal_text("m-ready\r\n");
}

void onmetal_protocol_say(const char *line) {
    onmetal_text(line);
    onmetal_text("\r\n");
}
