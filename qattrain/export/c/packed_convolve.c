#ifndef VECTORS

/* Convolution and maximum: map -> output, channel by channel or in pairs of channels, so that weights are unpacked once.
 * weights: room for two rows. */
static void convolve(const struct convolution *conv, const uint8_t *map, uint8_t *output, weight_t *weights) {
    const struct layer *layer = &conv->layer;
    const struct weights w = {weights, 1, layer->inputs, 1, 0};
    uint32_t channel, last = layer->outputs - 1u, in_group = 0;
    for (channel = 0; channel <= last; channel += conv->pairs ? 2 : 1) {
        if (conv->pairs) {
            if (channel == last) channel--;                           /* an odd channel is left: with the one before */
            unpack_rows(layer, channel, 2, weights);
            convolve_channel(conv, w, channel, map, output, 1);
        } else {
            unpack_rows(layer, channel, 1, weights);
            convolve_channel(conv, w, channel, map, output, 0);
            if (conv->groups > 1 && ++in_group == conv->together) {
                in_group = 0;
                map += conv->depth;                                   /* the channels that the next group reads */
            }
        }
    }
}
#endif
