"""The download path for real, from a server on 127.0.0.1."""

import gc
import gzip
import hashlib
import time
import zipfile
from pathlib import Path

import pytest
import torch

from qattrain.data import choose_dataset, load_dataset
from qattrain.data.mnist import import_torchvision_datasets


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def mirrored_mnist(served, tmp_path: Path, write_set, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working mirror of a small MNIST: its URL, already set in torchvision's class."""
    url, folder = served
    resources = []
    for path in write_set("mnist", tmp_path / "origin").files.values():
        archive = folder / f"{path.name}.gz"
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, md5(archive)))
    mnist = import_torchvision_datasets().MNIST
    monkeypatch.setattr(mnist, "resources", resources)
    monkeypatch.setattr(mnist, "mirrors", [url])
    return url


def same_as_origin(tmp_path: Path) -> bool:
    origin, loaded = (load_dataset("mnist", tmp_path / name) for name in ("origin", "data"))
    return torch.equal(origin.train.images, loaded.train.images) and torch.equal(origin.test.labels, loaded.test.labels)


@pytest.mark.usefixtures("mirrored_mnist")
def test_a_missing_set_is_downloaded_and_then_kept(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dataset("mnist", tmp_path / "data").classes == 10
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err
    monkeypatch.setattr(import_torchvision_datasets().MNIST, "mirrors", [])
    assert same_as_origin(tmp_path)


@pytest.mark.usefixtures("mirrored_mnist")
def test_a_single_missing_file_is_downloaded(tmp_path: Path, write_set) -> None:
    write_set("mnist", tmp_path / "data").files["test-labels"].unlink()
    assert same_as_origin(tmp_path)


def test_a_silent_first_mirror_does_not_hold_up_the_second(
    tmp_path: Path, mirrored_mnist: str, silent_mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_torchvision_datasets().MNIST, "mirrors", [silent_mirror, mirrored_mnist])
    begin = time.monotonic()
    assert same_as_origin(tmp_path)
    assert time.monotonic() - begin < 4


@pytest.mark.usefixtures("mirrored_mnist")
def test_intact_archives_on_disk_need_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_dataset("mnist", tmp_path / "data")
    for path in (tmp_path / "data" / "MNIST" / "raw").glob("*ubyte"):
        path.unlink()
    monkeypatch.setattr(import_torchvision_datasets().MNIST, "mirrors", ["http://127.0.0.1:1/"])
    assert choose_dataset(tmp_path / "data") == ("mnist", None)
    assert same_as_origin(tmp_path)


@pytest.mark.usefixtures("mirrored_mnist")
def test_auto_is_mnist_when_a_mirror_answers(tmp_path: Path) -> None:
    assert choose_dataset(tmp_path / "data") == ("mnist", None)
    assert not (tmp_path / "data").exists()  # asked, not downloaded


@pytest.mark.usefixtures("mirrored_mnist")
def test_a_download_of_other_content_is_refused(tmp_path: Path, served, raises_data_error) -> None:
    (served[1] / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"a login page"))
    with raises_data_error(tmp_path / "data", "download failed", "RuntimeError", "try again", "--dataset digits"):
        load_dataset("mnist", tmp_path / "data")


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.usefixtures("mirrored_mnist")
def test_a_mirror_without_a_file_is_a_data_error(tmp_path: Path, served, raises_data_error) -> None:
    (served[1] / "t10k-labels-idx1-ubyte.gz").unlink()
    with raises_data_error(tmp_path / "data", "download failed", "404", "--dataset digits"):
        load_dataset("mnist", tmp_path / "data")
    gc.collect()  # torchvision leaves the refused connection open: let it go here, where the warning is expected


def test_an_archive_that_does_not_unpack_is_a_data_error(
    tmp_path: Path, served, mirrored_mnist: str, monkeypatch: pytest.MonkeyPatch, raises_data_error
) -> None:
    assert mirrored_mnist
    archive = served[1] / "t10k-labels-idx1-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-9])
    mnist = import_torchvision_datasets().MNIST
    monkeypatch.setattr(mnist, "resources", [*mnist.resources[:-1], (archive.name, md5(archive))])
    with raises_data_error(tmp_path / "data", "download failed", "EOFError", "--dataset digits"):
        load_dataset("mnist", tmp_path / "data")


def test_emnist_is_downloaded_as_one_archive_of_all_splits(
    tmp_path: Path, served, write_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    archive = folder / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in write_set("emnist-letters", tmp_path / "origin").files.values():
            file.writestr(f"gzip/{path.name}.gz", gzip.compress(path.read_bytes()))
    emnist = import_torchvision_datasets().EMNIST
    monkeypatch.setattr(emnist, "url", url + archive.name)
    monkeypatch.setattr(emnist, "md5", md5(archive))
    origin, loaded = (load_dataset("emnist-letters", tmp_path / name) for name in ("origin", "data"))
    assert torch.equal(origin.train.images, loaded.train.images)
    assert torch.equal(origin.test.labels, loaded.test.labels)
