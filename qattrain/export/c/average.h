struct average {
    uint32_t multiplier;             /* contains the division by the number of pixels */
    uint8_t shift;
    uint8_t largest;                 /* largest output code */
#if WIDE_PRODUCTS
    uint8_t wide;                    /* whether products need 64 bits */
#endif
    uint32_t pixels;                 /* of the map */
    uint32_t channels;
};
