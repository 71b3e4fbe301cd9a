/* The next code: (sum * multiplier + 2^(shift - 1)) >> shift, written to need at most 64 bits and no branch. A sum of 0
 * or less gives code 0 with any multiplier, so only unsigned numbers are shifted. */
static inline uint8_t requantize(int32_t sum, uint32_t multiplier, uint32_t shift, uint32_t largest) {
    const uint64_t product = (uint64_t)(uint32_t)(sum > 0 ? sum : 0) * multiplier;
    const uint64_t code = ((product >> (shift - 1)) + 1) >> 1;
    return (uint8_t)(code < largest ? code : largest);
}
