"""Small files in torchvision's layouts, mirrors on 127.0.0.1, and the real MNIST if it is available. No network."""

import hashlib
import http.server
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qattrain.data import published
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import DataError

# name: (folder, prefix of the training files, prefix of the test files, classes, label of the first class in the file)
LAYOUTS = {
    "mnist": ("MNIST", "train", "t10k", 10, 0),
    "fashion-mnist": ("FashionMNIST", "train", "t10k", 10, 0),
    "kmnist": ("KMNIST", "train", "t10k", 10, 0),
    "emnist-balanced": ("EMNIST", "emnist-balanced-train", "emnist-balanced-test", 47, 0),
    "emnist-letters": ("EMNIST", "emnist-letters-train", "emnist-letters-test", 26, 1),
}
COUNTS = {"train": 60, "test": 50}  # no fewer than 47: every class of every set occurs


@dataclass(frozen=True)
class FakeSet:
    """What was written: the arrays as they are in the files, by part, and the four files."""

    raw: Path
    images: dict[str, "np.ndarray[Any, Any]"]
    labels: dict[str, "np.ndarray[Any, Any]"]
    files: dict[str, Path]  # train-images, train-labels, test-images, test-labels


@pytest.fixture
def idx_bytes() -> Callable[["np.ndarray[Any, Any]"], bytes]:
    """An array as the bytes of an IDX file."""

    def encode(array: "np.ndarray[Any, Any]") -> bytes:
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        return header + array.astype(np.uint8).tobytes()

    return encode


@pytest.fixture
def write_set(
    idx_bytes: Callable[["np.ndarray[Any, Any]"], bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Path], FakeSet]:
    """Writes a small valid set by its name under a data folder, and makes its SHA-256 the published ones."""

    def write(name: str, data_dir: Path) -> FakeSet:
        folder, train, test, classes, first = LAYOUTS[name]
        raw = data_dir / folder / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        fake = FakeSet(raw, {}, {}, {})
        for part, prefix in (("train", train), ("test", test)):
            fake.images[part] = rng.integers(0, 256, (COUNTS[part], 28, 28))
            fake.labels[part] = np.arange(COUNTS[part]) % classes + first
            for kind, dimensions, array in (("images", 3, fake.images[part]), ("labels", 1, fake.labels[part])):
                path = raw / f"{prefix}-{kind}-idx{dimensions}-ubyte"
                path.write_bytes(idx_bytes(array))
                fake.files[f"{part}-{kind}"] = path
        if name in published.SHA256:
            known = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in fake.files.values()}
            monkeypatch.setitem(published.SHA256, name, known)
        return fake

    return write


@pytest.fixture
def write_cifar10(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], FakeSet]:
    """Writes a small CIFAR-10 under a data folder, and makes its MD5s the ones that torchvision knows."""

    def write(data_dir: Path) -> FakeSet:
        raw = data_dir / "cifar-10-batches-py"
        raw.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        fake, known = FakeSet(raw, {}, {}, {}), {}
        for part, count in COUNTS.items():
            fake.images[part] = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
            fake.labels[part] = np.arange(count) % 10
            names = [f"data_batch_{n}" for n in range(1, 6)] if part == "train" else ["test_batch"]
            batches = np.split(fake.images[part], len(names)), np.split(fake.labels[part], len(names))
            known[part] = []
            for name, images, labels in zip(names, *batches, strict=True):
                content = {"batch_label": name, "labels": labels.tolist(), "data": images.reshape(len(images), -1)}
                (raw / name).write_bytes(pickle.dumps(content, 2))
                known[part].append([name, hashlib.md5((raw / name).read_bytes(), usedforsecurity=False).hexdigest()])
                fake.files[f"{part}-images" if len(known[part]) == 1 else name] = raw / name
        reader = import_torchvision_datasets().CIFAR10
        monkeypatch.setattr(reader, "train_list", known["train"])
        monkeypatch.setattr(reader, "test_list", known["test"])
        return fake

    return write


@pytest.fixture
def raises_data_error() -> Callable[..., AbstractContextManager[None]]:
    """Expects a DataError of one line that mentions every given text."""

    @contextmanager
    def expect(*texts: object) -> Iterator[None]:
        with pytest.raises(DataError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for text in texts:
            assert str(text) in message

    return expect


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mirror of every set is a port of this machine that refuses connections."""
    datasets = import_torchvision_datasets()
    monkeypatch.setenv("no_proxy", "*")
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        monkeypatch.setattr(getattr(datasets, name), "mirrors", ["http://127.0.0.1:1/"])
    monkeypatch.setattr(datasets.EMNIST, "url", "http://127.0.0.1:1/gzip.zip")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")


@pytest.fixture
def silent_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that accepts connections (the kernel does) and never answers."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A mirror that works: its URL, and the folder whose files it serves."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            """Requests are not logged: the tests check what is printed."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:
            """A probe closes the connection before the body, which is expected: no traceback."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder with the real MNIST, from QATTRAIN_DATA_DIR or beside the repository; skips if there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    data_dir = Path(os.environ.get("QATTRAIN_DATA_DIR", beside))
    if not (data_dir / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no real MNIST in {data_dir}: set QATTRAIN_DATA_DIR to a folder that holds MNIST/raw")
    return data_dir
