INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; } /* no branch, which would be unpredictable */

/* Two sums of 16 bits that share a number, first + 65536 * second. */
INLINE int32_t first_sum(uint32_t joined) { return (int16_t)(joined & 0xffff); }
INLINE int32_t second_sum(uint32_t joined) { return (int16_t)((joined - (uint32_t)first_sum(joined)) >> 16); }
