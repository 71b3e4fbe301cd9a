/* The average of every channel: adds up its pixels and turns the sum into a code. */
static void average_map(const struct average *layer, const uint8_t *map, uint8_t *codes) {
    uint32_t channel, pixel;
    for (channel = 0; channel < layer->channels; channel++) {
        int32_t sum = 0;
        for (pixel = 0; pixel < layer->pixels; pixel++) sum += map[pixel * layer->channels + channel];
#if WIDE_PRODUCTS
        if (layer->wide) {
            codes[channel] = wide_code(sum, layer->multiplier, layer->shift, layer->largest);
            continue;
        }
#endif
        codes[channel] = narrow_code(sum, layer->multiplier, layer->shift, layer->largest);
    }
}
