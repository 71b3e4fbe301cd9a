"""`npz:PATH`: images in one NumPy file, with the names that Keras uses for its datasets.

x_train, x_test   uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)
y_train, y_test   integers (N,) or (N, 1), 0 to classes - 1
class_names       optional, text (classes,); without it the classes are called "0", "1", ...

The file is written by `numpy.savez("pets.npz", x_train=..., y_train=..., x_test=..., y_test=...)`. Nothing in it is
executed: arrays of Python objects are refused. The images are taken as they are, neither resized nor made grey.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from qattrain.data.dataset import MAX_TOTAL_BYTES, Dataset, ImageSet, check_class_names, check_sides, own_dataset
from qattrain.errors import DataError, reason, shortened
from qattrain.files import open_regular

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = "class_names"
ZIP_MAGIC = b"PK\x03\x04"
MOST_END_BYTES = 2**16 + 22  # in which a zip file says where its list of members is
MOST_LIST_BYTES = 1_000_000
MANY_BYTES, MOST_RATIO = 2**26, 100  # so many times smaller is no file of so many bytes of images
HOW = "save it with numpy.savez(PATH, x_train=..., y_train=..., x_test=..., y_test=...)"

Array = NDArray[Any]


def load_npz(path: Path, name: str) -> Dataset:
    """The dataset in the file. name: what the dataset is called. Raises DataError if the file is not as above."""
    arrays = _read(path)
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]} (found: {', '.join(arrays) or 'none'}); {HOW}")
    train, test = (_part(path, arrays, part) for part in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        one, other = (arrays[key].shape[1:] for key in ("x_train", "x_test"))
        raise DataError(
            f"{path}: images of x_train are {one}, of x_test {other}; give both the same height, width, colour"
        )
    check_sides(train.images.shape[2], train.images.shape[3], str(path), "resize them before saving")
    class_names = _class_names(path, arrays.get(NAMES), int(train.labels.max()) + 1)
    counts = torch.bincount(train.labels, minlength=len(class_names))
    if not counts.all():
        absent = int((counts == 0).nonzero()[0])
        raise DataError(
            f"{path}: y_train has no image of class {absent} ({class_names[absent]!r}) but labels up to "
            f"{int(train.labels.max())}; number the classes 0 to classes - 1, without gaps"
        )
    check_class_names(class_names, str(path))
    unknown = test.labels[test.labels >= len(class_names)]
    if len(unknown):
        raise DataError(
            f"{path}: y_test has label {int(unknown[0])}, y_train only 0 to {len(class_names) - 1}; use the same"
        )
    return own_dataset(name, class_names, train, test)


def _read(path: Path) -> dict[str, Array]:
    """The arrays of the file that a dataset has. Raises DataError."""
    remedy = "give a file that numpy.savez wrote, or use folder:PATH for pictures"
    with open_regular(path, DataError, str(path), remedy) as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise DataError(f"{path} is no .npz file; {HOW}")
        try:
            _check_directory(path, file)
            with zipfile.ZipFile(file) as archive:
                return _arrays(path, archive)
        except DataError:
            raise
        except Exception as error:  # a damaged or crafted file can fail in any way; none of them runs code
            objects = "Object arrays" in str(error)
            why = (
                "it holds Python objects, which are never read because that could run code"
                if objects
                else shortened(reason(error))
            )
            raise DataError(f"{path} is damaged or not what numpy.savez writes: {why}; {HOW}") from None


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Raises DataError if the zip file's list of members, which is read as a whole, is out of all proportion."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, size_bytes - MOST_END_BYTES))
    end = file.read(MOST_END_BYTES)
    at = end.rfind(b"PK\5\6")
    list_bytes = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    is_zip64 = at >= 20 and end[at - 20 : at - 16] == b"PK\6\7"  # as files of more than 4 GB or 65,535 members are
    if list_bytes > MOST_LIST_BYTES or is_zip64:
        raise DataError(f"{path} holds far more than the arrays of a dataset; {HOW}, and nothing else")


def _arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, Array]:
    """The arrays that a dataset has. What they claim is checked before any is read: a small file can claim any size."""
    wanted = (*ARRAYS, NAMES)
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        key = member.filename.removesuffix(".npy")
        if key in wanted and key in members:
            raise DataError(f"{path} has {key} twice; {HOW}")
        members[key] = member
    found = {key: members[key] for key in wanted if key in members}
    total_bytes = sum(member.file_size for member in found.values())
    if total_bytes > MAX_TOTAL_BYTES:
        raise DataError(f"{path} holds {total_bytes:,} bytes; allowed: {MAX_TOTAL_BYTES:,}; use fewer images")
    claims = {key: _claimed(archive, member) for key, member in found.items()}
    if total_bytes > MANY_BYTES:
        packed_bytes = sum(member.compress_size for member in found.values())
        if total_bytes > MOST_RATIO * packed_bytes:
            raise DataError(
                f"{path} unpacks to {total_bytes:,} bytes, {MOST_RATIO} times its own or more: hardly images; if they "
                "are, save them with numpy.savez, which does not compress"
            )
        if all(key in claims for key in ARRAYS):
            for part in ("train", "test"):
                _check_part(path, claims, part)
    arrays = {}
    for key, member in found.items():
        with archive.open(member) as file:
            arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _claimed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """An array of the shape and type that a member claims, which takes no memory. Raises ValueError."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims to be larger than it is")
    return np.broadcast_to(np.empty((), dtype), shape)


def _part(path: Path, arrays: dict[str, Array], part: str) -> ImageSet:
    """Images (N, C, H, W) and labels of "train" or "test", checked."""
    images, labels = _check_part(path, arrays, part)
    if labels.min() < 0 or labels.max() >= 10**6:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{path}: y_{part} has label {wrong}; number the classes 0 to classes - 1, without gaps")
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return ImageSet(torch.from_numpy(channels_first), torch.from_numpy(labels.astype(np.int64).reshape(-1)))


def _check_part(path: Path, arrays: dict[str, Array], part: str) -> tuple[Array, Array]:
    """Images (N, H, W, C) and labels of "train" or "test", if their types and shapes are right. Raises DataError."""
    x, y = f"x_{part}", f"y_{part}"
    images, labels = arrays[x], arrays[y]
    if images.dtype != np.uint8:
        scaled = images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1
        remedy = f"({x} * 255).round().astype('uint8')" if scaled else f"{x}.astype('uint8') if all are 0 to 255"
        raise DataError(f"{path}: {x} is {images.dtype}, expected uint8, 0 to 255; store {remedy}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        remedy = (
            "; move the channels last: .transpose(0, 2, 3, 1)" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        )
        raise DataError(
            f"{path}: {x} has shape {arrays[x].shape}, expected (N, H, W), (N, H, W, 1) or (N, H, W, 3){remedy}"
        )
    if labels.dtype.kind not in "iu" or labels.shape[1:] not in ((), (1,)) or labels.ndim == 0:
        raise DataError(
            f"{path}: {y} is {labels.dtype} of shape {labels.shape}, expected integers (N,) or (N, 1), one per image"
        )
    if not len(labels) or len(labels) != len(images):
        raise DataError(f"{path}: {x} has {len(images)} images, {y} {len(labels)} labels; expected as many, at least 1")
    return images, labels


def _class_names(path: Path, names: Array | None, classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(classes)))
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < classes or len(set(names.tolist())) < len(names):
        raise DataError(
            f"{path}: {NAMES} is {names.dtype} of shape {names.shape}, expected {classes} different texts, one per "
            "class, as in numpy.array(['cat', 'dog'])"
        )
    return tuple(names.tolist())
