"""How good a predictor is: accuracy, loss, confidence interval, errors by class, and a paired test of two.

Takes any predictor, so that every engine is measured by the same code on the same images. All images count; no batch is
dropped.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qattrain.data.dataset import ImageSet

Predictor = Callable[[Tensor], Tensor]  # uint8 images (N, C, H, W) -> logits (N, classes)

EVALUATION_BATCH = 1000  # fixed: the sum of losses must not depend on how training was batched
Z95 = 1.959963984540054  # standard deviations that hold 95 % of a normal distribution
CACHED_BATCH = 250  # images, of which a CPU's cache holds what lies between the layers
HARDEST = 20  # number of wrongly classified images to show


@dataclass(frozen=True)
class Evaluation:
    """Result on `total` images. loss: mean cross-entropy in nats. On the CPU: logits, float64 (total, classes), and
    predictions, int64 (total,)."""

    total: int
    correct: int
    loss: float
    logits: Tensor
    predictions: Tensor

    @property
    def accuracy(self) -> float:
        """Fraction of correct images, 0..1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy."""
        return wilson_interval(self.correct, self.total)


def evaluate(predict: Predictor, data: ImageSet) -> Evaluation:
    """Run `predict` over all of `data` in batches of 1,000. Ties go to the lowest class."""
    found, predictions, loss_sum = [], [], 0.0
    batches = data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH)
    for images, labels in zip(*batches, strict=True):
        logits = predict(images).double()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        found.append(logits.cpu())
        predictions.append(logits.argmax(1).cpu())
    predicted = torch.cat(predictions)
    correct = int((predicted == data.labels.cpu()).sum())
    return Evaluation(len(predicted), correct, loss_sum / len(predicted), torch.cat(found), predicted)


def in_parts(predict: Predictor) -> Predictor:
    """The same logits, 250 images at a time: on a CPU this is up to twice as fast.

    Only for quantized networks, whose sums are exact: float sums may depend on the size of a batch.
    """
    return lambda images: torch.cat([predict(part) for part in images.split(CACHED_BATCH)])


def errors_by_class(predictions: Tensor, labels: Tensor, classes: int) -> list[tuple[int, int]]:
    """(errors, images) for every class; predictions and labels: int64 (N,)."""
    images = torch.bincount(labels, minlength=classes)
    errors = torch.bincount(labels[predictions != labels], minlength=classes)
    return list(zip(errors.tolist(), images.tolist(), strict=True))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion. total >= 1.

    Written out, because every training ends with it, and importing scipy.stats takes half a second.
    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    p, z2 = correct / total, Z95 * Z95
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    # At the ends the bound is the end itself, which rounding would miss.
    return (centre - half if correct else 0.0), (centre + half if correct < total else 1.0)


def mcnemar_p(correct_a: Tensor, correct_b: Tensor) -> float:
    """Exact two-sided McNemar p-value of two predictors on the same images; bool tensors (N,).

    If the predictors are equally good, each image that exactly one of them gets right is a fair coin.
    Source: McNemar 1947; exact binomial form.
    """
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((~correct_a & correct_b).sum())
    fewer, both = min(only_a, only_b), only_a + only_b
    if 2 * fewer == both:
        return 1.0
    # Both tails of `both` fair coins, exact in integers; importing scipy.stats would take half a second.
    ways = itertools.accumulate(range(fewer), lambda ways, k: ways * (both - k) // (k + 1), initial=1)
    p: float = 2 * sum(ways) / 2**both
    return p


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts: int64 (classes, classes), images of class [row] classified as [column]."""

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def errors(self) -> int:
        return self.total - int(np.trace(self.counts))


@dataclass(frozen=True, eq=False)
class HardImage:
    """A wrongly classified image. index: in the test set; image: uint8 (H, W), or (H, W, 3) in colour; true, predicted:
    names of the classes; probabilities: 0..1, as the network sees them."""

    index: int
    image: NDArray[np.uint8]
    true: str
    predicted: str
    true_probability: float
    predicted_probability: float


def channels_last(image: Tensor) -> NDArray[np.uint8]:
    """uint8 (C, H, W) as pictures are drawn: (H, W, 3) for 3 channels, else (H, W), the mean of all channels."""
    pixels: NDArray[np.uint8] = image.cpu().numpy()
    if len(pixels) == 3:
        pixels = pixels.transpose(1, 2, 0)
    else:
        pixels = pixels[0] if len(pixels) == 1 else pixels.mean(0).astype(np.uint8)
    return pixels


def confusion(probabilities: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Confusion:
    """probabilities: (N, classes); labels: int64 (N,)."""
    classes = len(class_names)
    pairs = labels.cpu() * classes + probabilities.argmax(1)
    return Confusion(class_names, torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy())


def hardest_images(
    probabilities: Tensor, test: ImageSet, class_names: tuple[str, ...], count: int = HARDEST, spread: bool = False
) -> list[HardImage]:
    """The wrongly classified images whose true class got the lowest probability, worst first; at most `count`.

    spread: the worst of every kind of error (a true and a predicted class) first, then the second of each, and so on.
    """
    labels = test.labels.cpu()
    predicted = probabilities.argmax(1)
    of_true = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst: list[int] = wrong[of_true[wrong].argsort(stable=True)].tolist()
    if spread:
        seen: Counter[tuple[int, int]] = Counter()
        ranks = {}
        for index in worst:
            kind = int(labels[index]), int(predicted[index])
            ranks[index] = seen[kind]
            seen[kind] += 1
        worst.sort(key=ranks.__getitem__)
    return [
        HardImage(
            index,
            channels_last(test.images[index]),
            class_names[int(labels[index])],
            class_names[int(predicted[index])],
            of_true[index].item(),
            probabilities[index, predicted[index]].item(),
        )
        for index in worst[:count]
    ]
