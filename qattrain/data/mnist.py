"""MNIST and its four relatives: found on disk or downloaded by torchvision, checked, and read.

torchvision's layout is kept (`MNIST/raw/train-images-idx3-ubyte`, ...), so that files of other programs are found. What
is added: each file is validated before it is parsed, a download cannot hang, every failure is one DataError.

An IDX file is a big-endian header (magic number, then one 32-bit size per dimension) and the bytes themselves:
0x00000803, N, 28, 28 and N*784 pixels, or 0x00000801, N and N labels (http://yann.lecun.com/exdb/mnist). torchvision
checks existence only; with a truncated or foreign file it stops at an assertion, or trains on garbage.

torchvision's downloads have no deadline, and a name server that never answers blocks a thread beyond any socket
timeout. So each mirror is asked in a daemon thread of its own, and only the waiting is bounded. urllib asks, so the
proxies of the environment are honoured.
"""

import http.client
import importlib
import queue
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qattrain.data.dataset import IMAGE_SIDE, Dataset, ImageSet
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


PROBE_SECONDS = 5.0
STALL_SECONDS = 30.0


def first_answer(urls: Sequence[str], seconds: float) -> str | None:
    """The URL that was first to answer a GET with success, or None if none did within `seconds` in total.

    Bodies are not read. Refused, unresolved, an error status and silence all count as no answer; never raises for them.
    """
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(target=_ask, args=(url, seconds, answers), daemon=True).start()
    deadline = time.monotonic() + seconds
    for _ in urls:
        try:
            answered = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if answered is not None:
            return answered
    return None


@contextmanager
def stall_timeout() -> Iterator[None]:
    """Inside, a connection that is silent for 30 s raises TimeoutError also where nobody asked for a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _ask(url: str, seconds: float, answers: "queue.SimpleQueue[str | None]") -> None:
    answer = None
    try:
        # A GET under torchvision's own name: servers that refuse HEAD or Python-urllib would serve the download.
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
        with urllib.request.urlopen(request, timeout=seconds):
            answer = url
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: an address or proxy setting that is no URL
        pass
    finally:
        answers.put(answer)


_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_operators: list[Any] = []  # declarations last as long as their Library: keep it


@dataclass(frozen=True)
class Source:
    """One dataset of torchvision: its class there (also the folder), its split (EMNIST only), its names and labels.

    `first_label` is the label that the files give to `class_names[0]`; `transposed`: rows and columns are swapped.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]
    split: str | None = None
    first_label: int = 0
    transposed: bool = False

    def pairs(self, data_dir: Path) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """The files ((train images, train labels), (test images, test labels)) in torchvision's layout."""
        raw = data_dir / self.folder / "raw"
        parts = ("train", "t10k") if self.split is None else (f"emnist-{self.split}-train", f"emnist-{self.split}-test")
        train, test = ((raw / f"{part}-images-idx3-ubyte", raw / f"{part}-labels-idx1-ubyte") for part in parts)
        return train, test


DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
LETTER_NAMES = tuple("abcdefghijklmnopqrstuvwxyz")
# Fifteen lower-case letters look like their capitals and are merged with them (Cohen et al. 2017, arXiv:1702.05373).
BALANCED_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")

MNIST = Source("mnist", "MNIST", DIGIT_NAMES)
FASHION_MNIST = Source("fashion-mnist", "FashionMNIST", FASHION_NAMES)
KMNIST = Source("kmnist", "KMNIST", KMNIST_NAMES)
EMNIST_BALANCED = Source("emnist-balanced", "EMNIST", BALANCED_NAMES, split="balanced", transposed=True)
EMNIST_LETTERS = Source("emnist-letters", "EMNIST", LETTER_NAMES, split="letters", first_label=1, transposed=True)

SOURCES = (MNIST, FASHION_MNIST, KMNIST, EMNIST_BALANCED, EMNIST_LETTERS)


def load_source(source: Source, data_dir: Path) -> Dataset:
    """The dataset from its files under `data_dir`, downloaded by torchvision if some are missing.

    Raises DataError if a file is corrupt or unreadable, or missing and cannot be downloaded (given up after 5 s without
    a mirror), or if torchvision cannot be imported.
    """
    if missing := _check_files(source, data_dir):
        _download(source, _reader(source), data_dir, missing)
        if missing := _check_files(source, data_dir):
            raise DataError(f"{missing[0]}: missing even after the download, expected an IDX file; {ELSEWHERE}")
    # Checked files are read here: importing torchvision for it would take longer than the first training steps.
    train, test = (_read(source, *pair) for pair in source.pairs(data_dir))
    return Dataset(source.name, source.class_names, train, test)


def is_on_disk(source: Source, data_dir: Path) -> bool:
    """Whether any file of the set lies under `data_dir`, or all of its archives: then a failure is an error to show.

    Raises DataError if the folder cannot be looked into.
    """
    if any(is_present(path) for pair in source.pairs(data_dir) for path in pair):
        return True
    return is_present(data_dir / source.folder) and _archives_intact(_reader(source), source, data_dir)


def answering_mirror(source: Source) -> str | None:
    """The URL of the set's first file at the mirror that answers first, or None if none does within 5 s in total."""
    return first_answer(list(_probe_urls(_reader(source), source)), PROBE_SECONDS)


def import_torchvision_datasets() -> ModuleType:
    """`torchvision.datasets`, also where torchvision was built for another torch, as PyPI's is next to a CPU torch.

    There torchvision's compiled operators do not load and its import stops at the first mention of one. Reading
    datasets needs none, so the two mentioned are declared, without an implementation. Raises DataError if that does not
    help.
    """
    try:
        try:
            return importlib.import_module("torchvision.datasets")
        except RuntimeError as error:
            if str(error) != _MISSING_OPERATOR:
                raise
        _declare_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported: its modules would be taken for whole ones
        return importlib.import_module("torchvision.datasets")
    except Exception as error:  # a foreign package's import can fail in any way; all of them are a broken installation
        raise DataError(
            f"torchvision could not be imported ({type(error).__name__}: {_one_line(error)}), expected one built for "
            f"torch {torch.__version__}; reinstall both together, or use --dataset digits, which needs none"
        ) from error


def _declare_operators() -> None:
    untyped: Any = torch.library  # torch gives Library no annotations, so a strict type check refuses it
    library = untyped.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)


def _check_files(source: Source, data_dir: Path) -> list[Path]:
    """Validates what is there, pairs together where both halves are, and returns what is missing."""
    labels = range(source.first_label, source.first_label + len(source.class_names))
    missing = []
    for image_file, label_file in source.pairs(data_dir):
        if is_present(image_file) and is_present(label_file):
            check_pair(image_file, label_file, label_range=labels)
        elif is_present(image_file):
            check_idx(image_file, kind="images")
        elif is_present(label_file):
            check_idx(label_file, kind="labels", labels=labels)
        missing += [path for path in (image_file, label_file) if not is_present(path)]
    return missing


def _reader(source: Source) -> Any:
    """torchvision's class for the set, without its preference for an unchecked `processed/*.pt` of older versions."""
    original = getattr(import_torchvision_datasets(), source.folder)
    # The same name, because torchvision derives the folder from it.
    return type(source.folder, (original,), {"_check_legacy_exist": lambda _self: False})


def _read(source: Source, image_file: Path, label_file: Path) -> ImageSet:
    images = torch.from_numpy(read_idx(image_file, kind="images")).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)
    labels = torch.from_numpy(read_idx(label_file, kind="labels")).long() - source.first_label
    return ImageSet(images.transpose(2, 3).contiguous() if source.transposed else images, labels)


def _archives(reader: Any, source: Source) -> list[tuple[str, str]]:
    """(file name, MD5) of every archive that torchvision downloads for the set."""
    return list(reader.resources) if source.split is None else [(reader.url.rpartition("/")[2], reader.md5)]


def _archives_intact(reader: Any, source: Source, data_dir: Path) -> bool:
    """Whether all archives lie in place: torchvision then unpacks them and needs no network."""
    check_integrity = importlib.import_module("torchvision.datasets.utils").check_integrity
    raw = data_dir / source.folder / "raw"
    try:
        return all(check_integrity(raw / name, md5) for name, md5 in _archives(reader, source))
    except OSError:  # an archive that cannot be read is of no use, and the download will say so
        return False


def _probe_urls(reader: Any, source: Source) -> dict[str, str]:
    """What to ask for, the first file at each mirror, with the mirror it stands for."""
    mirrors = reader.mirrors if source.split is None else [reader.url.rpartition("/")[0] + "/"]
    first_file = _archives(reader, source)[0][0]
    return {mirror + first_file: mirror for mirror in mirrors}


def _download(source: Source, reader: Any, data_dir: Path, missing: list[Path]) -> None:
    names = ", ".join(path.name for path in missing)
    lacking = f"{missing[0].parent}: {source.name} lacks {names}"
    try:
        if not _archives_intact(reader, source, data_dir):
            urls = _probe_urls(reader, source)
            answered = first_answer(list(urls), PROBE_SECONDS)
            if answered is None:
                raise DataError(
                    f"{lacking}, expected 4 files, and no mirror answered within {PROBE_SECONDS:g} s "
                    f"({', '.join(urls.values())}); connect to the network, {ELSEWHERE}"
                )
            # torchvision asks the mirrors in order, and would wait for a silent one first.
            reader.mirrors = sorted(urls.values(), key=lambda mirror: mirror != urls[answered])
        with stall_timeout():
            for train in (True, False):
                split = {} if source.split is None else {"split": source.split}
                reader(data_dir, train=train, download=True, **split)
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{lacking}, expected 4 files, and the download failed ({type(error).__name__}: {_one_line(error)}); "
            f"try again, {ELSEWHERE}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
