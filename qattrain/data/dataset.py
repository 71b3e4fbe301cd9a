"""A dataset in memory, and the order in which its images are used.

Each part stays in memory as raw uint8 pixels (47 MB for MNIST's training images): the integer network eats exactly
those bytes, and a loader that decodes image by image is slower than the training itself.

Epoch order, batches and the held-out part depend only on the seed, so a resumed run sees the same batches as an
uninterrupted one. NumPy draws them because its SeedSequence mixes a seed with a key of any length; torch's CPU
generator keeps only 32 bits of its seed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qattrain.config import IMAGE_SIDES
from qattrain.config.chain import Shape
from qattrain.errors import ConfigError, DataError

IMAGE_SIDE = 28  # of MNIST and its relatives
BOX_SIDE = 20  # MNIST's digits were scaled into 20x20, then placed by their centre of mass (LeCun et al. 1998)
MAX_FILE_BYTES = 200_000_000  # of one picture
MAX_TOTAL_BYTES = 2**30  # of the images of a folder or a file: all of them stay in memory


class ImageSet(NamedTuple):
    """Images with their labels. `len()` is a tuple's 2: count images with `len(images.labels)`.

    images: uint8 (N, C, H, W), 0..255, contiguous; labels: int64 (N,), 0..classes-1; both on one device.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on `device`; tensors already there are not copied."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def head(self, count: int | None) -> "ImageSet":
        """The first `count` images (views; all if there are fewer); None means all."""
        assert count is None or count >= 0, count
        return ImageSet(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)  # comparing tensors gives tensors, so equality is identity
class Dataset:
    """A named dataset in its two parts, each read on first use; `class_names[label]` is a class's name.

    shape: of every image, (C, H, W). digest: identity of the content (`identity`) where the name alone does not say
    which images they are: for a folder or a file of the user's own.
    """

    name: str
    class_names: tuple[str, ...]
    load_train: Callable[[], ImageSet]
    load_test: Callable[[], ImageSet]
    shape: Shape = (1, IMAGE_SIDE, IMAGE_SIDE)
    digest: str | None = None

    @cached_property
    def train(self) -> ImageSet:
        """The training images. Raises DataError if they cannot be read."""
        return self.load_train()

    @cached_property
    def test(self) -> ImageSet:
        """The test images. Raises DataError if they cannot be read."""
        return self.load_test()

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0..classes-1."""
        return len(self.class_names)


def own_dataset(name: str, class_names: Sequence[str], train: ImageSet, test: ImageSet) -> Dataset:
    """A dataset of the user's own images, with its identity."""
    channels, height, width = train.images.shape[1:]
    digest = identity(class_names, train, test)
    shape = (channels, height, width)
    return Dataset(name, tuple(class_names), lambda: train, lambda: test, shape, digest)


def check_class_names(class_names: Sequence[str], source: str) -> None:
    """Raises DataError unless there are at least two, which can be printed."""
    if len(class_names) < 2:
        raise DataError(
            f"{source} has only one class, {class_names[0]!r}; a network needs at least two to choose between"
        )
    for name in class_names:
        if not name.isprintable() or not name.strip():
            raise DataError(f"{source}: class name {name!r} is empty or has characters that do not print; rename it")


def check_sides(height: int, width: int, source: str, remedy: str) -> None:
    """Raises DataError, naming `source`, if images of this size are smaller or larger than IMAGE_SIDES allows."""
    if height not in IMAGE_SIDES or width not in IMAGE_SIDES:
        raise DataError(
            f"{source}: images of {height}x{width} pixels (height x width); allowed: {IMAGE_SIDES[0]} to "
            f"{IMAGE_SIDES[-1]} each; {remedy}"
        )


def identity(class_names: Sequence[str], train: ImageSet, test: ImageSet) -> str:
    """SHA-256, in hexadecimal, of everything a network can see: class names, split, and every label and pixel."""
    parts = {"train": list(train.images.shape), "test": list(test.images.shape)}
    digest = hashlib.sha256(json.dumps({"classes": list(class_names), **parts}).encode())
    for part in (train, test):
        digest.update(part.labels.numpy().astype("<i8").data)
        digest.update(part.images.numpy().reshape(-1).data)
    return digest.hexdigest()


def check_identity(
    dataset: Dataset, source: str, class_names: Sequence[str], shape: Shape, digest: str | None = None
) -> None:
    """Raises DataError if `dataset` is not what the network in `source` was trained on.

    class_names, shape, digest: recorded when it was trained; digest is None for official datasets, and where it is not
    known. Another version of Pillow may decode a JPEG to slightly different pixels, which is another digest.
    """
    remedy = "use the images it was trained on"
    found, expected = dataset.classes, len(class_names)
    if found != expected:
        raise DataError(f"{source} was trained for {expected} classes, {dataset.name} has {found}; {remedy}")
    for label, (name, trained) in enumerate(zip(dataset.class_names, class_names, strict=True)):
        if name != trained:
            raise DataError(
                f"{source} was trained for class {label} {trained!r}, in {dataset.name} it is {name!r}; {remedy}"
            )
    if dataset.shape != shape:
        has, takes = ("x".join(map(str, sides)) for sides in (dataset.shape, shape))
        raise DataError(f"{source} was trained on images of {takes}, {dataset.name} has {has}; {remedy}")
    if digest is not None and digest != dataset.digest:
        raise DataError(
            f"{dataset.name} has changed since {source} was trained on it (SHA-256 {(dataset.digest or 'none')[:12]}, "
            f"was {digest[:12]}): other pixels, labels or another split; {remedy}"
        )


# The first word of the key: epoch orders, validation split and augmentation never share random numbers.
_EPOCH_STREAM, _VALIDATION_STREAM, _AUGMENTATION_STREAM = 0, 1, 2


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in one epoch: int64 (count,) on the CPU, a permutation of 0..count-1.

    Depends on (count, seed, epoch) only. The epoch is a spawn key, not added to the seed, so seed 0 in epoch 1 and
    seed 1 in epoch 0 are unrelated. 0 <= seed < 2^128, 0 <= epoch < 2^32.
    """
    order = _generator(seed, _EPOCH_STREAM, epoch).permutation(np.arange(count, dtype=np.int64))
    return torch.from_numpy(order)


def augmentation_seed(seed: int, epoch: int) -> int:
    """Seed of the augmentation's generator in one epoch, 0..2^32-1; depends on (seed, epoch) only."""
    return int(_generator(seed, _AUGMENTATION_STREAM, epoch).integers(2**32))


def batch_slices(count: int, batch_size: int) -> list[slice]:
    """Slices that cut 0..count-1 into batches in order; the last one may be smaller, and none is left out."""
    assert batch_size >= 1, batch_size
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def split_validation(train: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Holds out `count` training images: (the remaining ones, the held-out ones), both in their original order.

    Stratified: every class contributes its share, rounded down or up. Depends on labels, `count` and `seed` only.

    Raises ConfigError unless 0 <= count < number of training images.
    """
    total = len(train.labels)
    if not 0 <= count < total:
        raise ConfigError(
            f"val-split {count} does not fit {total} training images: choose 0 to {total - 1}, "
            "or train on more images (--limit-train)"
        )
    rng = _generator(seed, _VALIDATION_STREAM)
    labels = train.labels.cpu().numpy()
    held_out = np.zeros(total, dtype=np.bool_)
    for label, quota in class_quotas(labels, count).items():
        held_out[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    mask = torch.from_numpy(held_out).to(train.labels.device)
    return ImageSet(train.images[~mask], train.labels[~mask]), ImageSet(train.images[mask], train.labels[mask])


def class_quotas(labels: NDArray[np.int64], count: int) -> dict[int, int]:
    """How many of `count` images each class contributes, by largest remainder (ties: lowest label first).

    labels: int64 (N,) with N >= 1 and 0 <= count <= N. They sum to `count`; no class contributes more than it has.
    """
    assert 0 <= count <= len(labels), (count, len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(count * sizes.astype(np.int64), len(labels))  # integers: nothing lost to rounding
    largest_first = np.argsort(-remainders, kind="stable")
    quotas[largest_first[: count - int(quotas.sum())]] += 1
    return dict(zip(classes.tolist(), quotas.tolist(), strict=True))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
