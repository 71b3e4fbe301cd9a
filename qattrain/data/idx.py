"""Is this file really the IDX file it claims to be? Asked before anything parses it.

An IDX file is a big-endian header (magic number, then one 32-bit size per dimension) and the bytes themselves:
0x00000803, N, 28, 28 and N*784 pixels, or 0x00000801, N and N labels (http://yann.lecun.com/exdb/mnist).
torchvision checks existence only; a truncated or foreign file ends there in an assertion, or in training on garbage.
"""

import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qattrain.data.dataset import IMAGE_SIDE
from qattrain.errors import DataError

ELSEWHERE = "point --data-dir elsewhere, or train with --dataset digits"
REMEDY = f"delete it so that it is downloaded again, {ELSEWHERE}"

_MAGIC = {"images": 0x00000803, "labels": 0x00000801}
_HEADER_BYTES = {"images": 16, "labels": 8}
_WHAT = {"images": f"{IMAGE_SIDE}x{IMAGE_SIDE} images", "labels": "labels"}


def is_present(path: Path) -> bool:
    """Whether something lies at `path`; DataError where that cannot be known (no permission, a file as folder)."""
    try:
        path.stat()  # Path.exists would call "not permitted" absent on some Python versions
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def check_idx(path: Path, *, kind: Literal["images", "labels"], labels: range = range(10)) -> int:
    """Number of items in an uncompressed IDX file of 28x28 uint8 images, or of uint8 labels that all lie in `labels`.

    Raises DataError if the file is missing, unreadable, empty of items, too short, too long, of another magic number or
    image size, or if a label is out of range.
    """
    header_bytes = _HEADER_BYTES[kind]
    try:
        with path.open("rb") as file:
            header = file.read(header_bytes)
            payload = np.frombuffer(file.read(), np.uint8) if kind == "labels" else None
        file_bytes = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(header) < header_bytes:
        raise DataError(f"{path}: has {file_bytes} bytes, expected a header of {header_bytes} and more; {REMEDY}")
    magic, count, *side = struct.unpack(f">{header_bytes // 4}I", header)
    if magic != _MAGIC[kind]:
        raise DataError(f"{path}: magic number {magic:#010x}, expected {_MAGIC[kind]:#010x} (IDX {kind}); {REMEDY}")
    if side not in ([], [IMAGE_SIDE, IMAGE_SIDE]):
        raise DataError(f"{path}: images of {side[0]}x{side[1]}, expected {IMAGE_SIDE}x{IMAGE_SIDE}; {REMEDY}")
    if count == 0:
        raise DataError(f"{path}: holds 0 {_WHAT[kind]}, expected at least 1; {REMEDY}")
    expected_bytes = header_bytes + count * (IMAGE_SIDE * IMAGE_SIDE if kind == "images" else 1)
    if file_bytes != expected_bytes:
        wrong = "truncated" if file_bytes < expected_bytes else "too long"
        raise DataError(
            f"{path}: {wrong}, has {file_bytes} bytes, expected {expected_bytes} ({count} {_WHAT[kind]}); {REMEDY}"
        )
    if payload is not None:
        _check_labels(path, payload, labels)
    return int(count)


def read_idx(path: Path, *, kind: Literal["images", "labels"]) -> NDArray[np.uint8]:
    """The payload of a file that `check_idx` has found good, uint8 of one dimension. Raises DataError."""
    try:
        return np.fromfile(path, np.uint8, offset=_HEADER_BYTES[kind])
    except OSError as error:
        raise _unreadable(path, error) from error


def check_pair(images: Path, labels: Path, *, label_range: range) -> int:
    """Number of items of two files that belong together; DataError as check_idx, or if their counts differ."""
    image_count = check_idx(images, kind="images")
    label_count = check_idx(labels, kind="labels", labels=label_range)
    if image_count != label_count:
        raise DataError(
            f"{labels}: holds {label_count} labels, expected {image_count}, one for every image in {images.name}; "
            f"delete both so that they are downloaded again, {ELSEWHERE}"
        )
    return image_count


def _check_labels(path: Path, payload: NDArray[np.uint8], labels: range) -> None:
    wrong = np.flatnonzero((payload < labels.start) | (payload >= labels.stop))
    if len(wrong):
        raise DataError(
            f"{path}: label {payload[wrong[0]]} at position {wrong[0]}, "
            f"expected {labels.start} to {labels.stop - 1}; {REMEDY}"
        )


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing, expected an uncompressed IDX file; download it, {ELSEWHERE}")
    return DataError(
        f"{path}: cannot be read ({error.strerror}), expected a readable file; mend path or permissions, {ELSEWHERE}"
    )
