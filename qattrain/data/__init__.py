"""Datasets as uint8 tensors in memory, seeded batches, batch augmentation.

To add a dataset: write a function from a data folder to a Dataset, and add one line to DATASETS.
Importing this package loads neither torchvision nor scikit-learn.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qattrain.data import mnist as sets
from qattrain.data.augment import AUGMENTATIONS
from qattrain.data.dataset import Dataset, ImageSet, batch_slices, epoch_order, split_validation
from qattrain.data.digits import DIGITS_NAME, load_digits
from qattrain.errors import pick

__all__ = [
    "AUGMENTATIONS",
    "AUTO_NAME",
    "DATASETS",
    "DIGITS_NAME",
    "Dataset",
    "ImageSet",
    "batch_slices",
    "choose_dataset",
    "epoch_order",
    "is_on_disk",
    "load_dataset",
    "split_validation",
]

AUTO_NAME = "auto"

DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": partial(sets.load_source, sets.MNIST),
    "fashion-mnist": partial(sets.load_source, sets.FASHION_MNIST),
    "kmnist": partial(sets.load_source, sets.KMNIST),
    "emnist-balanced": partial(sets.load_source, sets.EMNIST_BALANCED),
    "emnist-letters": partial(sets.load_source, sets.EMNIST_LETTERS),
    "digits": load_digits,
}


def load_dataset(name: str, data_dir: Path) -> Dataset:
    """The dataset called `name`, a key of DATASETS (choose_dataset resolves "auto" first).

    Raises ConfigError for an unknown name, DataError if its files are corrupt, or missing and cannot be downloaded.
    """
    assert name != AUTO_NAME, "resolve 'auto' with choose_dataset, whose notice the user must see"
    return pick(DATASETS, name, "dataset", f", {AUTO_NAME}")(data_dir)


def is_on_disk(name: str, data_dir: Path) -> bool:
    """Whether the dataset needs no download; the built-in digits never do. name: a key of DATASETS."""
    return name not in sets.SOURCES or sets.is_on_disk(sets.SOURCES[name], data_dir)


def choose_dataset(data_dir: Path) -> tuple[str, str | None]:
    """What `--dataset auto` means: ("mnist", None), or ("digits", a notice to show) if MNIST is not available.

    It means MNIST if any of its files lies under `data_dir` (a corrupt one is then an error, never silently digits), or
    if one of its mirrors answers within 5 s in total. Raises DataError if the folder cannot be read.
    """
    if sets.is_on_disk(sets.MNIST, data_dir) or sets.answering_mirror(sets.MNIST) is not None:
        return sets.MNIST.name, None
    return DIGITS_NAME, (
        f"MNIST was neither in {data_dir} nor downloadable, so scikit-learn's digits are used instead: 1,437 "
        "training and 360 test images, 8x8 pixels enlarged to MNIST's 28x28. Accuracies on them cannot be compared "
        "with MNIST's. To train on MNIST, connect to the network once, or give a folder that holds MNIST/raw with "
        "--data-dir or QATTRAIN_DATA_DIR."
    )
