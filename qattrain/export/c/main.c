/* main.c: classifies one image of 784 raw bytes, from the file named as its argument or from standard input.
 *
 *     cc -O3 main.c model.c -o classify && ./classify image.raw
 *
 * Prints the class, then every class with its logit. Written by qattrain. */
#include <stdio.h>

#include "model.h"

static const char *const names[QATTRAIN_CLASSES] = {
{{ names }}
};

int main(int argc, char **argv) {
    uint8_t image[785]; /* one more than an image has, to notice a longer file */
    int32_t logits[QATTRAIN_CLASSES];
    size_t count;
    FILE *file;
    int i;
    if (argc > 2) {
        fprintf(stderr, "usage: %s [FILE]: 784 bytes, 28 rows of 28 grey pixels; without FILE from standard input\n",
                argv[0]);
        return 2;
    }
    file = argc == 2 ? fopen(argv[1], "rb") : stdin;
    if (!file) {
        fprintf(stderr, "%s: cannot be opened\n", argv[1]);
        return 1;
    }
    count = fread(image, 1, sizeof image, file);
    if (file != stdin) fclose(file);
    if (count != 784) {
        fprintf(stderr, "%s: %s: an image is 784 bytes, 28 rows of 28 grey pixels\n",
                argc == 2 ? argv[1] : "standard input", count > 784 ? "too long" : "too short");
        return 1;
    }
    printf("%s\n", names[qattrain_predict(image, logits)]);
    for (i = 0; i < QATTRAIN_CLASSES; i++) printf("%s %ld\n", names[i], (long)logits[i]);
    return 0;
}
