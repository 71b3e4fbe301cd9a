"""Datasets as uint8 tensors in memory, seeded batches, batch augmentation.

To add a dataset: write a function from a data folder to a Dataset, and add one line to DATASETS. Images of the user's
own are loaded by where they are: `folder:PATH` or `npz:PATH`.
Importing this package loads neither torchvision, scikit-learn nor pillow.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from qattrain.config import DataConfig, parse_spec
from qattrain.data import cifar
from qattrain.data import mnist as sets
from qattrain.data.augment import AUGMENTATIONS, augmentation
from qattrain.data.dataset import Dataset, ImageSet, batch_slices, check_identity, epoch_order, split_validation
from qattrain.data.digits import DIGITS_NAME, load_digits
from qattrain.data.folder import load_folder
from qattrain.data.npz import load_npz
from qattrain.errors import ConfigError, DataError, pick

__all__ = [
    "AUGMENTATIONS",
    "AUTO_NAME",
    "DATASETS",
    "DIGITS_NAME",
    "Dataset",
    "ImageSet",
    "augmentation",
    "batch_slices",
    "check_identity",
    "choose_dataset",
    "epoch_order",
    "is_handwriting",
    "is_on_disk",
    "load_dataset",
    "settle_data",
    "split_validation",
]

AUTO_NAME = "auto"

DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": partial(sets.load_source, sets.MNIST),
    "fashion-mnist": partial(sets.load_source, sets.FASHION_MNIST),
    "kmnist": partial(sets.load_source, sets.KMNIST),
    "emnist-balanced": partial(sets.load_source, sets.EMNIST_BALANCED),
    "emnist-letters": partial(sets.load_source, sets.EMNIST_LETTERS),
    "cifar10": cifar.load_cifar10,
    "digits": load_digits,
}
OWN_IMAGES = "folder:PATH, npz:PATH"  # what a dataset may be besides a key of DATASETS


def load_dataset(spec: str, data_dir: Path) -> Dataset:
    """The dataset that a `DataConfig.spec` describes: a key of DATASETS, `folder:PATH` or `npz:PATH`, with options.

    Of a name or file the options may say only what it is anyway. choose_dataset resolves "auto" first. A relative path
    is one from the working directory or, if nothing is there, from `data_dir`. Raises ConfigError for an unknown name
    and for options that do not fit, DataError if files are corrupt, or missing and cannot be downloaded.
    """
    kind, name, size, color = asked = parse_spec(spec)
    assert name != AUTO_NAME, "resolve 'auto' with choose_dataset, whose notice the user must see"
    if kind == "folder":
        return load_folder(_user_path(kind, name, data_dir), asked.dataset, size, color)
    if kind == "npz":
        dataset = load_npz(_user_path(kind, name, data_dir), asked.dataset)
    else:
        dataset = pick(DATASETS, name, "dataset", f", {AUTO_NAME}, {OWN_IMAGES}")(data_dir)
    channels, *sides = dataset.shape
    if (size is not None and list(size) != sides) or (color and channels == 1):
        option = "--color" if color and channels == 1 else f"--image-size {size[0]}x{size[1]}" if size else ""
        raise ConfigError(
            f"{option}: only for folder:PATH; the images of {asked.dataset} are {'x'.join(map(str, dataset.shape))} "
            "(channels x height x width); leave the option out"
        )
    return dataset


def settle_data(data: DataConfig, dataset: Dataset) -> DataConfig:
    """`data` with what a run records: of the user's own images their size, colour and identity.

    dataset: loaded from `DataConfig.spec`. Raises DataError if `data` records the identity of other images.
    """
    if dataset.digest is None:  # a name says everything: options that say the same are not recorded
        return data.model_copy(update={"image_size": None, "color": False, "digest": None})
    if data.digest not in (None, dataset.digest):
        raise DataError(
            f"{dataset.name} is not the data recorded as data.digest = {data.digest[:12]}...: other pixels, labels or "
            "another split; use the images recorded, or leave data.digest out to train on these"
        )
    channels, height, width = dataset.shape
    size, color = f"{height}x{width}", channels == 3
    return data.model_copy(update={"image_size": size, "color": color, "digest": dataset.digest})


def is_handwriting(spec: str) -> bool:
    """Whether the images are 28x28 like MNIST's, so that pictures for a network are best made to look like them."""
    return parse_spec(spec).dataset in (*sets.SOURCES, DIGITS_NAME)


def is_on_disk(spec: str, data_dir: Path) -> bool:
    """Whether the dataset that a `DataConfig.spec` describes can be loaded without a download; the digits can."""
    kind, name, *_ = parse_spec(spec)
    if kind is not None:
        return _user_path(kind, name, data_dir).exists()
    if name == cifar.CIFAR10_NAME:
        return cifar.is_on_disk(data_dir)
    return name in DATASETS and (name not in sets.SOURCES or sets.is_on_disk(sets.SOURCES[name], data_dir))


def _user_path(kind: str, name: str, data_dir: Path) -> Path:
    """The path of `folder:PATH` or `npz:PATH`, in the working directory or else in `data_dir`. Raises ConfigError.

    No shell expands a ~ after a colon.
    """
    if not name:
        example = "pets.npz" if kind == "npz" else "pets"
        raise ConfigError(f"dataset '{kind}:': a path must follow, for example {kind}:{example}")
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # of an unknown user
        path = Path(name)
    with suppress(OSError, ValueError):  # no path at all, which is said when it is read
        if not path.exists() and (data_dir / path).exists():
            return data_dir / path
    return path


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
