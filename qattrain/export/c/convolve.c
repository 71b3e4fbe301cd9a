#ifndef VECTORS
/* Convolution for processors without vectors. Four windows are multiplied at a time, so that each weight is loaded once
 * for four products; and two output channels, where no sum of the layer can leave 16 bits ("pairs"). Their weights then
 * share one number, first + 65536 * second: one multiplication and one addition serve both channels. */

/* Weights of an output channel, each `next` after the one before; those of the channel beside it are `apart` after them.
 * A weight is step * number + rest; with pairs always 1 and 0. */
struct weights {
    const weight_t *first;
    uint32_t next, apart;
    int32_t step, rest;
};

/* The largest sums of two channels so far; those of the second times 65536. */
struct largest {
    int32_t first, second;
};

/* A weight; with pairs, that of the channel beside it too. */
INLINE uint32_t weight_at(struct weights w, uint32_t at, int pairs) {
    if (pairs) return (uint32_t)(int32_t)w.first[at] + ((uint32_t)(int32_t)w.first[at + w.apart] << 16);
    return (uint32_t)(w.step * w.first[at] + w.rest);
}

/* The sum of the first channel, and 65536 times that of the second. */
INLINE int32_t first_of(uint32_t sum, int pairs) { return pairs ? first_sum(sum) : (int32_t)sum; }
INLINE int32_t second_of(uint32_t sum) { return (int32_t)(sum - (uint32_t)first_sum(sum)); }

/* The sums under four windows on the map: the first at `top`, the second `right` bytes after it, the others likewise at
 * `bottom`. Without groups, as all pixels of a kernel's row lie side by side. */
#if __ARM_ARCH_ISA_THUMB == 1 /* Armv6-M has eight registers to work with: this function needs them all */
SEPARATE
#else
INLINE
#endif
void multiply_four(const struct convolution *conv, struct weights w, const uint8_t *top,
                             const uint8_t *bottom, int32_t right, int pairs, uint32_t sums[4]) {
    const int32_t row = conv->depth * conv->columns, run = conv->depth * conv->kernel_columns;
    uint32_t a = 0, b = 0, c = 0, d = 0, rows = conv->kernel_rows;
    const uint8_t *other = top + right, *last = bottom + right;
    do {
        int32_t i;
        for (i = 0; i < run; i++) {
            const uint32_t weight = weight_at(w, 0, pairs);
            a += weight * top[i];
            b += weight * other[i];
            c += weight * bottom[i];
            d += weight * last[i];
            w.first += w.next;
        }
        top += row, bottom += row, other += row, last += row;
    } while (--rows);
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

/* The sum under one window, with its corner at row `top` and column `left`, which may be beyond the map's edge: padding
 * is code 0, so only what is on the map counts. map: from the first channel of the group. */
INLINE uint32_t multiply_window(const struct convolution *conv, struct weights w, const uint8_t *map, int32_t top,
                                int32_t left, int pairs) {
    const int32_t columns = conv->columns, depth = conv->depth, channels = depth * conv->groups;
    int32_t k, j, i;
    uint32_t sum = 0, at = 0;
    for (k = top; k < top + conv->kernel_rows; k++) {
        for (j = left; j < left + conv->kernel_columns; j++) {
            const uint8_t *pixel = map + (k * columns + j) * channels;
            if (k < 0 || k >= conv->rows || j < 0 || j >= columns) {
                at += (uint32_t)depth * w.next;
                continue;
            }
            for (i = 0; i < depth; i++, at += w.next) sum += weight_at(w, at, pairs) * pixel[i];
        }
    }
    return sum;
}

/* The sums under four windows: the first with its corner at row `top` and column `left`, the second `across` columns
 * from it, the others likewise `below` rows down and `beside` columns to the side. */
INLINE void sum_windows(const struct convolution *conv, struct weights w, const uint8_t *map, int32_t top,
                        int32_t left, int32_t across, int32_t below, int32_t beside, int pairs, uint32_t sums[4]) {
    const int32_t columns = conv->columns, depth = conv->depth;
    int32_t window;
    const int inside = (conv->pad_top == 0 && conv->pad_left == 0) ||
                       (top >= 0 && left >= 0 && top + below + conv->kernel_rows <= conv->rows &&
                        left + across + beside + conv->kernel_columns <= columns);
    if (inside && conv->groups == 1) {
        const uint8_t *const corner = map + (top * columns + left) * depth;
        multiply_four(conv, w, corner, corner + (below * columns + beside) * depth, across * depth, pairs, sums);
        return;
    }
    for (window = 0; window < 4; window++) {
        sums[window] = multiply_window(conv, w, map, top + (window > 1 ? below : 0),
                                       left + (window % 2 ? across : 0) + (window > 1 ? beside : 0), pairs);
    }
}

/* Keeps the larger sums. */
INLINE void keep(struct largest *best, const uint32_t sums[4], int pairs) {
    const int32_t top = larger(first_of(sums[0], pairs), first_of(sums[1], pairs));
    const int32_t bottom = larger(first_of(sums[2], pairs), first_of(sums[3], pairs));
    best->first = larger(best->first, larger(top, bottom));
    if (pairs) {
        const int32_t above = larger(second_of(sums[0]), second_of(sums[1]));
        const int32_t below = larger(second_of(sums[2]), second_of(sums[3]));
        best->second = larger(best->second, larger(above, below));
    }
}

/* The next codes of one channel or of two. An odd last channel has nothing beside it. */
INLINE void store(const struct layer *layer, uint32_t channel, struct largest sums, int pairs, uint8_t *codes) {
    codes[channel] = requantize(layer, channel, sums.first + layer->bias[channel]);
    if (!pairs || ++channel == layer->outputs) return;
    codes[channel] = requantize(layer, channel, second_sum((uint32_t)sums.second) + layer->bias[channel]);
}

/* Convolution and maximum of one channel or of two: map -> output. The four windows are those of a 2x2 maximum, or else
 * side by side; where fewer are left in a row, some are computed twice. */
INLINE void convolve_channel(const struct convolution *conv, struct weights w, uint32_t channel, const uint8_t *map,
                             uint8_t *output, int pairs) {
    const int32_t down = conv->down, right = conv->right, pool = conv->pool, columns = conv->output_columns;
    const int32_t pixels = pool > 1 ? 1 : 4;                          /* of the output at a time */
    const uint32_t outputs = conv->layer.outputs;
    int32_t row, column, y, x;
    for (row = 0; row < conv->output_rows; row++, output += (uint32_t)columns * outputs) {
        for (column = 0; column < columns; column += pixels) {
            uint8_t *const codes = output + (uint32_t)column * outputs;
            struct largest best = {INT32_MIN, INT32_MIN};
            for (y = 0; y < pool; y += pool == 2 ? 2 : 1) {
                for (x = 0; x < pool; x += 4) {
                    const int32_t left = pool > 1 ? pool - x : columns - column, across = left > 1;
                    const int32_t beside = pool == 2 ? 0 : left > 3 ? 2 : left > 2;
                    uint32_t sums[4], window;
                    sum_windows(conv, w, map, (row * pool + y) * down - conv->pad_top,
                                (column * pool + x) * right - conv->pad_left, across * right, pool == 2 ? down : 0,
                                beside * right, pairs, sums);
                    if (pool > 1) {
                        keep(&best, sums, pairs);
                        continue;
                    }
                    for (window = 0; window < 4; window++) {
                        const struct largest sum = {first_of(sums[window], pairs), second_of(sums[window])};
                        const int32_t pixel = (window % 2 ? across : 0) + (window > 1 ? beside : 0);
                        store(&conv->layer, channel, sum, pairs, codes + (uint32_t)pixel * outputs);
                    }
                }
            }
            if (pool > 1) store(&conv->layer, channel, best, pairs, codes);
        }
    }
}
#endif
