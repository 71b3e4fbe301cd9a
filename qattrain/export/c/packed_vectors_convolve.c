#ifdef VECTORS /* layout packed for x86: convolutions */

/* Unpacks `count` rows from `channel` on, each padded to `stride` bytes with what does not matter. Weights of up to 7
 * bits fit a byte; for those of 8 it is their number less 128. */
INLINE void unpack_rows(const struct layer *layer, uint32_t channel, uint32_t count, uint32_t stride, int8_t *weights) {
    const vector lowest = _mm256_set1_epi8((char)layer->lowest);
    uint32_t row, i;
    for (row = 0; row < count; row++, weights += stride) {
        const uint32_t bit = first_bit(layer, channel + row);
        for (i = 0; i < stride; i += 32) {
            vector bytes = numbers_at(layer->codes + bit / 8 + i / 8 * layer->bits, layer->bits, bit % 8);
            if (layer->bits < 8 && layer->step == 2) bytes = _mm256_add_epi8(bytes, bytes);
            if (layer->bits < 8) bytes = _mm256_add_epi8(bytes, lowest);
            _mm256_storeu_si256((vector *)(weights + i), bytes);
        }
    }
}

/* Copies the pixels of a window, whose corner may lie beyond the map's edge, side by side: of each pixel the `depth`
 * channels of a group. Padding is code 0. */
INLINE void gather(const struct convolution *conv, const uint8_t *map, int32_t top, int32_t left, uint8_t *patch) {
    const int32_t depth = conv->depth, channels = depth * conv->groups, width = conv->kernel_columns;
    int32_t k, j, i;
    for (k = 0; k < conv->kernel_rows; k++) {
        const int32_t row = top + k;
        int32_t pixel = (row * conv->columns + left) * channels;
        const int outside = conv->pad_top > 0 && (row < 0 || row >= conv->rows);
        if (conv->groups == 1 && conv->pad_left == 0 && !outside) {
            for (i = 0; i < width * channels; i++) *patch++ = map[pixel + i];
            continue;
        }
        for (j = 0; j < width; j++, pixel += channels) {
            const int beside = outside || left + j < 0 || left + j >= conv->columns;
            for (i = 0; i < depth; i++) *patch++ = beside ? 0 : map[pixel + i];
        }
    }
}

/* A convolution of one group: `count` channels from `channel` on, whose weights are unpacked. patches: zeros, room for
 * four windows. */
INLINE void convolve_rows(const struct convolution *conv, uint32_t channel, uint32_t count, const int8_t *weights,
                          const uint8_t *map, uint8_t *patches, uint8_t *output) {
    const struct layer *layer = &conv->layer;
    const uint32_t stride = padded(layer->inputs);
    const int32_t pool = conv->pool, step = layer->bits < 8 ? 1 : layer->step;
    const int32_t offset = layer->bits < 8 ? 0 : offset_of(layer);
    int32_t sums[BLOCK / 32], row, column, y, x;
    uint32_t i, j;
    for (row = 0; row < conv->output_rows; row++) {
        for (column = 0; column < conv->output_columns; column++) {
            int32_t start[4];
            for (y = 0; y < pool; y++) {
                for (x = 0; x < pool; x++) {
                    const uint32_t window = pool == 2 ? 2 * (uint32_t)y + (uint32_t)x : 0;
                    uint8_t *patch = patches + window * stride;
                    gather(conv, map, (row * pool + y) * conv->down - conv->pad_top,
                           (column * pool + x) * conv->right - conv->pad_left, patch);
                    start[window] = correction(offset, patch, stride);
                    for (i = 0; pool != 2 && i < count; i += 8) {
                        int32_t each[8];
                        multiply_rows(weights + i * stride, patch, stride, step, start[0], each);
                        for (j = 0; j < 8; j++) {
                            if ((y == 0 && x == 0) || each[j] > sums[i + j]) sums[i + j] = each[j];
                        }
                    }
                }
            }
            for (i = 0; pool == 2 && i < count; i += 2) {
                multiply_windows(weights + i * stride, patches, stride, step, start, sums + i);
            }
            requantize_some(layer, channel, count, sums, output + channel);
            output += layer->outputs;
        }
    }
}

/* Convolution and maximum: map -> output. As many rows of a group are unpacked as fit into a block, then every window is
 * multiplied with them. Has no use for the portable form's row. */
INLINE void convolve(const struct convolution *conv, const uint8_t *map, uint8_t *output, weight_t *row) {
    const struct layer *layer = &conv->layer;
    const uint32_t stride = padded(layer->inputs), most = BLOCK / stride / 8 * 8;
    const uint32_t together = conv->groups > 1 ? conv->together : layer->outputs;
    ALIGNED int8_t weights[BLOCK];
    ALIGNED uint8_t patches[4 * LONGEST_WINDOW] = {0};
    uint32_t channel, count;
    (void)row;
    for (channel = 0; channel < layer->outputs; channel += count) {
        const uint32_t group = channel / together;
        count = smaller(most, (group + 1) * together - channel);
        unpack_rows(layer, channel, (count + 7) / 8 * 8, stride, weights);
        convolve_rows(conv, channel, count, weights, map + group * conv->depth, patches, output);
    }
}
#endif
