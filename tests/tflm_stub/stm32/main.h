/* Stub of ST's HAL: see tests/tflm_stub/README.md. */
#ifndef TFLM_STUB_MAIN_H
#define TFLM_STUB_MAIN_H

#include <stdint.h>

typedef enum { HAL_OK = 0, HAL_ERROR, HAL_BUSY, HAL_TIMEOUT } HAL_StatusTypeDef;
typedef enum { GPIO_PIN_RESET = 0, GPIO_PIN_SET } GPIO_PinState;
typedef struct { uint32_t flags; } UART_HandleTypeDef;
typedef struct { uint32_t output; } GPIO_TypeDef;
typedef struct { volatile uint32_t CTRL, LOAD, VAL, CALIB; } SysTick_Type;

#define HAL_MAX_DELAY 0xffffffffu
#define GPIO_PIN_5 ((uint16_t)0x0020)
#define SysTick ((SysTick_Type *)0xe000e010u)
#define __HAL_UART_CLEAR_OREFLAG(handle) ((handle)->flags = 0x8u)

extern GPIO_TypeDef stub_gpio;
#define GPIOA (&stub_gpio)

HAL_StatusTypeDef HAL_UART_Receive(UART_HandleTypeDef *, uint8_t *, uint16_t, uint32_t);
HAL_StatusTypeDef HAL_UART_Transmit(UART_HandleTypeDef *, const uint8_t *, uint16_t, uint32_t);
void HAL_GPIO_WritePin(GPIO_TypeDef *, uint16_t, GPIO_PinState);
uint32_t HAL_GetTick(void);
void HAL_Delay(uint32_t);

#endif
