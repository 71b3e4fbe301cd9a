"""A file that is not the published one is refused, where anything published tells."""

import gzip
import hashlib
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.data import load_dataset, published
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import DataError

pytestmark = pytest.mark.usefixtures("offline")
FILES = ("train-images", "train-labels", "test-images", "test-labels")
TRAIN = ("train", "--dataset", "mnist", "--model", "lenet-nano", "--epochs", 1, "--threads", 1)


def read_all(name: str, data_dir: Path) -> None:
    dataset = load_dataset(name, data_dir)
    assert len(dataset.train.labels) + len(dataset.test.labels)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_any_bit_of_a_set_whose_sha256_is_known(name: str, file: str, tmp_path: Path, write_set) -> None:
    path = write_set(name, tmp_path).files[file]
    intact, rng = path.read_bytes(), random.Random(7)
    for bit in [0, 8 * len(intact) - 1, *rng.sample(range(8 * len(intact)), 20)]:
        path.write_bytes(flipped(intact, bit))
        with pytest.raises(DataError, match=path.name):
            read_all(name, tmp_path)
    path.write_bytes(intact)
    read_all(name, tmp_path)


def test_training_on_other_images_is_refused_with_what_to_do(tmp_path: Path, write_set, main: Callable) -> None:
    path = write_set("mnist", tmp_path).files["train-labels"]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    place = ("--data-dir", tmp_path, "--runs-dir", tmp_path / "runs")
    done = main(*TRAIN, *place)
    assert done.rc == 1
    for text in (str(path), "SHA-256", "delete it so that it is downloaded again", "npz:PATH or folder:PATH"):
        assert text in done.error
    assert not list((tmp_path / "runs").glob("*/last.pt"))


def test_testing_checks_the_test_files_only(tmp_path: Path, write_set) -> None:
    path = write_set("mnist", tmp_path).files["train-images"]
    path.write_bytes(flipped(path.read_bytes(), 999))
    dataset = load_dataset("mnist", tmp_path)
    assert len(dataset.test.labels) == 50
    with pytest.raises(DataError, match="published"):
        _ = dataset.train


def test_the_archive_beside_a_file_tells_where_its_own_md5_is_the_published_one(
    tmp_path: Path, write_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set("kmnist", tmp_path).files["train-labels"]
    archive = path.with_name(f"{path.name}.gz")
    intact = path.read_bytes()
    archive.write_bytes(gzip.compress(intact))
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    read_all("kmnist", tmp_path)  # an archive of which nothing is known says nothing
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(published.ARCHIVE_MD5, "kmnist", {archive.name: md5})
    with pytest.raises(DataError, match=rf"{path.name}: it is not what {archive.name} beside it holds"):
        read_all("kmnist", tmp_path)
    path.write_bytes(intact)
    read_all("kmnist", tmp_path)


def test_the_one_archive_of_emnist_tells_if_it_is_intact(tmp_path: Path, write_set) -> None:
    fake = write_set("emnist-letters", tmp_path)
    path, archive = fake.files["test-images"], fake.raw / "gzip.zip"
    intact = path.read_bytes()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"gzip/{path.name}.gz", gzip.compress(intact))
    read_all("emnist-letters", tmp_path)
    path.write_bytes(flipped(intact, 8 * 1000))
    with pytest.raises(DataError, match=r"it is not what gzip\.zip beside it holds"):
        read_all("emnist-letters", tmp_path)
    for damaged in (archive.read_bytes()[:500] + bytes(50) + archive.read_bytes()[550:], b"PK", b""):
        archive.write_bytes(damaged)
        read_all("emnist-letters", tmp_path)  # what is damaged itself says nothing
    archive.unlink()
    os.mkfifo(archive)
    read_all("emnist-letters", tmp_path)


def test_the_md5s_are_torchvisions() -> None:
    theirs = dict(import_torchvision_datasets().KMNIST.resources)
    assert published.ARCHIVE_MD5["kmnist"] == theirs


def test_the_real_files_are_the_published_ones(real_data_dir: Path) -> None:
    read_all("mnist", real_data_dir)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_what_is_no_regular_file_or_claims_too_much_is_refused_at_once(
    kind: str, tmp_path: Path, write_set, raises_data_error: Any
) -> None:
    path = write_set("mnist", tmp_path).files[f"train-{kind}"]
    header = path.read_bytes()[: 16 if kind == "images" else 8]
    path.unlink()
    os.mkfifo(path)
    with raises_data_error(path, "not a regular file"):
        read_all("mnist", tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with raises_data_error(path, "not a regular file"):
        read_all("mnist", tmp_path)
    path.unlink()
    count = 100_000_000
    with path.open("wb") as file:  # it takes no room on the disk
        file.write(header[:4] + count.to_bytes(4, "big") + header[8:])
        file.truncate(len(header) + count * (784 if kind == "images" else 1))
    with raises_data_error(path, "100000000", "expected at most 200000"):
        read_all("mnist", tmp_path)
