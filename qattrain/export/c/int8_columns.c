/* Adds to the sums the products of a pixel's inputs with their columns, `together` weights for each input. */
INLINE void add_columns(const struct layer *layer, const int8_t *RESTRICT weights, const uint8_t *RESTRICT pixel,
                        uint32_t inputs, uint32_t depth, uint32_t together, int32_t *RESTRICT sums) {
    const int32_t step = layer->step, rest = layer->rest;
    uint32_t i, channel, k;
    if (depth == 1 && together == 1) {                                /* depthwise: channel by channel */
        for (i = 0; i < inputs; i++) sums[i] += (step * weights[i] + rest) * pixel[i];
        return;
    }
    for (i = 0; i < inputs; sums += together) {                       /* group by group */
        for (k = 0; k < depth; k++, i++, weights += together) {
            const int32_t x = pixel[i];
            for (channel = 0; channel < together; channel++) sums[channel] += (step * weights[channel] + rest) * x;
        }
    }
}

/* A fully connected layer with few inputs: inputs -> codes or, in the last layer, logits. sums: room for all rows. */
INLINE void connect_columns(const struct layer *layer, const uint8_t *inputs, int32_t *sums, uint8_t *codes,
                            int32_t *logits) {
    uint32_t channel;
    for (channel = 0; channel < layer->outputs; channel++) sums[channel] = 0;
    add_columns(layer, layer->weights, inputs, layer->inputs, layer->inputs, layer->outputs, sums);
    finish(layer, sums, codes, logits);
}
