#ifndef VECTORS
/* Depthwise convolution for processors without vectors, channel by channel. Where sums fit 16 bits, a tap has weights
 * for two windows, one `down` rows under the other: that of row k of the kernel, and that of row k - down. Both are 0
 * beyond the kernel, and there are `down` rows of taps more. */
INLINE int32_t rows_below(const struct convolution *conv) {
    (void)conv;                                                       /* `down` may be a constant */
    return DEPTHWISE_IN_16_BITS ? conv->down : 0;
}

/* The sum of products of a part of a window: rows of `columns` taps, `width` from row to row. */
SEPARATE uint32_t multiply_part(const struct tap *taps, const uint8_t *pixels, int32_t rows, int32_t columns,
                                int32_t width, int32_t next, int32_t line) {
    uint32_t sum = 0;
    int32_t j;
    for (; rows > 0; rows--, taps += width, pixels += line) {
        for (j = 0; j < columns; j++) sum += taps[j].weight * pixels[j * next];
    }
    return sum;
}

/* The sums of a channel under `count` windows side by side, and under those below them. map: the channel's first pixel;
 * top, left: of the first window, which may begin beyond the map's edge; rows: of taps. */
SEPARATE void depthwise_sums(const struct convolution *conv, const struct tap *taps, uint32_t start, const uint8_t *map,
                             int32_t top, int32_t left, int32_t rows, uint32_t count, int32_t *first,
                             int32_t *second) {
    const int32_t width = conv->kernel_columns, next = conv->groups, line = next * conv->columns, right = conv->right;
    const int32_t from = top < 0 ? -top : 0, last = rows > conv->rows - top ? conv->rows - top : rows;
    const uint8_t *const row = map + (top + from) * line;
    for (;;) {
        const int32_t beside = count > 1 ? left + right : left;
        uint32_t sums[2], i;
        if (from == 0 && last > 0 && left >= 0 && beside + width <= conv->columns) {
            multiply_taps(taps, (uint32_t)(last * width), start, row + left * next, row + beside * next, sums);
        } else {
            for (i = 0; i < 2; i++) {                                 /* padding is code 0 */
                const int32_t at = i ? beside : left, skip = at < 0 ? -at : 0;
                const int32_t columns = width > conv->columns - at ? conv->columns - at : width;
                sums[i] = start + multiply_part(taps + from * width + skip, row + (at + skip) * next, last - from,
                                                columns - skip, width, next, line);
            }
        }
        for (i = 0; i < 2; i++) {
#if DEPTHWISE_IN_16_BITS
            *first++ = first_sum(sums[i]);
            *second++ = second_sum(sums[i]);
#else
            *first++ = (int32_t)sums[i];
            (void)second;
#endif
        }
        if (count <= 2) return;
        count -= 2;
        left += 2 * right;
    }
}

/* One channel and its maximum: map -> output, both from its first code on. */
SEPARATE void depthwise_channel(const struct convolution *conv, uint32_t channel, const struct tap *taps,
                                const uint8_t *map, uint8_t *output) {
    const int32_t pool = conv->pool, below = rows_below(conv), at_once = below > 0 ? 2 : 1;
    const int32_t most = pool == 1 ? WINDOWS : WINDOWS / pool;
    const struct layer *layer = &conv->layer;
    const uint32_t outputs = layer->outputs, line = outputs * conv->output_columns;
    const uint32_t bias = (uint32_t)(int32_t)layer->bias[channel], start = bias + (below > 0 ? bias << 16 : 0);
    int32_t first[WINDOWS], second[WINDOWS], row, column, y, count, i, x;
    for (row = 0; row < conv->output_rows; row += pool == 1 ? at_once : 1) {
        for (column = 0; column < conv->output_columns; column += count, output += (uint32_t)count * outputs) {
            int32_t best[WINDOWS];
            count = conv->output_columns - column < most ? conv->output_columns - column : most;
            for (y = 0; y < pool; y += at_once) {
                const int two = below > 0 && (pool == 1 ? row + 1 < conv->output_rows : y + 1 < pool);
                depthwise_sums(conv, taps, start, map, (row * pool + y) * conv->down - conv->pad_top,
                               column * pool * conv->right - conv->pad_left, conv->kernel_rows + (two ? below : 0),
                               (uint32_t)(count * pool), first, second);
                if (pool == 1) {
                    store_codes(layer, channel, first, (uint32_t)count, outputs, output);
                    if (two) store_codes(layer, channel, second, (uint32_t)count, outputs, output + line);
                    continue;
                }
                for (i = 0; i < count; i++) {
                    for (x = i * pool; x < (i + 1) * pool; x++) {
                        const int32_t sum = two ? larger(first[x], second[x]) : first[x];
                        best[i] = y == 0 && x == i * pool ? sum : larger(best[i], sum);
                    }
                }
            }
            if (pool > 1) store_codes(layer, channel, best, (uint32_t)count, outputs, output);
        }
        if (pool == 1 && below > 0) output += line;
    }
}

/* Depthwise convolution and maximum: map -> output. taps: room for those of a channel and of the rows below. */
SEPARATE void convolve_depthwise(const struct convolution *conv, const uint8_t *map, uint8_t *output,
                                 struct tap *taps) {
    const struct layer *layer = &conv->layer;
    const uint32_t width = conv->kernel_columns, next = conv->groups, below = (uint32_t)rows_below(conv);
    uint32_t channel, in_group = 0;
    place_taps(taps, conv->kernel_rows + below, width, next, next * conv->columns);
    for (channel = 0; channel < layer->outputs; channel++) {
        clear_taps(taps, layer->inputs + below * width);
        add_weights(layer, channel, 0, taps);
        if (below > 0) add_weights(layer, channel, 16, taps + below * width);
        depthwise_channel(conv, channel, taps, map, output + channel);
        if (++in_group == conv->together) {
            in_group = 0;
            map++;                                                    /* the channel that the next ones read */
        }
    }
}
#endif
