/* batch.c: runs qattrain_predict on many images, for the checks before a network is written. Never exported. */
#include "model.h"

void qattrain_batch(const uint8_t *images, int64_t count, int32_t *logits);
void qattrain_batch(const uint8_t *images, int64_t count, int32_t *logits) {
    int64_t i;
    for (i = 0; i < count; i++) qattrain_predict(images + i * QATTRAIN_IMAGE_BYTES, logits + i * QATTRAIN_CLASSES);
}
