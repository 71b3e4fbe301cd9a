/* The next code. A sum of 0 or less gives code 0 with any multiplier, so only unsigned numbers are shifted. */
static uint8_t requantize(const struct layer *layer, uint32_t channel, int32_t sum) {
    uint64_t code;
    if (sum <= 0) return 0;
    code = (uint64_t)sum * layer->multiplier[channel] + ((uint64_t)1 << (layer->shift[channel] - 1));
    code >>= layer->shift[channel];
    return code < layer->largest ? (uint8_t)code : layer->largest;
}

/* The sum of n products. */
static int32_t dot(const weight_t *weights, const uint8_t *inputs, uint32_t n) {
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i < n; i++) sum += (int32_t)weights[i] * inputs[i];
    return sum;
}

/* Unpacks the weights of one output channel into arena.row. */
static void unpack_row(const struct layer *layer, uint32_t channel) {
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
        arena.row[i] = (weight_t)(lowest + step * (int32_t)(waiting & mask));
        waiting >>= bits;
        count -= bits;
    }
}

/* Convolution and pooling: map, side x side pixels -> output, (side - 4) / 2 squared. Channel by channel, so that each
 * row is unpacked once. */
static void convolve(const struct layer *layer, const uint8_t *map, uint32_t side, uint32_t channels, uint8_t *output) {
    const uint32_t half = (side - KERNEL + 1) / 2, line = side * channels, run = KERNEL * channels;
    uint32_t channel, row, column, window, k;
    for (channel = 0; channel < layer->outputs; channel++) {
        unpack_row(layer, channel);
        for (row = 0; row < half; row++) {
            for (column = 0; column < half; column++) {
                int32_t best = INT32_MIN;
                for (window = 0; window < 4; window++) {              /* of the 2x2 that are pooled */
                    const uint8_t *corner = map + (2 * row + window / 2) * line + (2 * column + window % 2) * channels;
                    int32_t sum = 0;
                    for (k = 0; k < KERNEL; k++) sum += dot(arena.row + k * run, corner + k * line, run);
                    if (sum > best) best = sum;
                }
                output[(row * half + column) * layer->outputs + channel] =
                    requantize(layer, channel, best + layer->bias[channel]);
            }
        }
    }
}

/* A fully connected layer: inputs -> codes or, in the last layer, sums. */
static void connect(const struct layer *layer, const uint8_t *inputs, uint8_t *codes, int32_t *sums) {
    uint32_t channel;
    for (channel = 0; channel < layer->outputs; channel++) {
        int32_t sum;
        unpack_row(layer, channel);
        sum = dot(arena.row, inputs, layer->inputs) + layer->bias[channel];
        if (sums) sums[channel] = sum;
        else codes[channel] = requantize(layer, channel, sum);
    }
}
