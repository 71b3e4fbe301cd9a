#ifndef VECTORS

/* Convolution and maximum: map -> output, channel by channel or in pairs of channels, so that weights are unpacked once.
 * weights: room for two rows. */
SEPARATE void convolve(const struct convolution *conv, const uint8_t *map, uint8_t *output, weight_t *weights) {
    const struct layer *layer = &conv->layer;
    struct weights w;
    uint32_t channel, in_group = 0;
    w.first = weights;
    w.next = 1;
    w.step = 1;
    w.rest = 0;
    for (channel = 0; channel < layer->outputs; channel += conv->pairs ? 2 : 1) {
        const uint32_t rows = conv->pairs && channel + 1 < layer->outputs ? 2 : 1;
        unpack_rows(layer, channel, rows, weights);
        w.apart = rows > 1 ? layer->inputs : 0;
        if (conv->pairs) convolve_channel(conv, w, channel, map, output, 1);
        else convolve_channel(conv, w, channel, map, output, 0);
        if (conv->groups > 1 && ++in_group == conv->together) {
            in_group = 0;
            map += conv->depth;                                       /* the channels that the next group reads */
        }
    }
}
#endif
