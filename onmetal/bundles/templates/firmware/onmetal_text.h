/* Text over the port, written here so that no printf is linked. */
#ifndef ONMETAL_TEXT_H
#define ONMETAL_TEXT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void onmetal_text(const char *text);
void onmetal_text_unsigned(uint64_t value);
/* Two hexadecimal digits. */
void onmetal_text_byte(uint8_t value);
/* With three decimals, as printf's %.3f; beyond 1e15 `inf`. */
void onmetal_text_real(float value);

#ifdef __cplusplus
}
#endif

#endif
