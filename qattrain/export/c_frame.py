"""The C text around the kernels, the same for every model: model.c's head and its one function, model.h, main.c.

`%(name)s` marks what `qattrain.export.c_code` fills in. The words for real numbers, for taking memory and for printing
must not stand in what becomes part of model.c.
"""

HEAD = """\
/* model.c: a LeNet made of integers, written by qattrain. C99; needs nothing but the compiler.
 *
 * 784 grey pixels go in, one integer per class comes out, and the largest names the class. In between, each layer
 * multiplies small integers ("codes") and adds them up in 32 bits; a multiplier and a shift per channel turn each sum
 * into the next layer's code. Every number equals the one of the network that was trained: no rounding is left over.
 *
 *     sum  = inputs x weights + bias                             32 bits
 *     code = (sum * multiplier + 2^(shift - 1)) >> shift         64 bits; then limited to 0 .. largest
 *
 *     image 28x28   conv 5x5 and 2x2 maximum -> 12x12x%(c1)d   conv 5x5 and 2x2 maximum -> 4x4x%(c2)d
 *                   fully connected -> %(features)d   fully connected -> %(classes)d sums, the logits
 *
 * Maps are stored row by row, all channels of one pixel side by side: (row, column, channel). A convolution computes
 * the four sums of a 2x2 window and keeps the largest at once: the four times larger map before it is never stored.
 *
%(layout)s */
#include "model.h"
"""

PREDICT = """
int qattrain_predict(const uint8_t image[784], int32_t logits[QATTRAIN_CLASSES]) {
    int best = 0, i;
    convolve(&conv1, image, 28, 1, arena.even);                       /* -> 12x12 */
    convolve(&conv2, arena.even, 12, conv1.outputs, arena.odd);       /* -> 4x4 */
    connect(&fc1, arena.odd, arena.even, 0);
    connect(&fc2, arena.even, 0, logits);
    for (i = 1; i < QATTRAIN_CLASSES; i++) {
        if (logits[i] > logits[best]) best = i;                       /* the lowest index where several are equal */
    }
    return best;
}
"""

HEADER = """\
/* model.h: classifies 28x28 images with the integers in model.c. Written by qattrain. */
#ifndef QATTRAIN_MODEL_H
#define QATTRAIN_MODEL_H

#include <stdint.h>

#define QATTRAIN_CLASSES %(classes)d
#define QATTRAIN_ARENA_BYTES %(arena_bytes)d /* all static memory that model.c writes to */

#ifdef __cplusplus
extern "C" {
#endif

/* image: 28 rows of 28 grey pixels, 0 the background, 255 the stroke. logits: one per class, the larger the likelier.
 * Returns the class with the largest logit, the lowest such class where several are equal. Not for two threads at a
 * time: they would share the arena. */
int qattrain_predict(const uint8_t image[784], int32_t logits[QATTRAIN_CLASSES]);

#ifdef __cplusplus
}
#endif

#endif
"""

MAIN = """\
/* main.c: classifies one image of 784 raw bytes, from the file named as its argument or from standard input.
 *
 *     cc -O3 main.c model.c -o classify && ./classify image.raw
 *
 * Prints the class, then every class with its logit. Written by qattrain. */
#include <stdio.h>

#include "model.h"

static const char *const names[QATTRAIN_CLASSES] = {
%(names)s
};

int main(int argc, char **argv) {
    uint8_t image[785]; /* one more than an image has, to notice a longer file */
    int32_t logits[QATTRAIN_CLASSES];
    size_t count;
    FILE *file;
    int i;
    if (argc > 2) {
        fprintf(stderr, "usage: %%s [FILE]: 784 bytes, 28 rows of 28 grey pixels; without FILE from standard input\\n",
                argv[0]);
        return 2;
    }
    file = argc == 2 ? fopen(argv[1], "rb") : stdin;
    if (!file) {
        fprintf(stderr, "%%s: cannot be opened\\n", argv[1]);
        return 1;
    }
    count = fread(image, 1, sizeof image, file);
    if (file != stdin) fclose(file);
    if (count != 784) {
        fprintf(stderr, "%%s: %%s: an image is 784 bytes, 28 rows of 28 grey pixels\\n",
                argc == 2 ? argv[1] : "standard input", count > 784 ? "too long" : "too short");
        return 1;
    }
    printf("%%s\\n", names[qattrain_predict(image, logits)]);
    for (i = 0; i < QATTRAIN_CLASSES; i++) printf("%%s %%ld\\n", names[i], (long)logits[i]);
    return 0;
}
"""
