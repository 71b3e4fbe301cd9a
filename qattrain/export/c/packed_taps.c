/* Adds the weights of an output channel, times 2^by, to taps. */
SEPARATE void add_weights(const struct layer *layer, uint32_t channel, uint32_t by, struct tap *taps) {
    const uint32_t bits = layer->bits, mask = (1u << bits) - 1;
    const uint32_t start = channel * layer->inputs * bits;            /* the row's first bit */
    const uint32_t lowest = (uint32_t)(int32_t)layer->lowest << by, step = (uint32_t)layer->step << by;
    const uint8_t *next = layer->codes + start / 8;
    uint32_t waiting = (uint32_t)*next++ >> start % 8;                /* bits read, but not used yet */
    uint32_t count = 8 - start % 8;                                   /* how many of them */
    const struct tap *const end = taps + layer->inputs;
    for (; taps != end; taps++) {
        if (count < bits) {
            waiting |= (uint32_t)*next++ << count;
            count += 8;
        }
        taps->weight += lowest + step * (waiting & mask);
        waiting >>= bits;
        count -= bits;
    }
}
