INLINE void clear(uint8_t *bytes, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) bytes[i] = 0;
}

/* Copies the pixels of a window, whose corner may lie beyond the map's edge, side by side. Padding is code 0. */
INLINE void gather(const struct convolution *conv, const uint8_t *map, int32_t top, int32_t left, uint8_t *patch) {
    const int32_t rows = conv->rows, columns = conv->columns, channels = conv->depth;
    const int32_t width = conv->kernel_columns, run = width * channels;
    int32_t k;
    for (k = 0; k < conv->kernel_rows; k++, patch += run) {
        const int32_t row = top + k;
        if (conv->pad_top == 0 && conv->pad_left == 0) {
            copy(patch, map + (row * columns + left) * channels, (uint32_t)run);
        } else if (row < 0 || row >= rows || left >= columns || left + width <= 0) {
            clear(patch, (uint32_t)run);
        } else {
            const int32_t first = left < 0 ? -left : 0, last = left + width > columns ? columns - left : width;
            clear(patch, (uint32_t)(first * channels));
            copy(patch + first * channels, map + (row * columns + left + first) * channels,
                 (uint32_t)((last - first) * channels));
            clear(patch + last * channels, (uint32_t)((width - last) * channels));
        }
    }
}

/* Convolution and 2x2 maximum: map -> output. The pixels of the four windows that are pooled are copied side by side,
 * then every output channel uses them. sums: room for all rows; patches: for four windows. */
INLINE void convolve_2x2(const struct convolution *conv, const uint8_t *map, int32_t *sums, uint8_t *patches,
                         uint8_t *output) {
    const struct layer *layer = &conv->layer;
    const uint32_t stride = layer->stride;
    int32_t row, column, window;
    uint32_t channel;
    for (row = 0; row < conv->output_rows; row++) {
        for (column = 0; column < conv->output_columns; column++) {
            int32_t start[4];
            for (window = 0; window < 4; window++) {
                uint8_t *patch = patches + (uint32_t)window * stride;
                gather(conv, map, (2 * row + window / 2) * conv->down - conv->pad_top,
                       (2 * column + window % 2) * conv->right - conv->pad_left, patch);
                start[window] = correction(layer, patch);
            }
            for (channel = 0; channel < layer->outputs; channel += CONV_ROWS) {
                multiply_windows(layer->weights + channel * stride, patches, stride, layer->step, start,
                                 sums + channel);
            }
            requantize_all(layer, sums, output);
            output += layer->outputs;
        }
    }
}

/* Convolution and maximum of any size, window by window. sums: room for all rows; patch: for one window. */
INLINE void convolve(const struct convolution *conv, const uint8_t *map, int32_t *sums, uint8_t *patch,
                     uint8_t *output) {
    const struct layer *layer = &conv->layer;
    const uint32_t stride = layer->stride;
    const int32_t pool = conv->pool;
    int32_t row, column, y, x;
    uint32_t channel, i;
    for (row = 0; row < conv->output_rows; row++) {
        for (column = 0; column < conv->output_columns; column++) {
            for (y = 0; y < pool; y++) {
                for (x = 0; x < pool; x++) {
                    int32_t start;
                    gather(conv, map, (row * pool + y) * conv->down - conv->pad_top,
                           (column * pool + x) * conv->right - conv->pad_left, patch);
                    start = correction(layer, patch);
                    for (channel = 0; channel < layer->outputs; channel += LINEAR_ROWS) {
                        int32_t each[LINEAR_ROWS];
                        multiply_rows(layer->weights + channel * stride, patch, stride, layer->step, start, each);
                        for (i = 0; i < LINEAR_ROWS; i++) {
                            const int32_t before = sums[channel + i];
                            sums[channel + i] = x == 0 && y == 0 ? each[i] : larger(before, each[i]);
                        }
                    }
                }
            }
            requantize_all(layer, sums, output);
            output += layer->outputs;
        }
    }
}
