import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qattrain.data.mnist import check_idx, check_pair, is_present

IMAGES = np.zeros((3, 28, 28))
LABELS = np.array([0, 9, 4])


@pytest.fixture
def images(tmp_path: Path, idx_bytes: Callable[..., bytes]) -> Path:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(IMAGES))
    return path


@pytest.fixture
def labels(tmp_path: Path, idx_bytes: Callable[..., bytes]) -> Path:
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(LABELS))
    return path


def test_valid_files_are_counted(images: Path, labels: Path) -> None:
    assert check_idx(images, kind="images") == check_idx(labels, kind="labels") == 3
    assert check_pair(images, labels, label_range=range(10)) == 3


@pytest.mark.parametrize("size_bytes", [0, 3, 15])
def test_file_without_a_whole_header_is_refused(images: Path, size_bytes: int, raises_data_error) -> None:
    images.write_bytes(images.read_bytes()[:size_bytes])
    with raises_data_error(images, f"has {size_bytes} bytes", "16", "delete it", "--data-dir", "--dataset digits"):
        check_idx(images, kind="images")


@pytest.mark.parametrize(("change", "word"), [(-1, "truncated"), (+1, "too long")])
def test_images_of_another_length_than_announced_are_refused(images, change: int, word: str, raises_data_error) -> None:
    content = images.read_bytes()
    images.write_bytes(content[:-1] if change < 0 else content + b"x")
    with raises_data_error(images, word, f"has {2368 + change} bytes", "expected 2368", "delete it"):
        check_idx(images, kind="images")


@pytest.mark.parametrize(("change", "word"), [(-1, "truncated"), (+1, "too long")])
def test_labels_of_another_length_than_announced_are_refused(labels, change: int, word: str, raises_data_error) -> None:
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] if change < 0 else content + b"x")
    with raises_data_error(labels, word, f"has {11 + change} bytes", "expected 11", "delete it"):
        check_idx(labels, kind="labels")


def test_wrong_magic_number_is_refused(images: Path, labels: Path, raises_data_error) -> None:
    with raises_data_error(images, "0x00000803", "0x00000801", "delete it"):
        check_idx(images, kind="labels")
    labels.write_bytes(b"\x1f\x8b\x08\x00" + bytes(40))  # a gzip file under the uncompressed name
    with raises_data_error(labels, "0x1f8b0800", "0x00000803"):
        check_idx(labels, kind="images")


def test_images_of_another_size_are_refused(images: Path, idx_bytes: Callable[..., bytes], raises_data_error) -> None:
    images.write_bytes(idx_bytes(np.zeros((3, 14, 56))))
    with raises_data_error(images, "14x56", "28x28", "delete it"):
        check_idx(images, kind="images")


def test_file_without_any_item_is_refused(images: Path, raises_data_error) -> None:
    images.write_bytes(struct.pack(">4I", 0x803, 0, 28, 28))
    with raises_data_error(images, "holds 0", "at least 1"):
        check_idx(images, kind="images")


@pytest.mark.parametrize(
    ("value", "labels_range"), [(10, range(10)), (255, range(10)), (0, range(1, 27)), (27, range(1, 27))]
)
def test_label_out_of_range_is_refused_with_its_position(
    labels: Path, value: int, labels_range: range, idx_bytes: Callable[..., bytes], raises_data_error
) -> None:
    labels.write_bytes(idx_bytes(np.array([1, 2, value, 3])))
    expected = f"expected {labels_range.start} to {labels_range.stop - 1}"
    with raises_data_error(labels, f"label {value} at position 2", expected, "delete it"):
        check_idx(labels, kind="labels", labels=labels_range)


def test_unequal_counts_are_refused(images: Path, labels: Path, idx_bytes, raises_data_error) -> None:
    labels.write_bytes(idx_bytes(np.array([0, 1])))
    with raises_data_error(labels, "2 labels", "expected 3", images.name, "delete both"):
        check_pair(images, labels, label_range=range(10))


def test_missing_file_is_refused(tmp_path: Path, raises_data_error) -> None:
    assert not is_present(tmp_path / "absent")
    with raises_data_error(tmp_path / "absent", "missing", "--data-dir"):
        check_idx(tmp_path / "absent", kind="images")


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path, raises_data_error) -> None:
    with raises_data_error(tmp_path, "cannot be read", "--data-dir"):
        check_idx(tmp_path, kind="images")


def test_file_in_place_of_the_directory_is_refused(images: Path, raises_data_error) -> None:
    with raises_data_error(images / "inside", "cannot be read", "--data-dir"):
        is_present(images / "inside")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_and_directory_are_refused(images: Path, raises_data_error) -> None:
    images.chmod(0)
    with raises_data_error(images, "Permission denied", "--data-dir"):
        check_idx(images, kind="images")
    images.parent.chmod(0)
    try:
        with raises_data_error(images, "Permission denied", "--data-dir"):
            is_present(images)
    finally:
        images.parent.chmod(0o700)
