/* semihosting.h: text for, and the end of the program in, an emulator or a debugger. Written by qattrain.
 *
 * Compiled only with -DSEMIHOSTING: without anyone who listens, these instructions stop a real board. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stdint.h>

#ifdef SEMIHOSTING
static inline void semihost(int what, const void *with) {
#ifdef __riscv
    register int a0 __asm__("a0") = what;
    register const void *a1 __asm__("a1") = with;
    /* The three instructions together are the signal; they must lie in one page and must not be compressed. */
    __asm__ volatile(".balign 16\n.option push\n.option norvc\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
#else
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
#endif
}

static inline void say(const char *text) { semihost(4, text); }

static inline void leave(int code) {
    const uint32_t block[2] = {0x20026, (uint32_t)code}; /* the program ended by itself, with this code */
    semihost(0x20, block);
}
#else
static inline void say(const char *text) { (void)text; }
static inline void leave(int code) { (void)code; }
#endif

#endif
