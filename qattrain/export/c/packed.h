#ifdef VECTORS
#define BEHIND 32                    /* zeros after a stream: vectors are loaded up to its end */
#else
#define BEHIND 0
#endif

struct layer {
    const uint8_t *codes;            /* the stream of bits: rows one after the other, in the order of the inputs */
    const bias_t *bias;              /* one per output channel, as are the two below */
    const multiplier_t *multiplier;  /* the last layer has none: its sums are the logits */
    const uint8_t *shift;
    count_t inputs;                  /* weights in a row */
    count_t outputs;                 /* rows */
    uint8_t bits;                    /* of a weight: 1 .. 8 */
    uint8_t step;                    /* weight = lowest + step * number; step is 2 where weights are odd numbers */
    int16_t lowest;
    uint8_t largest;                 /* largest output code */
};
