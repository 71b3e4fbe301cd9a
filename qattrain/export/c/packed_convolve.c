#ifndef VECTORS

/* The sum of the products in one window. Padding is code 0, so only the part of the window on the map counts. */
static int32_t window_sum(const struct convolution *conv, const weight_t *weights, const uint8_t *map, int32_t top,
                          int32_t left) {
    const int32_t columns = conv->columns, depth = conv->depth, channels = depth * conv->groups;
    const int32_t width = conv->kernel_columns;
    int32_t first_row = 0, last_row = conv->kernel_rows, first = 0, last = width, sum = 0, k, j;
    if (conv->pad_top > 0 || conv->pad_left > 0) {
        if (top < 0) first_row = -top;
        if (left < 0) first = -left;
        if (last_row > conv->rows - top) last_row = conv->rows - top;
        if (last > columns - left) last = columns - left;
    }
    for (k = first_row; k < last_row; k++) {
        const uint8_t *pixel = map + ((top + k) * columns + left + first) * channels;
        const weight_t *row = weights + (k * width + first) * depth;
        if (conv->groups > 1) {
            for (j = first; j < last; j++, pixel += channels, row += depth) sum += dot(row, pixel, (uint32_t)depth);
        } else if (last > first) {
            sum += dot(row, pixel, (uint32_t)((last - first) * channels));
        }
    }
    return sum;
}

/* Convolution and pooling: map -> output. Channel by channel, so that each row is unpacked once. weights: room for a
 * row. */
static void convolve(const struct convolution *conv, const uint8_t *map, uint8_t *output, weight_t *weights) {
    const struct layer *layer = &conv->layer;
    const int32_t pool = conv->pool;
    uint32_t channel, in_group = 0;
    int32_t row, column, y, x;
    for (channel = 0; channel < layer->outputs; channel++) {
        uint8_t *next = output + channel;
        unpack_row(layer, channel, weights);
        for (row = 0; row < conv->output_rows; row++) {
            for (column = 0; column < conv->output_columns; column++) {
                int32_t best = INT32_MIN;
                for (y = 0; y < pool; y++) {
                    for (x = 0; x < pool; x++) {
                        const int32_t top = (row * pool + y) * conv->down - conv->pad_top;
                        const int32_t left = (column * pool + x) * conv->right - conv->pad_left;
                        const int32_t sum = window_sum(conv, weights, map, top, left);
                        if (sum > best) best = sum;
                    }
                }
                *next = requantize(best + layer->bias[channel], layer->multiplier[channel], layer->shift[channel],
                                   layer->largest);
                next += layer->outputs;
            }
        }
        if (conv->groups > 1 && ++in_group == conv->together) {
            in_group = 0;
            map += conv->depth;                                       /* the channels that the next group reads */
        }
    }
}
#endif
