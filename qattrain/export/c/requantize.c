/* The next code: (sum * multiplier + 2^(shift - 1)) >> shift, at most `largest`. A sum of 0 or less gives code 0 with any
 * multiplier, so only unsigned numbers are shifted. The multipliers were chosen so that no product leaves 32 bits, and
 * every sum that can occur still gets the code of the trained network. */
static inline uint8_t narrow_code(int32_t sum, uint32_t multiplier, uint32_t shift, uint32_t largest) {
    const uint32_t product = (uint32_t)(sum > 0 ? sum : 0) * multiplier;
    const uint32_t code = (product + ((uint32_t)1 << (shift - 1))) >> shift;
    return (uint8_t)(code < largest ? code : largest);
}
#if WIDE_PRODUCTS

/* The same where 32 bits are not enough; written to need at most 64, and no branch. */
static inline uint8_t wide_code(int32_t sum, uint32_t multiplier, uint32_t shift, uint32_t largest) {
    const uint64_t product = (uint64_t)(uint32_t)(sum > 0 ? sum : 0) * multiplier;
    const uint64_t code = ((product >> (shift - 1)) + 1) >> 1;
    return (uint8_t)(code < largest ? code : largest);
}
#endif

/* A channel's sum, bias included -> its code. */
static inline uint8_t requantize(const struct layer *layer, uint32_t channel, int32_t sum) {
#if WIDE_PRODUCTS
    if (layer->shifts) {
        return wide_code(sum, layer->multiplier[channel], layer->shifts[channel], layer->largest);
    }
#endif
    return narrow_code(sum, layer->multiplier[channel], layer->shift, layer->largest);
}
