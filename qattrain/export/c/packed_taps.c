#ifndef VECTORS
/* Adds the weights of an output channel, times 2^by, to taps. */
SEPARATE void add_weights(const struct layer *layer, uint32_t channel, uint32_t by, struct tap *taps) {
    const uint32_t lowest = (uint32_t)(int32_t)layer->lowest << by, step = (uint32_t)layer->step << by;
    struct reader reader = reader_at(layer, channel);
    const struct tap *const end = taps + layer->inputs;
    for (; taps != end; taps++) taps->weight += lowest + step * next_number(&reader);
}
#endif
