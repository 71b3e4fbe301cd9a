"""MNIST and its four relatives: found on disk or downloaded by torchvision, checked, and read.

torchvision's layout is kept (`MNIST/raw/train-images-idx3-ubyte`, ...), so that files of other programs are found. What
is added: each file is checked before it is read, its content when it is read (`data/published.py`), a download cannot
hang, and every failure is one DataError.

An IDX file is a big-endian header (magic number, then one 32-bit size per dimension) and the bytes themselves:
0x00000803, N, 28, 28 and N*784 pixels, or 0x00000801, N and N labels (http://yann.lecun.com/exdb/mnist). torchvision
only checks that it exists; with a truncated or foreign file it stops at an assertion, or trains on garbage.

torchvision's downloads have no deadline, and a name server that never answers blocks a thread beyond any socket
timeout. So each mirror is asked in a daemon thread of its own, and only the wait for it is bounded. The request goes
through urllib, which uses the proxies of the environment.
"""

import http.client
import importlib
import os
import queue
import socket
import stat
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qattrain.data import published
from qattrain.data.dataset import IMAGE_SIDE, Dataset, ImageSet
from qattrain.errors import DataError, reason, system_errors
from qattrain.files import open_at_once

ELSEWHERE = "point --data-dir elsewhere, or train with --dataset digits"
REMEDY = f"delete it so that it is downloaded again, {ELSEWHERE}"
PROBE_SECONDS = 5.0
STALL_SECONDS = 30.0
MOST_ITEMS = 200_000  # in a file: emnist-letters, the largest set, has 124,800

Kind = Literal["images", "labels"]


@dataclass(frozen=True)
class Source:
    """One dataset of torchvision: its class there (also the folder), its split (EMNIST only), its names and labels.

    `first_label` is the files' label for `class_names[0]`; `transposed`: rows and columns are swapped.
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


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
# Fifteen lower-case letters look like their capitals and are merged with them (Cohen et al. 2017, arXiv:1702.05373).
BALANCED = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")

MNIST = Source("mnist", "MNIST", tuple("0123456789"))
FASHION_MNIST = Source("fashion-mnist", "FashionMNIST", FASHION)
KMNIST = Source("kmnist", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"))
EMNIST_BALANCED = Source("emnist-balanced", "EMNIST", BALANCED, split="balanced", transposed=True)
EMNIST_LETTERS = Source("emnist-letters", "EMNIST", LETTERS, split="letters", first_label=1, transposed=True)

SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST, KMNIST, EMNIST_BALANCED, EMNIST_LETTERS)}


def load_source(source: Source, data_dir: Path) -> Dataset:
    """The dataset from its files under `data_dir`; torchvision downloads them if some are missing.

    The form of all files is checked here; each part is read, and its content checked, when it is first used. Raises
    DataError if a file is corrupt or unreadable, or missing and cannot be downloaded (no mirror answers within 5 s), or
    if torchvision cannot be imported.
    """
    if missing := _check_files(source, data_dir):
        _download(source, data_dir, missing)
        if missing := _check_files(source, data_dir):
            raise DataError(f"{missing[0]}: missing even after the download, expected an IDX file; {ELSEWHERE}")
    # Read without torchvision: importing it would take longer than the first training steps.
    load_train, load_test = (partial(_read, source, *pair) for pair in source.pairs(data_dir))
    return Dataset(source.name, source.class_names, load_train, load_test)


def is_on_disk(source: Source, data_dir: Path) -> bool:
    """Whether any file of the set lies under `data_dir`, or all of its archives: then a failure must be shown.

    Raises DataError if the folder cannot be read.
    """
    if any(is_present(path) for pair in source.pairs(data_dir) for path in pair):
        return True
    return is_present(data_dir / source.folder) and _archives_intact(_reader(source), source, data_dir)


def answering_mirror(source: Source) -> str | None:
    """The first mirror to answer a request for the set's first file, or None if none does within 5 s in total."""
    reader = _reader(source)
    first_file = _archives(reader, source)[0][0]
    answered = first_answer([mirror + first_file for mirror in _mirrors(reader, source)], PROBE_SECONDS)
    return None if answered is None else answered.removesuffix(first_file)


def _check_files(source: Source, data_dir: Path) -> list[Path]:
    """Checks the files that exist, in pairs where both do, and returns the missing ones. Raises DataError."""
    labels = range(source.first_label, source.first_label + len(source.class_names))
    missing = []
    for pair in source.pairs(data_dir):
        present = [path for path in pair if is_present(path)]
        if len(present) == 2:
            check_pair(*pair, label_range=labels)
        elif present:
            check_idx(present[0], kind="images" if present[0] == pair[0] else "labels", labels=labels)
        missing += [path for path in pair if path not in present]
    return missing


def is_present(path: Path) -> bool:
    """Whether `path` exists; DataError where that cannot be known (no permission, a file in place of a folder)."""
    with _readable(path):
        try:
            path.stat()  # Path.exists would call "not permitted" absent on some Python versions
        except FileNotFoundError:
            return False
    return True


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


_MAGIC: dict[Kind, int] = {"images": 0x00000803, "labels": 0x00000801}
_HEADER_BYTES: dict[Kind, int] = {"images": 16, "labels": 8}
_WHAT: dict[Kind, str] = {"images": f"{IMAGE_SIDE}x{IMAGE_SIDE} images", "labels": "labels"}


def check_idx(path: Path, *, kind: Kind, labels: range = range(10)) -> int:
    """Number of items in an uncompressed IDX file of 28x28 uint8 images, or of uint8 labels that all lie in `labels`.

    Raises DataError if the file is missing, unreadable, too short, too long or without items, if its magic number or
    image size is wrong, or if a label is out of range.
    """
    if not is_present(path):
        raise DataError(f"{path}: missing, expected an uncompressed IDX file; download it, {ELSEWHERE}")
    header_bytes = _HEADER_BYTES[kind]
    with _opened(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header = file.read(header_bytes)
    if len(header) < header_bytes:
        raise DataError(f"{path}: has {file_bytes} bytes, expected a header of {header_bytes} and more; {REMEDY}")
    magic, count, *side = struct.unpack(f">{header_bytes // 4}I", header)
    if magic != _MAGIC[kind]:
        raise DataError(f"{path}: magic number {magic:#010x}, expected {_MAGIC[kind]:#010x} (IDX {kind}); {REMEDY}")
    if side not in ([], [IMAGE_SIDE, IMAGE_SIDE]):
        raise DataError(f"{path}: images of {side[0]}x{side[1]}, expected {IMAGE_SIDE}x{IMAGE_SIDE}; {REMEDY}")
    if not 1 <= count <= MOST_ITEMS:
        allowed = "at least 1" if count == 0 else f"at most {MOST_ITEMS}"
        raise DataError(f"{path}: holds {count} {_WHAT[kind]}, expected {allowed}; {REMEDY}")
    expected_bytes = header_bytes + count * (IMAGE_SIDE * IMAGE_SIDE if kind == "images" else 1)
    if file_bytes != expected_bytes:
        wrong = "truncated" if file_bytes < expected_bytes else "too long"
        raise DataError(
            f"{path}: {wrong}, has {file_bytes} bytes, expected {expected_bytes} ({count} {_WHAT[kind]}); {REMEDY}"
        )
    if kind == "labels":
        found = read_idx(path, kind="labels")
        wrong_at = np.flatnonzero((found < labels.start) | (found >= labels.stop))
        if len(wrong_at):
            raise DataError(
                f"{path}: label {found[wrong_at[0]]} at position {wrong_at[0]}, "
                f"expected {labels.start} to {labels.stop - 1}; {REMEDY}"
            )
    return int(count)


def read_idx(path: Path, *, kind: Kind) -> NDArray[np.uint8]:
    """The bytes after the header of a file that `check_idx` accepted, uint8 of one dimension. Raises DataError."""
    return _content(path, kind)[1]


def _content(path: Path, kind: Kind) -> tuple[bytes, NDArray[np.uint8]]:
    """Header and the bytes after it, no more than the header says. Raises DataError."""
    with _opened(path) as file:
        header = file.read(_HEADER_BYTES[kind])
        most = MOST_ITEMS * (IMAGE_SIDE * IMAGE_SIDE if kind == "images" else 1)
        return header, np.fromfile(file, np.uint8, most)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file to read from, without waiting as a pipe would. Raises DataError, also for what is no regular file."""
    with _readable(path), open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DataError(f"{path}: is not a regular file, expected an uncompressed IDX file; {REMEDY}")
        yield file


def _readable(path: Path) -> AbstractContextManager[None]:
    """Within it an OSError becomes a DataError about `path`."""
    return system_errors(DataError, f"{path}: cannot be read", f"correct the path or its permissions, {ELSEWHERE}")


def _read(source: Source, image_file: Path, label_file: Path) -> ImageSet:
    images = torch.from_numpy(_checked(source, image_file, "images")).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)
    labels = torch.from_numpy(_checked(source, label_file, "labels")).long() - source.first_label
    return ImageSet(images.transpose(2, 3).contiguous() if source.transposed else images, labels)


def _checked(source: Source, path: Path, kind: Kind) -> NDArray[np.uint8]:
    """What `read_idx` returns, if it is what was published. Raises DataError."""
    header, values = _content(path, kind)
    if why := published.difference(source.name, path, header, values):
        raise DataError(
            f"{path}: {why}, so it is damaged or not {source.name}; {REMEDY}; images of your own are npz:PATH or "
            "folder:PATH"
        )
    return values


def _download(source: Source, data_dir: Path, missing: list[Path]) -> None:
    names = ", ".join(path.name for path in missing)
    lacking = f"{missing[0].parent}: {source.name} lacks {names}, expected 4 files"
    reader = _reader(source)
    try:
        if not _archives_intact(reader, source, data_dir):
            mirrors = _mirrors(reader, source)
            answering = answering_mirror(source)
            if answering is None:
                raise DataError(
                    f"{lacking}, and no mirror answered within {PROBE_SECONDS:g} s ({', '.join(mirrors)}); "
                    f"connect to the network, {ELSEWHERE}"
                )
            # torchvision asks the mirrors in order, and would wait for a silent one first.
            reader.mirrors = sorted(mirrors, key=lambda mirror: mirror != answering)
        with stall_timeout():
            for train in (True, False):
                split = {} if source.split is None else {"split": source.split}
                reader(data_dir, train=train, download=True, **split)
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{lacking}, and the download failed ({type(error).__name__}: {reason(error)}); try again, {ELSEWHERE}"
        ) from error


def _reader(source: Source) -> Any:
    """torchvision's class for the set, without its preference for an unchecked `processed/*.pt` of older versions."""
    original = getattr(import_torchvision_datasets(), source.folder)
    # The same name, because torchvision derives the folder from it.
    return type(source.folder, (original,), {"_check_legacy_exist": lambda _self: False})


def _archives(reader: Any, source: Source) -> list[tuple[str, str]]:
    """(file name, MD5) of every archive that torchvision downloads for the set."""
    return list(reader.resources) if source.split is None else [(reader.url.rpartition("/")[2], reader.md5)]


def _mirrors(reader: Any, source: Source) -> list[str]:
    return list(reader.mirrors) if source.split is None else [reader.url.rpartition("/")[0] + "/"]


def _archives_intact(reader: Any, source: Source, data_dir: Path) -> bool:
    """Whether all archives are there: torchvision then unpacks them and needs no network."""
    check_integrity = importlib.import_module("torchvision.datasets.utils").check_integrity
    raw = data_dir / source.folder / "raw"
    try:
        return all(check_integrity(raw / name, md5) for name, md5 in _archives(reader, source))
    except OSError:  # an archive that cannot be read is of no use, and the download will report it
        return False


def first_answer(urls: Sequence[str], seconds: float) -> str | None:
    """The first URL to answer a GET with success, or None if none does within `seconds` in total.

    Bodies are not read. Refused, unresolved, an error status and silence all count as no answer; none of them raises.
    """
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(target=_ask, args=(url, seconds, answers), daemon=True).start()
    deadline = time.monotonic() + seconds
    with suppress(queue.Empty):
        for _ in urls:
            answered = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if answered is not None:
                return answered
    return None


def _ask(url: str, seconds: float, answers: "queue.SimpleQueue[str | None]") -> None:
    answer = None
    try:
        # A GET with torchvision's own user agent: some servers refuse HEAD or Python-urllib but serve the download.
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
        with urllib.request.urlopen(request, timeout=seconds):
            answer = url
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: an address or proxy setting that is no URL
        pass
    finally:
        answers.put(answer)


@contextmanager
def stall_timeout() -> Iterator[None]:
    """Inside, a connection that is silent for 30 s raises TimeoutError, also where nobody set a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_operators: list[Any] = []  # declarations last as long as their Library object, so it is kept


def import_torchvision_datasets() -> ModuleType:
    """`torchvision.datasets`, even where torchvision was built for another torch, as PyPI's is next to a CPU torch.

    There torchvision's compiled operators do not load, and its import stops where one is first mentioned. Reading
    datasets needs none, so the two that are mentioned get declared without an implementation. Raises DataError if that
    does not help.
    """
    try:
        try:
            return importlib.import_module("torchvision.datasets")
        except RuntimeError as error:
            if str(error) != _MISSING_OPERATOR:
                raise
        _declare_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported: its modules would be mistaken for whole ones
        return importlib.import_module("torchvision.datasets")
    except Exception as error:  # a package's import can fail in any way; all of them are a broken installation
        raise DataError(
            f"torchvision could not be imported ({type(error).__name__}: {reason(error)}), expected one built for "
            f"torch {torch.__version__}; reinstall both together, or use --dataset digits, which does not need it"
        ) from error


def _declare_operators() -> None:
    untyped: Any = torch.library  # torch gives Library no annotations, so a strict type check refuses it
    library = untyped.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)
