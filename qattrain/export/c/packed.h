#ifdef VECTORS
#define BEHIND 32                    /* zeros after a stream: vectors are loaded up to its end */
#else
#define BEHIND 0
#endif

struct layer {
    const uint8_t *codes;            /* the stream of bits: rows one after the other, in the order of the inputs */
    const bias_t *bias;              /* one per output channel, as are multipliers */
    const multiplier_t *multiplier;  /* the last layer has none: its sums are the logits */
#if WIDE_PRODUCTS
    const uint8_t *shifts;           /* one per channel where products need 64 bits; 0 elsewhere */
#endif
    count_t inputs;                  /* weights in a row */
    count_t outputs;                 /* rows */
    uint8_t bits;                    /* of a weight: 1 .. 8 */
    uint8_t step;                    /* weight = lowest + step * number; step is 2 where weights are odd numbers */
    int16_t lowest;
    uint8_t shift;                   /* of all channels, where products need 32 bits */
    uint8_t largest;                 /* largest output code */
};
