#ifdef SMALL
/* Convolution and maximum, channel by channel or in pairs of channels: map -> output. rows: whether weights lie in rows,
 * not in columns. */
static void convolve_small(const struct convolution *conv, const uint8_t *map, uint8_t *output, int rows) {
    const struct layer *layer = &conv->layer;
    const uint32_t last = layer->outputs - 1u;
    uint32_t channel;
    for (channel = 0; channel <= last; channel += conv->pairs ? 2 : 1) {
        const uint32_t first = conv->pairs && channel == last ? last - 1 : channel; /* an odd one: with the one before */
        const struct weights w = {layer->weights + first * (rows ? layer->stride : 1u), rows ? 1 : layer->outputs,
                                  rows ? layer->stride : 1, PLAIN_BYTES ? 1 : layer->step, PLAIN_BYTES ? 0 : layer->rest};
        if (conv->pairs) {
            convolve_channel(conv, w, first, map, output, 1);
        } else {
            convolve_channel(conv, w, first, map, output, 0);
        }
    }
}
#endif
