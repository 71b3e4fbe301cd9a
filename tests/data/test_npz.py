"""`npz:PATH`: Keras's arrays become images, and whatever else is in a file is one clear line; nothing in it is run."""

import contextlib
import io
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qattrain.data import Dataset, load_dataset
from qattrain.data import npz as module
from qattrain.errors import ConfigError, DataError

Array = NDArray[Any]
X = np.random.default_rng(0).integers(0, 256, (20, 9, 12), np.uint8)
Y = np.arange(20) % 4


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A file of 20 training and 20 test images of 4 classes, with arrays replaced, added, or left out (None)."""

    def make(**changes: Array | None) -> Path:
        arrays = {"x_train": X, "y_train": Y, "x_test": X[:8], "y_test": Y[:8]} | changes
        np.savez(tmp_path / "a.npz", **{key: array for key, array in arrays.items() if array is not None})
        return tmp_path / "a.npz"

    return make


def load(path: Path, options: str = "") -> Dataset:
    return load_dataset(f"npz:{path}{options}", Path("/nowhere"))


def test_arrays_become_images(write: Callable[..., Path]) -> None:
    path = write()
    dataset = load(path)
    assert (dataset.name, dataset.class_names, dataset.shape) == (f"npz:{path}", ("0", "1", "2", "3"), (1, 9, 12))
    assert torch.equal(dataset.train.images, torch.from_numpy(X)[:, None])
    assert dataset.train.labels.tolist() == Y.tolist()
    assert len(dataset.test.labels) == 8
    assert dataset.digest is not None


def test_a_channel_axis_a_label_axis_and_any_integer_are_the_same_data(write: Callable[..., Path]) -> None:
    digest = load(write()).digest
    assert (
        load(write(x_train=X[..., None], y_train=Y[:, None].astype(np.uint8), y_test=Y[:8].astype(">i4"))).digest
        == digest
    )


def test_colour_is_taken_as_it_is(write: Callable[..., Path]) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (20, 9, 12, 3), np.uint8)
    dataset = load(write(x_train=colour, x_test=colour[:8]))
    assert dataset.shape == (3, 9, 12)
    assert torch.equal(dataset.train.images, torch.from_numpy(colour.transpose(0, 3, 1, 2).copy()))
    assert dataset.train.images.is_contiguous()
    assert load(dataset_path := write(x_train=colour, x_test=colour[:8]), "@9x12,color").digest == dataset.digest
    assert dataset_path.exists()


def test_class_names_come_from_the_file(write: Callable[..., Path]) -> None:
    names = ("cat", "dog", "cow", "café")
    dataset = load(write(class_names=np.array(names)))
    assert dataset.class_names == names
    assert dataset.digest != load(write()).digest


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", x_train=X, y_train=Y, x_test=X, y_test=Y, other=np.ones(3))
    assert len(load(tmp_path / "c.npz").test.labels) == 20


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": ({"y_test": None}, ("no array y_test", "found: x_train, y_train, x_test", "numpy.savez")),
    "0 to 1": ({"x_train": X / 255}, ("x_train is float64", "uint8", "(x_train * 255).round().astype('uint8')")),
    "floats": ({"x_train": X * 1.0}, ("x_train is float64", "x_train.astype('uint8')")),
    "integers": ({"x_test": X.astype(np.int64)}, ("x_test is int64", "uint8")),
    "flat": ({"x_train": X.reshape(20, -1)}, ("x_train has shape (20, 108)", "(N, H, W, 3)")),
    "channels first": ({"x_train": X[:, None]}, ("(20, 1, 9, 12)", ".transpose(0, 2, 3, 1)")),
    "no axis": ({"x_train": np.uint8(3)}, ("x_train has shape ()",)),
    "two channels": ({"x_train": np.stack([X, X], 3)}, ("(20, 9, 12, 2)", "(N, H, W, 3)")),
    "other size": ({"x_test": X[:8, :5]}, ("(9, 12)", "(5, 12)", "same height, width")),
    "too small": ({"x_train": X[:, :3], "x_test": X[:8, :3]}, ("3x12", "4 to 256", "resize")),
    "fewer labels": ({"y_train": Y[:5]}, ("x_train has 20 images, y_train 5 labels",)),
    "none": ({"x_test": X[:0], "y_test": Y[:0]}, ("x_test has 0 images", "at least 1")),
    "float labels": ({"y_train": Y * 1.0}, ("y_train is float64", "integers")),
    "one-hot": ({"y_train": np.eye(4, dtype=int)[Y]}, ("y_train is int64 of shape (20, 4)", "(N, 1)")),
    "one label": ({"y_train": np.int64(3)}, ("y_train is int64 of shape ()",)),
    "gaps": ({"y_train": Y * 2}, ("no image of class 1", "labels up to 6", "without gaps")),
    "negative": ({"y_train": Y - 1}, ("y_train has label -1", "0 to classes - 1")),
    "huge": ({"y_test": Y[:8] + 2**40}, ("y_test has label 1099511627", "without gaps")),
    "unknown in test": ({"y_test": Y[:8] + 1}, ("y_test has label 4", "y_train only 0 to 3")),
    "one class": ({"y_train": Y * 0, "y_test": Y[:8] * 0}, ("only one class, '0'", "at least two")),
    "few names": ({"class_names": np.array(["a", "b"])}, ("class_names", "4 different texts")),
    "equal names": ({"class_names": np.array(["a", "b", "c", "a"])}, ("class_names", "4 different texts")),
    "numbers as names": ({"class_names": np.arange(4)}, ("class_names is int64", "numpy.array(['cat', 'dog'])")),
    "spare name": ({"class_names": np.array(list("abcde"))}, ("no image of class 4 ('e')",)),
    "a line break": ({"class_names": np.array(["a", "b", "c", "d\n"])}, ("do not print", "rename")),
    "objects": ({"y_train": np.array([*"abcd"] * 5, object)}, ("Python objects", "run code", "numpy.savez")),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_says_what_to_do(
    case: str, write: Callable[..., Path], raises_data_error: Any
) -> None:
    changes, texts = WRONG[case]
    path = write(**changes)
    with raises_data_error(path, *texts):
        load(path)


@pytest.mark.parametrize("cut", [0, 3, 100, 2000, -1])
def test_a_truncated_file_is_refused(cut: int, write: Callable[..., Path], raises_data_error: Any) -> None:
    path = write()
    path.write_bytes(path.read_bytes()[:cut])
    with raises_data_error(path, "numpy.savez"):
        load(path)


def test_any_flipped_byte_is_refused_or_harmless(write: Callable[..., Path]) -> None:
    path = write()
    data, digest = path.read_bytes(), load(path).digest
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with contextlib.suppress(DataError):
            assert load(path).digest == digest  # a time, or a comment: not the data


def test_code_in_a_file_is_never_run(tmp_path: Path, raises_data_error: Any) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was run"),)

    np.savez(tmp_path / "evil.npz", x_train=X, y_train=np.array([Evil()], object), x_test=X, y_test=Y)
    with raises_data_error("evil.npz", "Python objects"):
        load(tmp_path / "evil.npz")
    assert not (tmp_path / "was run").exists()


def test_a_file_that_unpacks_to_too_much_is_refused_unread(
    write: Callable[..., Path], raises_data_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 100)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read"))
    with raises_data_error(path, "allowed: 100", "fewer"):
        load(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path, raises_data_error: Any) -> None:
    with raises_data_error("nosuch.npz: No such file", "numpy.savez"):
        load(tmp_path / "nosuch.npz")
    with raises_data_error("Is a directory", "folder:PATH"):
        load(tmp_path)
    (tmp_path / "text").write_text("hello")
    with raises_data_error("text is no .npz file", "numpy.savez"):
        load(tmp_path / "text")


@pytest.mark.parametrize(("options", "text"), [("@32x32", "--image-size 32x32"), ("@color", "--color")])
def test_arrays_are_not_prepared(options: str, text: str, write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(), options)
    assert all(part in str(caught.value) for part in (text, "1x9x12", "leave the option out"))


def crafted(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def saved(array: "np.ndarray[Any, Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claiming(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """An array that is all header."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(8)


BLANK = np.zeros((100_000, 28, 28), np.uint8)  # 78 MB, packed 76 kB
LABELS = np.zeros(4, np.int64)
CRAFTED: dict[str, tuple[Callable[[], dict[str, bytes]], int, str]] = {  # members, compression, what is said
    "a bomb": (lambda: {"x_train.npy": saved(BLANK)}, zipfile.ZIP_DEFLATED, "unpacks to"),
    "a bomb behind a small member": (
        lambda: {"x_train": saved(BLANK), "x_train.npy": saved(X)},
        zipfile.ZIP_DEFLATED,
        "x_train twice",
    ),
    "a raw member": (lambda: {"x_train": b"bytes"}, zipfile.ZIP_STORED, "damaged"),
    "a shape beyond memory": (lambda: {"x_train.npy": claiming((10**12, 28, 28))}, zipfile.ZIP_STORED, "damaged"),
    "a shape of 40 GB": (lambda: {"x_train.npy": claiming((50_000_000, 28, 28))}, zipfile.ZIP_STORED, "damaged"),
    "a negative shape": (lambda: {"x_train.npy": claiming((-1, 28, 28))}, zipfile.ZIP_STORED, "damaged"),
    "a large array of another type": (
        lambda: {"x_train.npy": saved(np.zeros(20_000_000, np.float32))},
        zipfile.ZIP_STORED,
        "expected uint8",
    ),
    "many members": (lambda: {f"{number:09}": b"" for number in range(20_000)}, zipfile.ZIP_STORED, "far more than"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_files_that_claim_too_much_are_refused_before_they_are_unpacked(
    case: str, tmp_path: Path, raises_data_error: Any
) -> None:
    members, compression, text = CRAFTED[case]
    whole = {"y_train.npy": saved(LABELS), "x_test.npy": saved(X), "y_test.npy": saved(LABELS)}
    path = crafted(tmp_path / "crafted.npz", members() | whole, compression)
    tracemalloc.start()
    try:
        with raises_data_error(path, text):
            load(path)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 20_000_000


def test_a_pipe_and_a_device_are_no_arrays(tmp_path: Path, raises_data_error: Any) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", Path("/dev/zero")):
        with raises_data_error(path, "not a regular file"):
            load(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(write: Callable[..., Path]) -> None:
    path = write()
    intact, expected, rng = path.read_bytes(), load(path), random.Random(2)
    damaged = [intact[: rng.randrange(len(intact))] for _ in range(20)]
    for bit in rng.sample(range(8 * len(intact)), 150):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            found = load(path)
        except DataError:
            continue
        assert found.digest == expected.digest
