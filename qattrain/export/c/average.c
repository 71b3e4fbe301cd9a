/* The average of every channel: adds up its pixels and turns the sum into a code. */
static void average_map(const struct average *layer, const uint8_t *map, uint8_t *codes) {
    const uint32_t channels = layer->channels;
    const uint8_t *const end = map + layer->pixels * channels;
    struct scale scale;
    uint32_t channel;
    scale.multiplier = layer->multiplier;
    scale.shift = layer->shift;
    scale.largest = layer->largest;
#if WIDE_PRODUCTS
    scale.wide = layer->wide;
#endif
    for (channel = 0; channel < channels; channel++) {
        const uint8_t *pixel;
        int32_t sum = 0;
        for (pixel = map + channel; pixel < end; pixel += channels) sum += *pixel;
        codes[channel] = code_of(scale, sum);
    }
}
