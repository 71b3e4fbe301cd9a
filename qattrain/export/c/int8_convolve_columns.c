/* Convolution and maximum with groups of channels, or with few inputs: map -> output. Padding is code 0, so only the
 * part of a window on the map counts. sums: room for all channels; window: as much, if there is a maximum. */
INLINE void convolve_columns(const struct convolution *conv, const uint8_t *map, int32_t *sums, int32_t *window,
                             uint8_t *output) {
    const struct layer *layer = &conv->layer;
    const int32_t columns = conv->columns, depth = conv->depth, channels = depth * conv->groups;
    const int32_t width = conv->kernel_columns, pool = conv->pool;
    const uint32_t together = conv->groups > 1 ? conv->together : layer->outputs;
    const uint32_t each = (uint32_t)depth * layer->outputs;           /* weights for a pixel of the kernel */
    int32_t *const target = pool > 1 ? window : sums;
    int32_t row, column, y, x, k, j;
    uint32_t channel;
    for (row = 0; row < conv->output_rows; row++) {
        for (column = 0; column < conv->output_columns; column++) {
            for (y = 0; y < pool; y++) {
                for (x = 0; x < pool; x++) {
                    const int32_t top = (row * pool + y) * conv->down - conv->pad_top;
                    const int32_t left = (column * pool + x) * conv->right - conv->pad_left;
                    for (channel = 0; channel < layer->outputs; channel++) target[channel] = 0;
                    for (k = 0; k < conv->kernel_rows; k++) {
                        if (conv->pad_top > 0 && (top + k < 0 || top + k >= conv->rows)) continue;
                        for (j = 0; j < width; j++) {
                            const int8_t *weights = layer->weights + (uint32_t)(k * width + j) * each;
                            const uint8_t *pixel;
                            if (conv->pad_left > 0 && (left + j < 0 || left + j >= columns)) continue;
                            pixel = map + ((top + k) * columns + left + j) * channels;
                            add_columns(layer, weights, pixel, (uint32_t)channels, (uint32_t)depth, together, target);
                        }
                    }
                    for (channel = 0; pool > 1 && channel < layer->outputs; channel++) {
                        if ((x == 0 && y == 0) || window[channel] > sums[channel]) sums[channel] = window[channel];
                    }
                }
            }
            requantize_all(layer, sums, output);
            output += layer->outputs;
        }
    }
}
