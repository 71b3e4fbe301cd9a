"""CIFAR-10: pixels and labels are those of the files, and no pickle is read whose MD5 is not the published one."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from qattrain.data import load_dataset
from qattrain.data.cifar import CLASSES, TEST_FILES, TRAIN_FILES
from qattrain.data.mnist import import_torchvision_datasets

pytestmark = pytest.mark.usefixtures("offline")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_pixels_and_labels_are_those_of_the_files(tmp_path: Path, write_cifar10) -> None:
    fake = write_cifar10(tmp_path)
    dataset = load_dataset("cifar10", tmp_path)
    assert (dataset.class_names, dataset.shape, dataset.digest) == (CLASSES, (3, 32, 32), None)
    for part in ("train", "test"):
        loaded = getattr(dataset, part)
        assert torch.equal(loaded.images, torch.from_numpy(fake.images[part]))
        assert loaded.labels.tolist() == fake.labels[part].tolist()


def test_files_and_classes_are_those_that_torchvision_reads(tmp_path: Path, write_cifar10) -> None:
    reader = import_torchvision_datasets().CIFAR10
    assert [name for name, _ in reader.train_list] == list(TRAIN_FILES)
    assert [name for name, _ in reader.test_list] == list(TEST_FILES)
    fake = write_cifar10(tmp_path)
    meta = fake.raw / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    reader = type("Reader", (reader,), {"meta": {"filename": meta.name, "key": "label_names", "md5": md5(meta)}})
    theirs = reader(tmp_path, train=False)
    assert torch.equal(
        torch.from_numpy(theirs.data.transpose(0, 3, 1, 2)), load_dataset("cifar10", tmp_path).test.images
    )


@pytest.mark.parametrize("name", [*TRAIN_FILES, *TEST_FILES])
def test_a_pickle_with_another_md5_is_never_unpickled(
    name: str, tmp_path: Path, write_cifar10, raises_data_error
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was run"),)

    fake = write_cifar10(tmp_path)
    (fake.raw / name).write_bytes(pickle.dumps(Evil()))
    dataset = load_dataset("cifar10", tmp_path)
    with raises_data_error(fake.raw / name, "MD5", "not read", "delete it", "--data-dir"):
        _ = dataset.test if name in TEST_FILES else dataset.train
    assert not (tmp_path / "was run").exists()


def test_evaluating_reads_the_test_images_only(tmp_path: Path, write_cifar10) -> None:
    fake = write_cifar10(tmp_path)
    (fake.raw / "data_batch_1").write_bytes(b"damaged")
    assert len(load_dataset("cifar10", tmp_path).test.labels) == 50


def test_a_missing_file_that_cannot_be_downloaded_is_named(tmp_path: Path, write_cifar10, raises_data_error) -> None:
    fake = write_cifar10(tmp_path)
    (fake.raw / "test_batch").unlink()
    with raises_data_error(fake.raw, "lacks test_batch,", "no mirror answered within 5 s", "--dataset digits"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_forbidden_file_is_named(tmp_path: Path, write_cifar10, raises_data_error) -> None:
    path = write_cifar10(tmp_path).raw / "test_batch"
    path.chmod(0)
    with raises_data_error(path, "Permission denied", "permissions"):
        _ = load_dataset("cifar10", tmp_path).test


@pytest.fixture
def archive(served, tmp_path: Path, write_cifar10, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive on a working mirror, set in torchvision's class. Without a meta file: it is not read."""
    url, folder = served
    fake, path = write_cifar10(tmp_path / "origin"), folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for batch in fake.files.values():
            file.add(batch, f"cifar-10-batches-py/{batch.name}")
    reader = import_torchvision_datasets().CIFAR10
    monkeypatch.setattr(reader, "url", url + path.name)
    monkeypatch.setattr(reader, "tgz_md5", md5(path))
    return path


def test_a_missing_set_is_downloaded_and_then_kept(tmp_path: Path, archive: Path) -> None:
    origin, loaded = (load_dataset("cifar10", tmp_path / name) for name in ("origin", "data"))
    assert torch.equal(origin.train.images, loaded.train.images)
    archive.unlink()
    assert load_dataset("cifar10", tmp_path / "data").test.labels.tolist() == origin.test.labels.tolist()
    (tmp_path / "data" / "cifar-10-batches-py" / "data_batch_3").unlink()  # the archive is still there
    assert torch.equal(origin.train.images, load_dataset("cifar10", tmp_path / "data").train.images)


def test_a_download_of_other_content_is_refused(tmp_path: Path, archive: Path, raises_data_error) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    archive.write_bytes(buffer.getvalue())
    with raises_data_error(tmp_path / "data", "download failed", "RuntimeError", "try again"):
        load_dataset("cifar10", tmp_path / "data")


def test_an_archive_without_the_files_is_a_data_error(
    tmp_path: Path, archive: Path, raises_data_error, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(archive, "w:gz"):
        pass
    monkeypatch.setattr(import_torchvision_datasets().CIFAR10, "tgz_md5", md5(archive))
    with raises_data_error(tmp_path / "data", "data_batch_1", "missing even after the download"):
        load_dataset("cifar10", tmp_path / "data")
