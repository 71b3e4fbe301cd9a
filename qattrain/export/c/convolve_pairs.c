#ifndef VECTORS
#if __ARM_ARCH_ISA_THUMB == 1
#define AT_ONCE 2                    /* windows; Armv6-M has few registers */
#else
#define AT_ONCE 4
#endif

/* start + the sums of all products under AT_ONCE windows: the first at x, the others so many bytes after it. */
INLINE void multiply_some(const struct tap *taps, uint32_t count, uint32_t start, const uint8_t *x, uint32_t second,
                          uint32_t third, uint32_t fourth, uint32_t sums[AT_ONCE]) {
#if AT_ONCE == 2
    (void)third, (void)fourth;
    multiply_taps(taps, count, start, x, x + second, sums);
#else
    const uint8_t *const y = x + second, *const z = x + third, *const v = x + fourth;
    const struct tap *const end = taps + count;
    uint32_t a = start, b = start, c = start, d = start;
    for (; taps != end; taps++) {
        a += taps->weight * x[taps->at];
        b += taps->weight * y[taps->at];
        c += taps->weight * z[taps->at];
        d += taps->weight * v[taps->at];
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
#endif
}

/* The sums of two channels under `count` windows, or the largest of every two windows, and of what is in `first` and
 * `second` already if `more`. window: the first of them. Where the last are fewer than AT_ONCE, the first of these is
 * computed again. */
SEPARATE void sum_pairs(const struct convolution *conv, const struct tap *taps, uint32_t start,
                        const uint8_t *window, uint32_t count, int more, int32_t *first, int32_t *second) {
    const uint32_t right = (uint32_t)conv->depth * conv->right, weights = conv->layer.inputs;
    uint32_t sums[AT_ONCE], i;
    for (;;) {
        multiply_some(taps, weights, start, window, count > 1 ? right : 0, count > 2 ? 2 * right : 0,
                      count > 3 ? 3 * right : 0, sums);
        if (conv->pool == 2) {
            for (i = 0; i < AT_ONCE; i += 2) {
                int32_t best = larger(first_sum(sums[i]), first_sum(sums[i + 1]));
                int32_t other = larger(second_sum(sums[i]), second_sum(sums[i + 1]));
                if (more) {
                    best = larger(best, *first);
                    other = larger(other, *second);
                }
                *first++ = best;
                *second++ = other;
            }
        } else {
            for (i = 0; i < AT_ONCE; i++) {
                *first++ = first_sum(sums[i]);
                *second++ = second_sum(sums[i]);
            }
        }
        if (count <= AT_ONCE) return;
        count -= AT_ONCE;
        window += AT_ONCE * right;
    }
}

/* Convolution of few weights without padding, and 2x2 maximum if any: map -> output. The weights of two output channels
 * are joined, and multiplied with the inputs of two windows at a time. taps: room for all inputs of a window. */
SEPARATE void convolve_pairs(const struct convolution *conv, const uint8_t *map, uint8_t *output, struct tap *taps) {
    const struct layer *layer = &conv->layer;
    const uint32_t outputs = layer->outputs, pool = conv->pool, right = (uint32_t)conv->depth * conv->right * pool;
    const uint32_t line = (uint32_t)conv->depth * conv->columns, down = line * conv->down;
    uint32_t rows = conv->output_rows, columns = conv->output_columns, channel, row, column;
    int32_t first[WINDOWS], second[WINDOWS];
    place_taps(taps, conv->kernel_rows, (uint32_t)conv->depth * conv->kernel_columns, 1, line);
    if (conv->kernel_rows == 1 && conv->kernel_columns == 1 && down == line && right == conv->depth) {
        columns *= rows;                                              /* the map is one long row */
        rows = 1;
    }
    for (channel = 0; channel < outputs; channel += 2, output += 2) {
        const int both = channel + 1 < outputs;                       /* an odd channel may be left */
        uint32_t start = (uint32_t)(int32_t)layer->bias[channel];
        uint8_t *codes = output;
        clear_taps(taps, layer->inputs);
        add_weights(layer, channel, 0, taps);
        if (both) {
            add_weights(layer, channel + 1, 16, taps);
            start += (uint32_t)(int32_t)layer->bias[channel + 1] << 16;
        }
        for (row = 0; row < rows; row++) {
            const uint8_t *window = map + row * pool * down;
            for (column = 0; column < columns; column += WINDOWS) {
                const uint32_t count = columns - column < WINDOWS ? columns - column : WINDOWS;
                sum_pairs(conv, taps, start, window, count * pool, 0, first, second);
                if (pool == 2) sum_pairs(conv, taps, start, window + down, count * pool, 1, first, second);
                store_codes(layer, channel, first, count, outputs, codes);
                if (both) store_codes(layer, channel + 1, second, count, outputs, codes + 1);
                codes += count * outputs;
                window += count * right;
            }
        }
    }
}
#endif
