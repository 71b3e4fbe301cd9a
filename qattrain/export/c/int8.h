/* Processors of up to 32 bits have no vectors to speak of: they load each weight less often, and copy nothing. */
#if !defined VECTORS && (UINTPTR_MAX <= 0xffffffff || defined QATTRAIN_SMALL)
#define SMALL
#endif

struct layer {
    const int8_t *weights;           /* rows one after the other, or columns: see above */
    const bias_t *bias;              /* one per output channel, as are multipliers */
    const multiplier_t *multiplier;  /* the last layer has none: its sums are the logits */
#if WIDE_PRODUCTS
    const uint8_t *shifts;           /* one per channel where products need 64 bits; 0 elsewhere */
#endif
    count_t inputs;                  /* weights in a row */
    count_t outputs;                 /* rows, without the padding rows */
    count_t stride;                  /* bytes in a row, its zeros included; unused by columns */
    uint8_t step;                    /* a weight is step * byte + rest: 1 and 0 if weights fit a byte */
    int16_t rest;
    uint8_t shift;                   /* of all channels, where products need 32 bits */
    uint8_t largest;                 /* largest output code */
};
