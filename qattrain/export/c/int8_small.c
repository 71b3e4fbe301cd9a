#ifdef SMALL
/* Convolution and maximum, channel by channel or in pairs of channels: map -> output. rows: whether weights lie in rows,
 * not in columns. */
SEPARATE void convolve_small(const struct convolution *conv, const uint8_t *map, uint8_t *output, int rows) {
    const struct layer *layer = &conv->layer;
    const uint32_t row = rows ? layer->stride : 1u;                   /* bytes from channel to channel */
    struct weights w;
    uint32_t channel;
    w.next = rows ? 1 : layer->outputs;
    w.step = PLAIN_BYTES ? 1 : layer->step;
    w.rest = PLAIN_BYTES ? 0 : layer->rest;
    for (channel = 0; channel < layer->outputs; channel += conv->pairs ? 2 : 1) {
        w.first = layer->weights + channel * row;
        w.apart = channel + 1 < layer->outputs ? row : 0;
        if (conv->pairs) convolve_channel(conv, w, channel, map, output, 1);
        else convolve_channel(conv, w, channel, map, output, 0);
    }
}
#endif
