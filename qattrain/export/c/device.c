/* device.c: runs model.c on every image in images.bin and says for each how long it took, how much of the stack it used,
 * and its logits. Linked with bare_metal/startup.c. Nothing here calls the compiler's library: what it executes in a
 * profile belongs to model.c. */
#include "bare_metal/semihosting.h"
#include "model.h"

#ifndef SPINS
#define SPINS 8000000 /* loops of two instructions, to learn how many instructions a tick is */
#endif
#define UNUSED 0xdeadbeef /* what an unused word of the stack holds */
#define PAINTED 16384 /* words, at most */

extern uint32_t bss_end[];
extern const uint8_t images[], images_end[]; /* written below, outside C: arrays of that size compile slowly */
__asm__(".section .rodata.images, \"a\"\n.globl images\nimages:\n.incbin \"images.bin\"\n.globl images_end\nimages_end:\n"
        ".byte 0\n.text\n");

#ifdef __riscv
static void start_clock(void) {}
static uint32_t now(void) {
    register uint32_t a0 __asm__("a0");
    __asm__ volatile(".word 0xb0202573" : "=r"(a0) : : "memory"); /* csrr a0, minstret, which plain rv32imac lacks */
    return a0;
}
#define TICKS(first, last) ((last) - (first))
#define SPIN "1: addi %0, %0, -1\n bnez %0, 1b"
#define COUNTER "+r"
#define STACK_POINTER "mv %0, sp"
#else
/* SysTick counts 24 bits down. */
#define SYSTICK ((volatile uint32_t *)0xe000e010)
static void start_clock(void) {
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
}
static uint32_t now(void) { return SYSTICK[2]; }
#define TICKS(first, last) (((first) - (last)) & 0xffffff)
#define SPIN ".syntax unified\n.balign 4\n1: subs %0, #1\n bne 1b"
#define COUNTER "+l"
#define STACK_POINTER "mov %0, sp"
#endif

/* A number in hexadecimal digits, and a space. */
static void say_number(uint32_t number) {
    static char text[10] = "         ";
    int i;
    for (i = 7; i >= 0; i--, number >>= 4) text[i] = "0123456789abcdef"[number & 15];
    text[8] = ' ';
    say(text);
}

int main(void) {
    static int32_t logits[QATTRAIN_CLASSES];
    const uint8_t *image;
    uint32_t first, last, spins = SPINS;
    volatile uint32_t *bottom, *word, *top;
    int i;
    start_clock();
    first = now();
    __asm__ volatile(SPIN : COUNTER(spins) : : "cc");
    last = now();
    say("spun ");
    say_number(TICKS(first, last));
    __asm__ volatile(STACK_POINTER : "=r"(top));
    bottom = bss_end;
    if (top - bottom > PAINTED) bottom = top - PAINTED;
    for (image = images; image != images_end; image += QATTRAIN_IMAGE_BYTES) {
        for (word = bottom; word < top; word++) *word = UNUSED;
        first = now();
        qattrain_predict(image, logits);
        last = now();
        for (word = bottom; word < top && *word == UNUSED; word++) {
        }
        say("\nimage ");
        say_number(TICKS(first, last));
        say_number((uint32_t)(top - word));
        say_number(word == bottom);
        for (i = 0; i < QATTRAIN_CLASSES; i++) say_number((uint32_t)logits[i]);
    }
    say("\nend\n");
    leave(0);
    return 0;
}
