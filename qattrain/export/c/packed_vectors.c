#ifdef VECTORS /* layout packed for x86: a fully connected layer, and what convolutions share with it */

/* What is the same for eight numbers of `bits` bits side by side, number i beginning at bit i * bits. */
#define EIGHT(f) _mm256_broadcastsi128_si256(_mm_setr_epi16(f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)))
#define TWO_BYTES(i) (short)((i) * bits / 8 * 0x0101 + 0x0100)        /* where the bytes are that hold it */
#define TO_TOP(i) (short)(1u << (16 - bits - (i) * bits % 8))         /* a factor that moves it to their top */

/* 32 numbers of a stream as bytes. Those of 8 bits are less 128, so that they are signed. first: the bit of the byte at
 * `from` with which they begin. Reads at most 32 bytes. */
INLINE vector numbers_at(const uint8_t *from, uint32_t bits, uint32_t first) {
    /* Eight numbers take `bits` bytes: each quarter of a vector gets those of its eight, from bit 0 on. */
    const int64_t one = 0x0706050403020100, next = one + bits * 0x0101010101010101;
    const vector halves = _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(from + 2 * bits)),
                                           _mm_loadu_si128((const __m128i *)from));
    const vector quarters = _mm256_srl_epi64(_mm256_shuffle_epi8(halves, _mm256_set_epi64x(next, one, next, one)),
                                             _mm_cvtsi32_si128((int)first));
    /* The two bytes that hold a number are copied. A product moves it to their top, a shift to their bottom. */
    const vector bytes = EIGHT(TWO_BYTES), others = _mm256_add_epi8(bytes, _mm256_set1_epi8(8));
    const vector factors = EIGHT(TO_TOP);
    const vector low = _mm256_mullo_epi16(_mm256_shuffle_epi8(quarters, bytes), factors);
    const vector high = _mm256_mullo_epi16(_mm256_shuffle_epi8(quarters, others), factors);
    const int back = 16 - (int)bits;
    if (bits == 8) return _mm256_xor_si256(load(from), _mm256_set1_epi8(-128));
    return _mm256_packus_epi16(_mm256_srli_epi16(low, back), _mm256_srli_epi16(high, back));
}

/* Weights are this + step * the bytes that `numbers_at` gives. */
INLINE int32_t offset_of(const struct layer *layer) {
    return layer->lowest + (layer->bits == 8 ? 128 * layer->step : 0);
}

/* The sum of the inputs times the part of every weight beyond step * byte. As unsigned numbers, since it may exceed 32
 * bits where the sum of the products does not. n: a multiple of 32; inputs beyond the last are 0. */
INLINE int32_t correction(int32_t offset, const uint8_t *inputs, uint32_t n) {
    return offset == 0 ? 0 : (int32_t)((uint32_t)offset * (uint32_t)sum_of(inputs, n));
}

/* The number of bytes in whole vectors for so many inputs. */
INLINE uint32_t padded(uint32_t inputs) { return (inputs + 31) / 32 * 32; }

INLINE uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The first bit of a row. Behind the last row comes the last row again, to fill up those multiplied together. */
INLINE uint32_t first_bit(const struct layer *layer, uint32_t channel) {
    return smaller(channel, layer->outputs - 1u) * layer->inputs * layer->bits;
}

/* Eight rows times the same inputs, followed by zeros: each weight is unpacked where it is used. */
INLINE void multiply_packed(const struct layer *layer, uint32_t channel, const uint8_t *inputs, int32_t start,
                            int32_t sums[8]) {
    const uint8_t *from[8];
    uint32_t first[8], i, row;
    vector each[8];
    for (row = 0; row < 8; row++) {
        const uint32_t bit = first_bit(layer, channel + row);
        from[row] = layer->codes + bit / 8;
        first[row] = bit % 8;
        each[row] = _mm256_setzero_si256();
    }
    for (i = 0; i < layer->inputs; i += 32) {
        const vector x = load(inputs + i);
        for (row = 0; row < 8; row++) {
            const vector numbers = numbers_at(from[row] + i / 8 * layer->bits, layer->bits, first[row]);
            each[row] = accumulate(each[row], x, numbers);
        }
    }
    _mm256_storeu_si256((vector *)sums,
                        _mm256_add_epi32(stepped(totals(each), layer->step), _mm256_set1_epi32(start)));
}

/* The sums of `count` channels -> their codes. */
INLINE void requantize_some(const struct layer *layer, uint32_t channel, uint32_t count, const int32_t *RESTRICT sums,
                            uint8_t *RESTRICT codes) {
    uint32_t i;
    for (i = 0; i < count; i++, channel++) {
        codes[i] = requantize(layer, channel, sums[i] + layer->bias[channel]);
    }
}

/* A fully connected layer: inputs -> codes or, in the last layer, logits. */
INLINE void connect(const struct layer *layer, const uint8_t *inputs, uint8_t *codes, int32_t *logits) {
    enum { AT_ONCE = 64 };                                            /* channels whose sums become codes at once */
    ALIGNED uint8_t x[LONGEST_INPUT];
    int32_t sums[AT_ONCE], start;
    uint32_t channel, i;
    for (i = 0; i < layer->inputs; i++) x[i] = inputs[i];
    for (; i < padded(layer->inputs); i++) x[i] = 0;
    start = correction(offset_of(layer), x, padded(layer->inputs));
    for (channel = 0; channel < layer->outputs; channel += AT_ONCE) {
        const uint32_t count = smaller(AT_ONCE, layer->outputs - channel);
        for (i = 0; i < count; i += 8) multiply_packed(layer, channel + i, x, start, sums + i);
        if (codes) {
            requantize_some(layer, channel, count, sums, codes + channel);
        } else {
            for (i = 0; i < count; i++) logits[channel + i] = sums[i] + layer->bias[channel + i];
        }
    }
}
#endif
