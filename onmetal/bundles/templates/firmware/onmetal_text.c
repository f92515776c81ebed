#include "onmetal_text.h"

#include "onmetal_port.h"

void onmetal_text(const char *text) {
    while (*text != '\0') onmetal_port_putchar(*text++);
}

void onmetal_text_unsigned(uint64_t value) {
    char digits[21];
    char *at = &digits[20];
    *at = '\0';
    do {
        *--at = (char)('0' + (int)(value % 10));
        value /= 10;
    } while (value != 0);
    onmetal_text(at);
}

void onmetal_text_byte(uint8_t value) {
    static const char digits[] = "0123456789abcdef";
    onmetal_port_putchar(digits[value >> 4]);
    onmetal_port_putchar(digits[value & 15]);
}

void onmetal_text_real(float value) {
    if (value != value) { /* NaN */
        onmetal_text("nan");
        return;
    }
    if (value < 0.0f) {
        onmetal_text("-");
        value = -value;
    }
    if (value > 1e15f) {
        onmetal_text("inf");
        return;
    }
    uint64_t whole = (uint64_t)value;
    /* A float's fraction times 1000 has fewer bits than a double: nothing is lost before it is
     * rounded, a half to the even thousandth. */
    double thousandths = ((double)value - (double)whole) * 1000.0;
    uint32_t kept = (uint32_t)thousandths;
    double rest = thousandths - (double)kept;
    if (rest > 0.5 || (rest == 0.5 && kept % 2 != 0)) ++kept;
    if (kept == 1000) {
        kept = 0;
        ++whole;
    }
    onmetal_text_unsigned(whole);
    onmetal_text(".");
    onmetal_port_putchar((char)('0' + (int)(kept / 100)));
    onmetal_port_putchar((char)('0' + (int)(kept / 10 % 10)));
    onmetal_port_putchar((char)('0' + (int)(kept % 10)));
}
