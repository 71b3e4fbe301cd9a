"""scikit-learn's 1,797 handwritten digits, made to look like MNIST: the dataset that needs neither files nor network.

Real handwriting of 43 people, 8x8 pixels, 0..16 (UCI "Optical Recognition of Handwritten Digits", the part that
scikit-learn ships). Everything is integer arithmetic, so that every machine trains on the same bytes.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qattrain.data.dataset import BOX_SIDE, IMAGE_SIDE, Dataset, ImageSet, class_quotas

DIGITS_NAME = "digits"
TEST_COUNT = 360  # a fifth of 1,797
_SOURCE_SIDE, _SOURCE_MAX = 8, 16


def load_digits(_data_dir: Path | None = None) -> Dataset:
    """1,437 training and 360 test images as uint8 (N, 1, 28, 28); the folder is ignored.

    The split is fixed and stratified: of each class, evenly spaced images in scikit-learn's order are the test set.
    """
    from sklearn.datasets import load_digits as load_from_sklearn

    bunch = load_from_sklearn()
    labels = bunch.target.astype(np.int64)
    images = _center(_enlarge(bunch.images.astype(np.int64)))
    is_test = _evenly_spaced(labels, TEST_COUNT)
    train, test = (
        ImageSet(torch.from_numpy(images[part]).unsqueeze(1).clone(), torch.from_numpy(labels[part]).clone())
        for part in (~is_test, is_test)
    )
    return Dataset(DIGITS_NAME, tuple("0123456789"), lambda: train, lambda: test)


def _enlarge(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bilinear as torch with align_corners=False: (N, 8, 8) in 0..16 to (N, 20, 20) in 0..255, rounded half up."""
    # Output pixel i lies at (i + 1/2) * 8/20 - 1/2 = (4 i - 3) / 10: all weights are whole tenths.
    tenths = np.clip(4 * np.arange(BOX_SIDE) - 3, 0, 10 * (_SOURCE_SIDE - 1))
    distances = np.abs(tenths[:, None] - 10 * np.arange(_SOURCE_SIDE))
    weights = np.clip(10 - distances, 0, None)  # (20, 8), rows sum to 10
    hundredfold: NDArray[np.int64] = weights @ images @ weights.T
    return (2 * 255 * hundredfold + 100 * _SOURCE_MAX) // (2 * 100 * _SOURCE_MAX)


def _center(boxes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N, 20, 20) to uint8 (N, 28, 28), the centre of mass as near to row and column 14 as the whole box allows.

    14 and not 13.5: that is the average centre of MNIST's own images.
    """
    canvas = np.zeros((len(boxes), IMAGE_SIDE, IMAGE_SIDE), dtype=np.uint8)
    rows, columns = (_offsets(boxes.sum(axis=axis)) for axis in (2, 1))
    for image, box, row, column in zip(canvas, boxes, rows, columns, strict=True):
        image[row : row + BOX_SIDE, column : column + BOX_SIDE] = box
    return canvas


def _offsets(profiles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the box begins along one axis: (N,) in 0..8, from the pixel sums along it (N, 20); exact, half up."""
    mass = profiles.sum(axis=1)
    moment = profiles @ np.arange(BOX_SIDE)
    centered: NDArray[np.int64] = (2 * (IMAGE_SIDE // 2 * mass - moment) + mass) // (2 * mass)
    return np.clip(centered, 0, IMAGE_SIDE - BOX_SIDE)


def _evenly_spaced(labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, quota in class_quotas(labels, count).items():
        members = np.flatnonzero(labels == label)
        chosen[members[(2 * np.arange(quota) + 1) * len(members) // (2 * quota)]] = True
    return chosen
