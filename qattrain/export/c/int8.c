#ifndef VECTORS

/* The sum of n products. */
INLINE int32_t dot(const int8_t *weights, const uint8_t *inputs, uint32_t n) {
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i < n; i++) sum += (int32_t)weights[i] * inputs[i];
    return sum;
}

/* The sum of n bytes. */
INLINE int32_t sum_of(const uint8_t *bytes, uint32_t n) {
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i < n; i++) sum += bytes[i];
    return sum;
}

/* Two rows of weights times the inputs under the four windows of a 2x2 maximum; keeps the largest sum of each row. */
INLINE void multiply_windows(const int8_t *weights, const uint8_t *inputs, uint32_t stride, int32_t step,
                             const int32_t start[4], int32_t largest[2]) {
    uint32_t row, window;
    for (row = 0; row < 2; row++) {
        int32_t sums[4];
        for (window = 0; window < 4; window++) {
            sums[window] = start[window] + step * dot(weights + row * stride, inputs + window * stride, stride);
        }
        largest[row] = larger(larger(sums[0], sums[1]), larger(sums[2], sums[3]));
    }
}

/* Eight rows of weights times the same inputs. */
INLINE void multiply_rows(const int8_t *weights, const uint8_t *inputs, uint32_t stride, int32_t step, int32_t start,
                          int32_t sums[8]) {
    uint32_t row;
    for (row = 0; row < 8; row++) sums[row] = start + step * dot(weights + row * stride, inputs, stride);
}

#else

typedef __m256i vector; /* 32 bytes, or eight sums */

INLINE vector load(const void *from) { return _mm256_loadu_si256((const vector *)from); }

/* The sum of n bytes: sad adds eight at a time, as differences from zero. */
INLINE int32_t sum_of(const uint8_t *bytes, uint32_t n) {
    vector sums = _mm256_setzero_si256();
    uint32_t i;
    for (i = 0; i < n; i += sizeof(vector)) {
        sums = _mm256_add_epi32(sums, _mm256_sad_epu8(load(bytes + i), _mm256_setzero_si256()));
    }
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
    return _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
}

/* Adds to each of the eight sums the products of four neighbouring bytes, with the processor's best instruction. */
INLINE vector accumulate(vector sums, vector inputs, vector weights) {
#if defined __AVX512VNNI__ && defined __AVX512VL__
    return _mm256_dpbusd_epi32(sums, inputs, weights);
#elif defined __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sums, inputs, weights);
#elif TWO_PRODUCTS_FIT_16_BITS
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(inputs, weights), _mm256_set1_epi16(1)));
#else
    /* Two products can exceed 16 bits, where maddubs would saturate: bytes are widened to 16 bits first. */
    const vector zero = _mm256_setzero_si256(), signs = _mm256_cmpgt_epi8(zero, weights);
    const vector low = _mm256_madd_epi16(_mm256_unpacklo_epi8(inputs, zero), _mm256_unpacklo_epi8(weights, signs));
    const vector high = _mm256_madd_epi16(_mm256_unpackhi_epi8(inputs, zero), _mm256_unpackhi_epi8(weights, signs));
    return _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
#endif
}

/* Eight sums times a step that the compiler knows: it is mostly 1, which costs nothing. */
INLINE vector stepped(vector sums, int32_t step) { return _mm256_mullo_epi32(sums, _mm256_set1_epi32(step)); }

/* Eight vectors of eight sums -> the total of each, in three rounds of adding neighbours. */
INLINE vector totals(const vector sums[8]) {
    const vector a = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    const vector b = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[4], sums[5]), _mm256_hadd_epi32(sums[6], sums[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Two rows of weights times the inputs under the four windows of a 2x2 maximum; keeps the largest sum of each row. */
INLINE void multiply_windows(const int8_t *weights, const uint8_t *inputs, uint32_t stride, int32_t step,
                             const int32_t start[4], int32_t largest[2]) {
    vector sums[8], all;
    uint32_t i, window;
    for (i = 0; i < 8; i++) sums[i] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (i = 0; i < stride; i += sizeof(vector)) {
        const vector first = load(weights + i), second = load(weights + stride + i);
        for (window = 0; window < 4; window++) {
            const vector x = load(inputs + window * stride + i);
            sums[window] = accumulate(sums[window], x, first);
            sums[4 + window] = accumulate(sums[4 + window], x, second);
        }
    }
    /* Four sums of the first row, then four of the second; each half is compared with itself, rotated by 2, then 1. */
    all = stepped(totals(sums), step);
    all = _mm256_add_epi32(all, _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)start)));
    all = _mm256_max_epi32(all, _mm256_shuffle_epi32(all, 0x4e));
    all = _mm256_max_epi32(all, _mm256_shuffle_epi32(all, 0xb1));
    largest[0] = _mm256_extract_epi32(all, 0);
    largest[1] = _mm256_extract_epi32(all, 4);
}

/* Eight rows of weights times the same inputs. */
INLINE void multiply_rows(const int8_t *weights, const uint8_t *inputs, uint32_t stride, int32_t step, int32_t start,
                          int32_t sums[8]) {
    vector each[8];
    uint32_t i, row;
    for (i = 0; i < 8; i++) each[i] = _mm256_setzero_si256();
    for (i = 0; i < stride; i += sizeof(vector)) {
        const vector x = load(inputs + i);
        for (row = 0; row < 8; row++) each[row] = accumulate(each[row], x, load(weights + row * stride + i));
    }
    _mm256_storeu_si256((vector *)sums, _mm256_add_epi32(stepped(totals(each), step), _mm256_set1_epi32(start)));
}
#endif

/* The sums of a layer -> the next codes. */
INLINE void requantize_all(const struct layer *layer, const int32_t *RESTRICT sums, uint8_t *RESTRICT codes) {
    uint32_t channel;
    for (channel = 0; channel < layer->outputs; channel++) {
        codes[channel] = requantize(layer, channel, sums[channel] + layer->bias[channel]);
    }
}

/* What a fully connected layer does with its sums: codes or, in the last layer, logits. */
INLINE void finish(const struct layer *layer, const int32_t *sums, uint8_t *codes, int32_t *logits) {
    uint32_t channel;
    if (codes) {
        requantize_all(layer, sums, codes);
    } else {
        for (channel = 0; channel < layer->outputs; channel++) logits[channel] = sums[channel] + layer->bias[channel];
    }
}

/* The sum of the inputs times `rest`, the part of every weight beyond step * byte: 0 in most models. The bytes behind
 * the inputs are cleared so that whole vectors can be added. */
INLINE int32_t correction(const struct layer *layer, uint8_t *inputs) {
    uint32_t i;
    if (layer->rest == 0) return 0;
    for (i = layer->inputs; i < layer->stride; i++) inputs[i] = 0;
    return sum_of(inputs, layer->stride) * layer->rest;
}

INLINE void copy(uint8_t *RESTRICT to, const uint8_t *RESTRICT from, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) to[i] = from[i];
}

/* A fully connected layer: inputs -> codes or, in the last layer, logits. sums: room for all rows. */
INLINE void connect(const struct layer *layer, uint8_t *inputs, int32_t *sums, uint8_t *codes, int32_t *logits) {
    const uint32_t stride = layer->stride;
    const int32_t start = correction(layer, inputs);
    uint32_t channel;
    for (channel = 0; channel < layer->outputs; channel += LINEAR_ROWS) {
        multiply_rows(layer->weights + channel * stride, inputs, stride, layer->step, start, sums + channel);
    }
    finish(layer, sums, codes, logits);
}
