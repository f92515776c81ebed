/* Arm's MPS3 board with the AN547 image (Corstone-300, Cortex-M55), which QEMU emulates:
 *
 *     qemu-system-arm -M mps3-an547 -nographic -icount shift=0 -kernel firmware.elf
 *
 * Registers: https://developer.arm.com/documentation/dai0547/latest/ (memory map, UART0), and for the
 * system counter https://developer.arm.com/documentation/101370/latest/. It was run in QEMU, and not
 * on a board.
 */
#include <stdint.h>

#include "onmetal_main.h"
#include "onmetal_port.h"

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* The core starts in the secure state and stays there; these are the secure addresses. */
#define UART_DATA REGISTER(0x59303000)
#define UART_STATE REGISTER(0x59303004)
#define UART_CONTROL REGISTER(0x59303008)
#define UART_BAUD_DIVIDER REGISTER(0x59303010)
#define COUNTER_CONTROL REGISTER(0x58100000)
#define COUNTER_LOW REGISTER(0x58100008)
#define COUNTER_HIGH REGISTER(0x5810000c)

enum { SENDING_FULL = 1, RECEIVED_FULL = 2, SEND_AND_RECEIVE = 3, UART_HZ = 25000000, BAUD = 115200 };
enum { COUNTER_HZ = 32000000 };

/* --- the port */

void onmetal_port_initialize(void) {
    UART_BAUD_DIVIDER = UART_HZ / BAUD;
    UART_CONTROL = SEND_AND_RECEIVE;
    COUNTER_CONTROL = 1;
}

int onmetal_port_getchar(void) {
    if ((UART_STATE & RECEIVED_FULL) == 0) return -1;
    return (int)(UART_DATA & 0xff);
}

void onmetal_port_putchar(char character) {
    while ((UART_STATE & SENDING_FULL) != 0) {
    }
    UART_DATA = (uint8_t)character;
}

/* No pin is pulsed, but the counter is stopped and started: in QEMU a tick then begins at this very
 * instruction, so that the same instructions always take the same number of ticks. */
void onmetal_port_pulse(void) {
    COUNTER_CONTROL = 0;
    COUNTER_CONTROL = 1;
}

uint64_t onmetal_port_ticks(void) {
    uint32_t high, low;
    do {
        high = COUNTER_HIGH;
        low = COUNTER_LOW;
    } while (high != COUNTER_HIGH);
    return (uint64_t)high << 32 | low;
}

uint32_t onmetal_port_ticks_per_second(void) { return COUNTER_HZ; }

uint32_t onmetal_port_microseconds(void) {
    return (uint32_t)(onmetal_port_ticks() / (COUNTER_HZ / 1000000));
}

/* --- the start */

extern uint32_t onmetal_stack_top[], onmetal_data_begin[], onmetal_data_end[];
extern uint32_t onmetal_bss_begin[], onmetal_bss_end[];
extern const uint32_t onmetal_data_stored[];
extern void (*const onmetal_constructors_begin[])(void), (*const onmetal_constructors_end[])(void);

void onmetal_reset_handler(void);

static void stop(void) {
    for (;;) {
    }
}

/* What comes before anything may use a floating-point register. */
__attribute__((naked, noreturn)) void onmetal_reset_handler(void) {
    __asm volatile(
        "ldr r0, =0xe000ed88\n" /* CPACR */
        "ldr r1, [r0]\n"
        "orr r1, r1, #0xf00000\n" /* CP10 and CP11: the FPU and Helium */
        "str r1, [r0]\n"
        "dsb\n"
        "isb\n"
        "b onmetal_start\n");
}

__attribute__((used, noreturn)) void onmetal_start(void);

void onmetal_start(void) {
    const uint32_t *from = onmetal_data_stored;
    for (uint32_t *to = onmetal_data_begin; to < onmetal_data_end; ++to) *to = *from++;
    for (uint32_t *to = onmetal_bss_begin; to < onmetal_bss_end; ++to) *to = 0;
    for (void (*const *made)(void) = onmetal_constructors_begin; made < onmetal_constructors_end;
         ++made) {
        (*made)();
    }
    onmetal_main();
    for (;;) {
    }
}

/* The stack's top, the start, and all of the core's own exceptions; there are no interrupts. */
struct vectors {
    uint32_t *stack;
    void (*handlers[15])(void);
};

__attribute__((section(".vectors"), used)) const struct vectors onmetal_vectors = {
    onmetal_stack_top,
    {onmetal_reset_handler, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop,
     stop, stop},
};
