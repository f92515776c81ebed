/* STM32 with ST's HAL, in a project that STM32CubeMX made.
 *
 * Add the folder `firmware` (without the other ports) to the project, and TFLite Micro; in CubeMX set
 * the UART of the board's virtual COM port to 115200 baud, 8 bits, no parity; and in main.c, after
 * all MX_..._Init calls:
 *
 *     onmetal_main();
 *
 * Compile with what fits the board:
 *
 *     -DONMETAL_UART=hlpuart1     its handle: hlpuart1 on a NUCLEO-L4R5ZI, huart3 on a
 *                                 NUCLEO-H7A3ZI-Q
 *     -DONMETAL_PULSE_PORT=GPIOA -DONMETAL_PULSE_PIN=GPIO_PIN_5
 *                                 a pin that goes low and high again at both ends of what is timed,
 *                                 for an energy meter; set it to output in CubeMX
 *     -DONMETAL_HAL_HEADER='"main.h"'
 *
 * The clock is SysTick, which the HAL counts milliseconds with where its time base is left as it is.
 * It was compiled against a stub of the HAL calls that are used here, and not run on a board.
 */
#ifndef ONMETAL_HAL_HEADER
#define ONMETAL_HAL_HEADER "main.h"
#endif
#include ONMETAL_HAL_HEADER

#include <stdint.h>

#include "onmetal_main.h"
#include "onmetal_port.h"

#ifndef ONMETAL_UART
#define ONMETAL_UART hlpuart1
#endif

extern UART_HandleTypeDef ONMETAL_UART;

int onmetal_port_getchar(void) {
    uint8_t byte = 0;
    if (HAL_UART_Receive(&ONMETAL_UART, &byte, 1, 0) == HAL_OK) return byte;
    /* A byte that came too early stops the receiver until this flag is cleared. */
    __HAL_UART_CLEAR_OREFLAG(&ONMETAL_UART);
    return -1;
}

void onmetal_port_putchar(char character) {
    uint8_t byte = (uint8_t)character;
    HAL_UART_Transmit(&ONMETAL_UART, &byte, 1, HAL_MAX_DELAY);
}

/* Milliseconds as the HAL counts them, and how far SysTick is on its way down to the next. Read
 * again where one ends in between. */
uint32_t onmetal_port_microseconds(void) {
    uint32_t milliseconds, left;
    do {
        milliseconds = HAL_GetTick();
        left = SysTick->VAL;
    } while (milliseconds != HAL_GetTick());
    uint32_t period = SysTick->LOAD + 1u;
    uint32_t part = (uint32_t)((uint64_t)(period - 1u - left) * 1000u / period);
    return milliseconds * 1000u + part;
}

#ifdef ONMETAL_PULSE_PIN
void onmetal_port_pulse(void) {
    HAL_GPIO_WritePin(ONMETAL_PULSE_PORT, ONMETAL_PULSE_PIN, GPIO_PIN_RESET);
    HAL_Delay(1);
    HAL_GPIO_WritePin(ONMETAL_PULSE_PORT, ONMETAL_PULSE_PIN, GPIO_PIN_SET);
}
#endif
