"""CIFAR-10: 60,000 colour photographs of 32x32 pixels in ten classes (Krizhevsky 2009), downloaded by torchvision.

torchvision's layout is kept (`cifar-10-batches-py/data_batch_1`, ...). The batches are pickles, which can run code when
they are read. So only a file whose MD5 is the published one, which torchvision lists, is ever unpickled: the very bytes
that were checked.
"""

import hashlib
import http.client
import pickle
import tarfile
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qattrain.data import mnist
from qattrain.data.dataset import Dataset, ImageSet
from qattrain.errors import DataError, reason
from qattrain.files import read_bounded

CIFAR10_NAME = "cifar10"
FOLDER = "cifar-10-batches-py"
TRAIN_FILES, TEST_FILES = tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
MOST_BATCH_BYTES = 40_000_000  # a file has 31 million


def load_cifar10(data_dir: Path) -> Dataset:
    """The dataset from its files under `data_dir`; torchvision downloads them if some are missing.

    Files are read when their part is first used. Raises DataError if one is corrupt (then, too, when it is used), or
    missing and cannot be downloaded, or if torchvision cannot be imported.
    """
    if missing := _missing(data_dir):
        _download(data_dir, missing)
        if missing := _missing(data_dir):
            raise DataError(f"{missing[0]}: missing even after the download; {mnist.ELSEWHERE}")
    load_train, load_test = (partial(_read, data_dir, files) for files in (TRAIN_FILES, TEST_FILES))
    return Dataset(CIFAR10_NAME, CLASSES, load_train, load_test, SHAPE)


def is_on_disk(data_dir: Path) -> bool:
    """Whether any file of the set lies under `data_dir`: then a failure must be shown. Raises DataError."""
    return len(_missing(data_dir)) < len(TRAIN_FILES + TEST_FILES)


def _missing(data_dir: Path) -> list[Path]:
    paths = [data_dir / FOLDER / name for name in TRAIN_FILES + TEST_FILES]
    return [path for path in paths if not mnist.is_present(path)]


def _read(data_dir: Path, files: tuple[str, ...]) -> ImageSet:
    reader: Any = mnist.import_torchvision_datasets().CIFAR10
    published = dict(reader.train_list + reader.test_list)
    batches = []
    for name in files:
        path = data_dir / FOLDER / name
        data = read_bounded(path, MOST_BATCH_BYTES, DataError, str(path), mnist.REMEDY)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != published[name]:
            raise DataError(
                f"{path}: its MD5 is {found}, expected {published[name]}, so it is not read; {mnist.REMEDY}"
            )
        batches.append(pickle.loads(data, encoding="latin1"))
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *SHAPE)
    labels = np.concatenate([np.asarray(batch["labels"], np.int64) for batch in batches])
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def _download(data_dir: Path, missing: list[Path]) -> None:
    lacking = f"{missing[0].parent}: {CIFAR10_NAME} lacks {', '.join(path.name for path in missing)}"
    datasets = mnist.import_torchvision_datasets()
    reader: Any = datasets.CIFAR10
    archive = data_dir / reader.filename
    try:
        is_here = datasets.utils.check_integrity(archive, reader.tgz_md5)
        if not is_here and mnist.first_answer([reader.url], mnist.PROBE_SECONDS) is None:
            raise DataError(
                f"{lacking}, and no mirror answered within {mnist.PROBE_SECONDS:g} s ({reader.url}); connect to the "
                f"network, {mnist.ELSEWHERE}"
            )
        with mnist.stall_timeout(), warnings.catch_warnings(action="ignore"):  # tarfile warns of its coming default
            datasets.utils.download_and_extract_archive(
                reader.url, data_dir, filename=reader.filename, md5=reader.tgz_md5
            )
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{lacking}, and the download failed ({type(error).__name__}: {reason(error)}); try again, "
            f"{mnist.ELSEWHERE}"
        ) from error
