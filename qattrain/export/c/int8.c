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
#ifdef SMALL
    for (channel = 0; channel < layer->outputs; channel += 2) {
        const int8_t *const first = layer->weights + channel * stride, *const second = first + stride;
        int32_t a = 0, b = 0;
        uint32_t i;
        for (i = 0; i < layer->inputs; i++) {
            const int32_t x = inputs[i];
            a += first[i] * x;
            b += second[i] * x;
        }
        sums[channel] = start + layer->step * a;
        sums[channel + 1] = start + layer->step * b;
    }
#else
    for (channel = 0; channel < layer->outputs; channel += LINEAR_ROWS) {
        multiply_rows(layer->weights + channel * stride, inputs, stride, layer->step, start, sums + channel);
    }
#endif
    finish(layer, sums, codes, logits);
}
