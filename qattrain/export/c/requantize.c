/* What turns the sums of a channel into codes. */
struct scale {
    uint32_t multiplier, shift, largest;
#if WIDE_PRODUCTS
    int wide;                        /* whether products need 64 bits */
#endif
};

static inline struct scale scale_of(const struct layer *layer, uint32_t channel) {
    struct scale scale;
    scale.multiplier = layer->multiplier[channel];
    scale.shift = layer->shift;
    scale.largest = layer->largest;
#if WIDE_PRODUCTS
    scale.wide = layer->shifts != 0;
    if (scale.wide) scale.shift = layer->shifts[channel];
#endif
    return scale;
}

/* The code of a sum, bias included: (sum * multiplier + 2^(shift - 1)) >> shift, at most `largest`. A sum of 0 or less
 * gives code 0 with any multiplier, so only unsigned numbers are shifted. Multipliers were chosen so that no product
 * leaves 32 bits, and every sum that can occur still gets the code of the trained network. Where there are none,
 * products have 48 bits and are computed in two halves, or 64; this is written to need no more, and no branch. */
static inline uint8_t code_of(struct scale scale, int32_t sum) {
    const uint32_t positive = (uint32_t)(sum > 0 ? sum : 0);
    uint32_t code;
#if WIDE_PRODUCTS == 48
    if (scale.wide) {
        const uint32_t high = positive * (scale.multiplier >> 16), low = positive * (scale.multiplier & 0xffff);
        code = (((high + (low >> 16)) >> (scale.shift - 17)) + 1) >> 1;
        return (uint8_t)(code < scale.largest ? code : scale.largest);
    }
#elif WIDE_PRODUCTS
    if (scale.wide) {
        const uint64_t long_code = ((((uint64_t)positive * scale.multiplier) >> (scale.shift - 1)) + 1) >> 1;
        return (uint8_t)(long_code < scale.largest ? long_code : scale.largest);
    }
#endif
    code = (positive * scale.multiplier + ((uint32_t)1 << (scale.shift - 1))) >> scale.shift;
    return (uint8_t)(code < scale.largest ? code : scale.largest);
}

/* The code of one sum of a channel. */
static inline uint8_t requantize(const struct layer *layer, uint32_t channel, int32_t sum) {
    return code_of(scale_of(layer, channel), sum);
}
