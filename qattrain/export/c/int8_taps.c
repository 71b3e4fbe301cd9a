/* Adds the weights of an output channel, times 2^by, to taps. */
SEPARATE void add_weights(const struct layer *layer, uint32_t channel, uint32_t by, struct tap *taps) {
    const uint32_t next = layer->stride ? 1 : layer->outputs;         /* from weight to weight: in rows or in columns */
    const int8_t *weight = layer->weights + channel * (layer->stride ? layer->stride : 1u);
    const struct tap *const end = taps + layer->inputs;
    for (; taps != end; taps++, weight += next) taps->weight += (uint32_t)(layer->step * *weight + layer->rest) << by;
}
