/* For processors without vectors: a kernel as taps, its weights and where in a window their inputs lie. Where no sum
 * can leave 16 bits, bias included, a tap has two weights, first + 65536 * second: one multiplication with the input
 * gives two products, and adding these up gives two sums, in the same form. */
#define WINDOWS 16 /* so many windows, at most, are summed up before their sums become codes */

/* Places taps in rows of `columns` inputs, which are `next` bytes apart, with `line` bytes from row to row. */
SEPARATE void place_taps(struct tap *taps, uint32_t rows, uint32_t columns, uint32_t next, uint32_t line) {
    uint32_t k, j;
    for (k = 0; k < rows; k++) {
        for (j = 0; j < columns; j++, taps++) taps->at = k * line + j * next;
    }
}

INLINE void clear_taps(struct tap *taps, uint32_t count) {
    while (count > 0) taps[--count].weight = 0;
}

/* start + the sums of all products under two windows, x and y. */
INLINE void multiply_taps(const struct tap *taps, uint32_t count, uint32_t start, const uint8_t *x, const uint8_t *y,
                          uint32_t sums[2]) {
    const struct tap *const end = taps + (count & ~1u);
    uint32_t a = start, b = start;
    while (taps != end) {
        a += taps[0].weight * x[taps[0].at];
        b += taps[0].weight * y[taps[0].at];
        a += taps[1].weight * x[taps[1].at];
        b += taps[1].weight * y[taps[1].at];
        taps += 2;
    }
    if (count & 1) {
        a += taps->weight * x[taps->at];
        b += taps->weight * y[taps->at];
    }
    sums[0] = a;
    sums[1] = b;
}

/* The codes of a channel's sums, bias included, each `step` bytes after the one before. */
SEPARATE void store_codes(const struct layer *layer, uint32_t channel, const int32_t *sums, uint32_t count,
                          uint32_t step, uint8_t *codes) {
    const struct scale scale = scale_of(layer, channel);
    const int32_t *const end = sums + count;
    for (; sums != end; codes += step) *codes = code_of(scale, *sums++);
}
