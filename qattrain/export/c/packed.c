#ifndef VECTORS

/* The sum of n products. */
static int32_t dot(const weight_t *weights, const uint8_t *inputs, uint32_t n) {
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i < n; i++) sum += (int32_t)weights[i] * inputs[i];
    return sum;
}

/* Unpacks the weights of one output channel. */
static void unpack_row(const struct layer *layer, uint32_t channel, weight_t *weights) {
    const uint32_t start = channel * layer->inputs * layer->bits;     /* the row's first bit */
    const uint8_t *next = layer->codes + start / 8;
    uint32_t waiting = (uint32_t)*next++ >> start % 8;                /* bits read, but not used yet */
    uint32_t count = 8 - start % 8;                                   /* how many of them */
    const uint32_t bits = layer->bits, mask = (1u << bits) - 1;
    const int32_t lowest = layer->lowest, step = layer->step;
    uint32_t i;
    for (i = 0; i < layer->inputs; i++) {
        if (count < bits) {
            waiting |= (uint32_t)*next++ << count;
            count += 8;
        }
        weights[i] = (weight_t)(lowest + step * (int32_t)(waiting & mask));
        waiting >>= bits;
        count -= bits;
    }
}

/* A fully connected layer: inputs -> codes or, in the last layer, sums. weights: room for a row. */
static void connect(const struct layer *layer, const uint8_t *inputs, uint8_t *codes, int32_t *sums,
                    weight_t *weights) {
    uint32_t channel;
    for (channel = 0; channel < layer->outputs; channel++) {
        int32_t sum;
        unpack_row(layer, channel, weights);
        sum = dot(weights, inputs, layer->inputs) + layer->bias[channel];
        if (sums) sums[channel] = sum;
        else codes[channel] = requantize(sum, layer->multiplier[channel], layer->shift[channel], layer->largest);
    }
}
#endif
