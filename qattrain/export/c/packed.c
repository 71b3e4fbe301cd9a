#ifndef VECTORS

/* Unpacks the weights of `rows` output channels, which follow each other without a gap. */
SEPARATE void unpack_rows(const struct layer *layer, uint32_t channel, uint32_t rows, weight_t *weights) {
    const uint32_t bits = layer->bits, mask = (1u << bits) - 1;
    const uint32_t start = channel * layer->inputs * bits;            /* the first row's first bit */
    const uint8_t *next = layer->codes + start / 8;
    uint32_t waiting = (uint32_t)*next++ >> start % 8;                /* bits read, but not used yet */
    uint32_t count = 8 - start % 8;                                   /* how many of them */
    const int32_t lowest = layer->lowest, step = layer->step;
    const weight_t *const end = weights + rows * layer->inputs;
    for (; weights != end; weights++) {
        if (count < bits) {
            waiting |= (uint32_t)*next++ << count;
            count += 8;
        }
        *weights = (weight_t)(lowest + step * (int32_t)(waiting & mask));
        waiting >>= bits;
        count -= bits;
    }
}

/* A fully connected layer: inputs -> codes or, in the last layer, sums. Its weights, lowest + step * number, are used
 * as they are unpacked: inputs x weights = lowest * the sum of the inputs + step * (inputs x numbers). */
static void connect(const struct layer *layer, const uint8_t *inputs, uint8_t *codes, int32_t *sums) {
    const uint32_t bits = layer->bits, mask = (1u << bits) - 1, n = layer->inputs;
    const uint8_t *next = layer->codes;
    const uint32_t lowest = (uint32_t)(int32_t)layer->lowest;
    uint32_t waiting = 0, count = 0, total = 0, channel, i;           /* as in unpack_rows; the sum of the inputs */
    for (i = 0; i < n; i++) total += inputs[i];
    for (channel = 0; channel < layer->outputs; channel++) {
        uint32_t products = 0;
        int32_t sum;
        for (i = 0; i < n; i++) {
            if (count < bits) {
                waiting |= (uint32_t)*next++ << count;
                count += 8;
            }
            products += (waiting & mask) * inputs[i];
            waiting >>= bits;
            count -= bits;
        }
        sum = (int32_t)(lowest * total + layer->step * products) + layer->bias[channel];
        if (sums) sums[channel] = sum;
        else codes[channel] = requantize(layer, channel, sum);
    }
}
#endif
