"""What a loaded dataset is: images and labels as resident tensors, nothing lazy.

The whole set stays in memory as raw uint8 pixels (47 MB for MNIST's training images): the integer network eats exactly
those bytes, and a loader that decodes image by image is slower than the training itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

IMAGE_SIDE = 28


class ImageSet(NamedTuple):
    """Images with their labels. `len()` is a tuple's 2: count images with `len(images.labels)`.

    images: uint8 (N, 1, 28, 28), 0..255, contiguous; labels: int64 (N,), 0..classes-1; both on one device.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on `device`; tensors already there are not copied."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def head(self, count: int | None) -> "ImageSet":
        """The first `count` images (views, at most all there are); None means all."""
        assert count is None or count >= 0, count
        return ImageSet(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)  # comparing tensors gives tensors, so equality is identity
class Dataset:
    """A named dataset in its two official parts; `class_names[label]` is what a person calls the class."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0..classes-1."""
        return len(self.class_names)
