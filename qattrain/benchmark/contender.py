"""What is measured: a contender builds itself once, then gives its speed as often as it is asked."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from qattrain.data import ImageSet

CLASSES = 10
SEED = 0


@dataclass(frozen=True)
class Workload:
    """What the contenders of a benchmark share.

    training, inference: images; those of inference are asked for once in batches of one, once in batches of 1,000.
    rounds: how often each contender will be asked, the epochs of its training. precision: of our own training, fp32 or
    bf16. stack: what contenders open (compiled files) and leave open until the benchmark ends.
    """

    training: ImageSet
    inference: ImageSet
    rounds: int
    precision: str
    stack: ExitStack


class Ready(NamedTuple):
    """A built contender.

    measure: trains one epoch, or classifies all images of inference, and returns images per second. model: what it
    trains; None in inference. detail: what was settled while building, for the reader.
    """

    measure: Callable[[], float]
    model: nn.Module | None = None
    detail: str = ""


@dataclass(frozen=True)
class Contender:
    """A row of the result for each of its batch sizes.

    what: a sentence. build: raises QattrainError, saying the remedy, where it cannot run.
    """

    name: str
    what: str
    batches: tuple[int, ...]
    build: Callable[[Workload], dict[int, Ready]]  # by batch size


def synthetic_images(count: int) -> ImageSet:
    """Noise with random labels: no speed here depends on what the pixels show."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.randint(0, CLASSES, (count,), generator=generator))
