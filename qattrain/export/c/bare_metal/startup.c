/* startup.c: what happens before main, on Arm Cortex-M and on RISC-V without an operating system. Written by qattrain. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t stack_top[], data_load[], data_start[], data_end[], bss_start[], bss_end[]; /* from board.ld */
int main(void);
void start(void);
__attribute__((used)) static void run(void);

/* Gives variables their initial values, then calls main. */
static void run(void) {
    volatile uint32_t *to;
    const volatile uint32_t *from = data_load;
    for (to = data_start; to < data_end; to++) *to = *from++;
    for (to = bss_start; to < bss_end; to++) *to = 0;
    main();
    for (;;) {
    }
}

#ifdef __riscv
__asm__(".section .vectors, \"ax\"\n.globl start\nstart:\n    la sp, stack_top\n    j run\n");
#else
void start(void) { run(); }

static void stop(void) { /* a fault ends here: look with a debugger */
    for (;;) {
    }
}

/* The processor reads its stack pointer and its first address here; then come the exceptions. */
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*addresses[15])(void);
} vectors = {stack_top, {start, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop}};
#endif

/* Compilers may call these even where the source does not, and there is no C library. */
#define HERE __asm__ volatile("" ::: "memory") /* keeps the loop a loop: it must not become a call of itself */
void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *one, const void *other, size_t count);

__attribute__((weak)) void *memcpy(void *to, const void *from, size_t count) {
    unsigned char *t = to;
    const unsigned char *f = from;
    for (; count; count--) {
        *t++ = *f++;
        HERE;
    }
    return to;
}

__attribute__((weak)) void *memmove(void *to, const void *from, size_t count) {
    unsigned char *t = to;
    const unsigned char *f = from;
    if (t <= f) return memcpy(to, from, count);
    while (count--) {
        t[count] = f[count];
        HERE;
    }
    return to;
}

__attribute__((weak)) void *memset(void *to, int value, size_t count) {
    unsigned char *t = to;
    for (; count; count--) {
        *t++ = (unsigned char)value;
        HERE;
    }
    return to;
}

__attribute__((weak)) int memcmp(const void *one, const void *other, size_t count) {
    const unsigned char *a = one, *b = other;
    for (; count; count--, a++, b++) {
        if (*a != *b) return *a - *b;
        HERE;
    }
    return 0;
}
