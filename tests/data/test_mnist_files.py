import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qattrain.data import load_dataset
from qattrain.data import mnist as torchvision_sets
from qattrain.data.mnist import import_torchvision_datasets

pytestmark = pytest.mark.usefixtures("offline")
NAMES = ("mnist", "fashion-mnist", "kmnist", "emnist-balanced", "emnist-letters")
names = pytest.mark.parametrize("name", NAMES)
FILES = ("train-images", "train-labels", "test-images", "test-labels")


@names
def test_pixels_and_labels_are_those_of_the_files(name: str, tmp_path: Path, write_set) -> None:
    fake = write_set(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    for part in ("train", "test"):
        stored = torch.from_numpy(fake.images[part]).to(torch.uint8)
        upright = stored.transpose(1, 2) if name.startswith("emnist") else stored
        loaded = getattr(dataset, part)
        assert torch.equal(loaded.images[:, 0], upright)
        first = 1 if name == "emnist-letters" else 0
        assert loaded.labels.tolist() == (fake.labels[part] - first).tolist()


@names
def test_loaded_memory_is_contiguous_writable_and_not_the_file(name: str, tmp_path: Path, write_set) -> None:
    fake = write_set(name, tmp_path)
    before = fake.files["train-images"].read_bytes()
    dataset = load_dataset(name, tmp_path)
    assert dataset.train.images.is_contiguous()
    assert dataset.train.images.storage_offset() == 0
    dataset.train.images.fill_(1)
    assert fake.files["train-images"].read_bytes() == before


@names
def test_class_names_agree_with_torchvision(name: str) -> None:
    source = next(source for source in vars(torchvision_sets).values() if getattr(source, "name", None) == name)
    original = getattr(import_torchvision_datasets(), source.folder)
    theirs = original.classes if source.split is None else original.classes_split_dict[source.split]
    assert [label.split(" - ")[0] for label in theirs[source.first_label :]] == list(source.class_names)


@names
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_an_error_that_names_it(
    name: str, file: str, tmp_path: Path, write_set, raises_data_error
) -> None:
    path = write_set(name, tmp_path).files[file]
    path.write_bytes(path.read_bytes()[:-1])
    with raises_data_error(path, "truncated", "delete it", "--data-dir", "--dataset digits"):
        load_dataset(name, tmp_path)


@names
@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_that_cannot_be_downloaded_is_named(
    name: str, file: str, tmp_path: Path, write_set, raises_data_error
) -> None:
    path = write_set(name, tmp_path).files[file]
    path.unlink()
    with raises_data_error(path.parent, f"lacks {path.name},", "no mirror answered", "--dataset digits"):
        load_dataset(name, tmp_path)


@names
def test_nothing_on_disk_and_no_network_is_an_error(name: str, tmp_path: Path, raises_data_error) -> None:
    with raises_data_error(tmp_path, name, "no mirror answered within 5 s", "http://127.0.0.1:1/", "connect"):
        load_dataset(name, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_corrupt_file_is_found_before_a_missing_one_is_downloaded(
    tmp_path: Path, write_set, raises_data_error, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "first_answer", lambda *_: pytest.fail("asked for a mirror"))
    fake = write_set("mnist", tmp_path)
    fake.files["train-labels"].unlink()
    fake.files["train-images"].write_bytes(b"short")
    with raises_data_error(fake.files["train-images"], "has 5 bytes"):
        load_dataset("mnist", tmp_path)


def test_a_label_out_of_the_sets_own_range_is_refused(
    tmp_path: Path, write_set, idx_bytes: Callable[..., bytes], raises_data_error
) -> None:
    path = write_set("emnist-letters", tmp_path).files["test-labels"]
    path.write_bytes(idx_bytes(np.zeros(50)))
    with raises_data_error(path, "label 0 at position 0", "expected 1 to 26"):
        load_dataset("emnist-letters", tmp_path)


def test_unequal_counts_are_refused(tmp_path: Path, write_set, idx_bytes, raises_data_error) -> None:
    path = write_set("mnist", tmp_path).files["test-labels"]
    path.write_bytes(idx_bytes(np.zeros(49)))
    with raises_data_error(path, "49 labels", "expected 50"):
        load_dataset("mnist", tmp_path)


def test_data_dir_that_is_a_file_is_refused(tmp_path: Path, raises_data_error) -> None:
    (tmp_path / "file").write_text("not a folder")
    with raises_data_error(tmp_path / "file", "cannot be read", "--data-dir"):
        load_dataset("mnist", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("mode", [0o000, 0o600])
def test_forbidden_folder_is_refused(mode: int, tmp_path: Path, write_set, raises_data_error) -> None:
    raw = write_set("mnist", tmp_path).raw
    raw.chmod(mode)
    try:
        with raises_data_error(raw, "Permission denied", "--data-dir"):
            load_dataset("mnist", tmp_path)
    finally:
        raw.chmod(0o700)


def test_a_folder_that_cannot_be_written_is_a_data_error(
    tmp_path: Path, raises_data_error, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "first_answer", lambda urls, _: urls[0])

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "makedirs", forbidden)
    with raises_data_error(tmp_path, "download failed", "Permission denied", "--data-dir"):
        load_dataset("mnist", tmp_path)


def test_read_only_files_load(tmp_path: Path, write_set) -> None:
    fake = write_set("mnist", tmp_path)
    for path in fake.files.values():
        path.chmod(0o400)
    fake.raw.chmod(0o500)
    try:
        assert len(load_dataset("mnist", tmp_path).test.labels) == 50
    finally:
        fake.raw.chmod(0o700)


def test_processed_files_of_old_torchvision_versions_are_not_preferred(tmp_path: Path, write_set) -> None:
    fake = write_set("mnist", tmp_path)
    processed = fake.raw.parent / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)), processed / name)
    assert len(load_dataset("mnist", tmp_path).train.labels) == 60


def test_the_two_splits_of_emnist_share_a_folder(tmp_path: Path, write_set) -> None:
    write_set("emnist-letters", tmp_path)
    write_set("emnist-balanced", tmp_path)
    shutil.rmtree(tmp_path / "MNIST", ignore_errors=True)
    assert load_dataset("emnist-letters", tmp_path).classes == 26
    assert load_dataset("emnist-balanced", tmp_path).classes == 47
