#ifndef VECTORS

/* Where the next number of a layer's stream is. */
struct reader {
    const uint8_t *next;
    uint32_t waiting, count;         /* bits read, but not used yet, and how many of them */
    uint32_t bits;                   /* of a number */
};

/* At the first number of an output channel. */
INLINE struct reader reader_at(const struct layer *layer, uint32_t channel) {
    const uint32_t start = channel * layer->inputs * layer->bits;     /* its first bit */
    struct reader reader;
    reader.next = layer->codes + start / 8;
    reader.waiting = (uint32_t)*reader.next++ >> start % 8;
    reader.count = 8 - start % 8;
    reader.bits = layer->bits;
    return reader;
}

INLINE uint32_t next_number(struct reader *reader) {
    uint32_t number;
    if (reader->count < reader->bits) {
        reader->waiting |= (uint32_t)*reader->next++ << reader->count;
        reader->count += 8;
    }
    number = reader->waiting & ((1u << reader->bits) - 1);
    reader->waiting >>= reader->bits;
    reader->count -= reader->bits;
    return number;
}

/* Unpacks the weights of `rows` output channels, which follow each other without a gap. */
SEPARATE void unpack_rows(const struct layer *layer, uint32_t channel, uint32_t rows, weight_t *weights) {
    struct reader reader = reader_at(layer, channel);
    const int32_t lowest = layer->lowest, step = layer->step;
    const weight_t *const end = weights + rows * layer->inputs;
    for (; weights != end; weights++) *weights = (weight_t)(lowest + step * (int32_t)next_number(&reader));
}

/* A fully connected layer: inputs -> codes or, in the last layer, sums. Its weights, lowest + step * number, are used
 * as they are unpacked: inputs x weights = lowest * the sum of the inputs + step * (inputs x numbers). */
static void connect(const struct layer *layer, const uint8_t *inputs, uint8_t *codes, int32_t *sums) {
    const uint32_t n = layer->inputs, lowest = (uint32_t)(int32_t)layer->lowest;
    struct reader reader = reader_at(layer, 0);
    uint32_t total = 0, channel, i;                                   /* total: of the inputs */
    for (i = 0; i < n; i++) total += inputs[i];
    for (channel = 0; channel < layer->outputs; channel++) {
        uint32_t products = 0;
        int32_t sum;
        for (i = 0; i < n; i++) products += next_number(&reader) * inputs[i];
        sum = (int32_t)(lowest * total + layer->step * products) + layer->bias[channel];
        if (sums) sums[channel] = sum;
        else codes[channel] = requantize(layer, channel, sum);
    }
}
#endif
