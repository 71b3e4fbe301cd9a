/* model.h: classifies 28x28 images with the integers in model.c. Written by qattrain. */
#ifndef QATTRAIN_MODEL_H
#define QATTRAIN_MODEL_H

#include <stdint.h>

#define QATTRAIN_CLASSES {{ classes }}
#define QATTRAIN_ARENA_BYTES {{ arena.total_bytes }} /* all static memory that model.c writes to */

#ifdef __cplusplus
extern "C" {
#endif

/* image: 28 rows of 28 grey pixels, 0 the background, 255 the stroke. logits: one per class, the larger the likelier.
 * Returns the class with the largest logit, the lowest such class where several are equal. Not thread-safe: all calls
 * share the arena. */
int qattrain_predict(const uint8_t image[784], int32_t logits[QATTRAIN_CLASSES]);

#ifdef __cplusplus
}
#endif

#endif
