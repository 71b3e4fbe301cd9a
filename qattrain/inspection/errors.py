"""What a network takes for what, and the images it is most wrong about."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qattrain.data import ImageSet

HARDEST = 20


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts: int64 (classes, classes), images of class [row] taken for class [column]."""

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
    """A wrong answer. index: in the test set; image: uint8 (28, 28). Names of the classes, and what the network gave
    each: probabilities 0..1."""

    index: int
    image: NDArray[np.uint8]
    true: str
    predicted: str
    true_probability: float
    predicted_probability: float


def confusion(probabilities: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Confusion:
    """probabilities: (N, classes); labels: int64 (N,)."""
    classes = len(class_names)
    pairs = labels.cpu() * classes + probabilities.argmax(1)
    return Confusion(class_names, torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy())


def hardest_images(
    probabilities: Tensor, test: ImageSet, class_names: tuple[str, ...], count: int = HARDEST
) -> list[HardImage]:
    """The wrongly classified images whose true class got the least probability, the worst first; at most `count`."""
    labels = test.labels.cpu()
    predicted = probabilities.argmax(1)
    of_true = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[of_true[wrong].argsort(stable=True)][:count]
    return [
        HardImage(
            index,
            test.images[index, 0].cpu().numpy(),
            class_names[int(labels[index])],
            class_names[int(predicted[index])],
            of_true[index].item(),
            probabilities[index, predicted[index]].item(),
        )
        for index in worst.tolist()
    ]
