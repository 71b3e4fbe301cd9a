"""`folder:PATH`: pictures in class folders, decoded once.

    pets/cat/1.png   or   pets/train/cat/1.png
    pets/dog/2.jpg        pets/test/dog/2.jpg

A folder's name is its class; classes are numbered in the order of their names. With `train` and `test` folders, these
are the two parts; a `val` folder beside them is not used, and any other is refused. Without them a fifth of each class
is the test set, at least one image: those whose files have the smallest SHA-256. That is as good as drawn at random,
but the same in every run, with every seed, on every machine. Images are in the order of these SHA-256 too, so the first
N are a mixture of all classes.

Files whose names start with a dot, or do not end like a picture's (SUFFIXES), are ignored. Each picture is prepared by
`pictures.read_picture`.

Every run reads all files, to know their SHA-256. Decoding takes much longer, so its result is kept in the cache, as an
.npz file named after a hash of all files and of the settings. It is verified when it is read, and made again if it is
damaged. It holds plain arrays, so that reading it cannot run code.
"""

import hashlib
import io
import itertools
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qattrain.data.dataset import (
    MAX_FILE_BYTES,
    MAX_TOTAL_BYTES,
    Dataset,
    ImageSet,
    check_class_names,
    check_sides,
    own_dataset,
)
from qattrain.errors import DataError, system_errors
from qattrain.files import cache_dir, read_bounded, replace_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_PICTURES = 1_000_000
PARTS = ("train", "test")
UNUSED = ("val", "valid", "validation")  # a run holds out its own images, with --val-split
TEST_SHARE = 5  # one in so many images of each class, if the folder has no test images of its own
RESIZE = "bring all to one size with --image-size HxW, for example --image-size 32x32"
CACHE_FOLDER, CACHE_VERSION = "images", 1

Size = tuple[int, int]  # height, width


class Picture(NamedTuple):
    """A file of pictures, found and hashed. They sort by content. label: the number of its class."""

    digest: str
    label: int
    path: Path


def load_folder(path: Path, name: str, size: Size | None, color: bool) -> Dataset:
    """The dataset in the folder. name: what the dataset is called. size, color: as in `pictures.read_picture`.

    Raises DataError, which names the folder or file, if it is not as above, or if sizes differ and `size` is None.
    """
    with system_errors(DataError, f"{name}: {path} cannot be read", "correct the path or its permissions"):
        class_names, parts = _found(path, name)
    asked = {"version": CACHE_VERSION, "size": size, "color": color, "classes": class_names}
    content = [[(picture.digest, picture.label) for picture in part] for part in parts]
    key = hashlib.sha256(json.dumps([asked, content]).encode()).hexdigest()
    kept = cache_dir() / CACHE_FOLDER / f"{key}.npz"
    dataset = _read_cache(kept, name, class_names)
    if dataset is None:
        train, test = _decoded(parts, size, color)
        dataset = own_dataset(name, class_names, train, test)
        _write_cache(kept, dataset)
    return dataset


def _found(path: Path, name: str) -> tuple[list[str], list[list[Picture]]]:
    """The class names, and the pictures for training and for testing, each sorted. Raises DataError."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"{name}: {path.absolute()} {what}; give the folder that holds a folder of pictures for each class"
        )
    roots = [path / part for part in PARTS]
    if not (any(map(_folders, roots)) or all(root.is_dir() for root in roots)):
        class_names, pictures = _classes(path)  # `train` alone may well be a class
        return class_names, _split(path, class_names, pictures)
    others = [folder.name for folder in _folders(path) if folder.name not in (*PARTS, *UNUSED)]
    if others:
        raise DataError(
            f"{path} holds {' and '.join(PARTS)}, and besides them the folder {others[0]!r}, whose pictures belong to "
            "neither; move it into one of them, or away"
        )
    (class_names, train), (test_names, test) = (_classes(root) for root in roots)
    if class_names != test_names:
        odd = sorted({*class_names} ^ {*test_names})[0]
        has, lacks = roots if odd in class_names else roots[::-1]
        raise DataError(f"{has} has a class {odd!r}, {lacks} has not; both need the same class folders")
    return class_names, [sorted(train), sorted(test)]


def _classes(root: Path) -> tuple[list[str], list[Picture]]:
    """The class folders directly in `root`, in order, and all of their pictures. Raises DataError."""
    folders = _folders(root)
    if not folders:
        what = "has no class folders" if root.is_dir() else "is missing: train and test belong together"
        raise DataError(f"{root} {what}; put the pictures of each class into a folder of its own, like {root / 'cat'}")
    class_names = [folder.name for folder in folders]
    check_class_names(class_names, str(root))
    found: list[tuple[int, Path]] = []
    for label, folder in enumerate(folders):
        paths = [entry for entry in _entries(folder) if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
        inner = _folders(folder)
        if inner:
            raise DataError(
                f"{folder} is a class and holds another folder, {inner[0].name!r}; move its pictures up into {folder}, "
                "or, if these are the two parts, call them train and test"
            )
        if not paths:
            raise DataError(f"{folder} has no pictures ({' '.join(SUFFIXES)}); add some, or remove the class folder")
        found += [(label, picture) for picture in paths]
        if len(found) > MAX_PICTURES:
            raise DataError(f"{root} has more than {MAX_PICTURES:,} pictures, the most allowed; use fewer")
    return class_names, [Picture(hashlib.sha256(_read(path)).hexdigest(), label, path) for label, path in found]


def _split(path: Path, class_names: list[str], pictures: list[Picture]) -> list[list[Picture]]:
    train, test = [], []
    for label, class_name in enumerate(class_names):
        members = sorted(picture for picture in pictures if picture.label == label)
        if len(members) < 2:
            raise DataError(
                f"{path / class_name} has a single picture, which cannot be used for both training and testing; add "
                "more, or sort all pictures into train and test folders"
            )
        count = max(1, len(members) // TEST_SHARE)
        test += members[:count]
        train += members[count:]
    return [sorted(train), sorted(test)]


def _folders(root: Path) -> list[Path]:
    """The folders in `root` that are not hidden, sorted by name; none if it is not a folder. Raises DataError."""
    return [entry for entry in _entries(root) if entry.is_dir()] if root.is_dir() else []


def _entries(folder: Path) -> list[Path]:
    with system_errors(DataError, f"{folder}: cannot be read", "correct its permissions"), os.scandir(folder) as found:
        names = [entry.name for entry in itertools.islice(found, MAX_PICTURES + 1)]
    if len(names) > MAX_PICTURES:
        raise DataError(f"{folder} has more than {MAX_PICTURES:,} files, the most allowed; use fewer pictures")
    return sorted(folder / name for name in names if not name.startswith((".", "__MACOSX")))


def _read(path: Path) -> bytes:
    """The content of a picture file. Raises DataError."""
    remedy = "correct its permissions, or remove it"
    with system_errors(DataError, f"{path}: cannot be read", remedy):
        size_bytes = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path} is no ordinary file; remove it")
        if size_bytes > MAX_FILE_BYTES:
            raise DataError(f"{path} has {size_bytes:,} bytes; allowed: {MAX_FILE_BYTES:,}; make the picture smaller")
    return read_bounded(path, MAX_FILE_BYTES, DataError, f"the picture {path}", remedy)


def _decoded(parts: list[list[Picture]], size: Size | None, color: bool) -> tuple[ImageSet, ImageSet]:
    """The pixels and labels of both parts. Raises DataError."""
    from qattrain.data.pictures import read_picture  # pillow: only for who needs it

    images: list[NDArray[np.uint8]] = []
    first = parts[0][0].path
    for number, part in enumerate(parts):
        for index, picture in enumerate(part):
            image = read_picture(_read(picture.path), str(picture.path), size, color)
            if not images:
                check_sides(image.shape[1], image.shape[2], str(first), RESIZE)
                _check_total(sum(map(len, parts)), image)
                images = [np.empty((len(part), *image.shape), np.uint8) for part in parts]
            if image.shape != images[0].shape[1:]:
                one, other = ("x".join(map(str, shape[-2:])) for shape in (images[0].shape, image.shape))
                raise DataError(
                    f"images have different sizes: {first} has {one} pixels (height x width), {picture.path} {other}; "
                    f"{RESIZE}"
                )
            images[number][index] = image
    labels = [np.array([picture.label for picture in part], np.int64) for part in parts]
    train, test = (ImageSet(*map(torch.from_numpy, pair)) for pair in zip(images, labels, strict=True))
    return train, test


def _check_total(count: int, image: NDArray[np.uint8]) -> None:
    if count * image.size > MAX_TOTAL_BYTES:
        shape = "x".join(map(str, image.shape))
        raise DataError(
            f"{count:,} images of {shape} take {count * image.size:,} bytes; allowed: {MAX_TOTAL_BYTES:,}; choose a "
            "smaller --image-size, or use fewer images"
        )


def _read_cache(kept: Path, name: str, class_names: list[str]) -> Dataset | None:
    """The dataset as it was kept; None if it was not, or if what is there is damaged."""
    with suppress(Exception):  # a damaged file can fail in any way; it is then made again
        size_bytes = kept.stat().st_size if kept.is_file() else 0
        if not 0 < size_bytes <= MAX_TOTAL_BYTES + MAX_FILE_BYTES:
            return None
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as found:
            train, test = (
                ImageSet(*(torch.from_numpy(found[f"{part}_{what}"]) for what in ("images", "labels")))
                for part in PARTS
            )
            digest = str(found["digest"])
        dataset = own_dataset(name, class_names, train, test)
        if dataset.digest == digest:
            return dataset
    return None


def _write_cache(kept: Path, dataset: Dataset) -> None:
    arrays: dict[str, Any] = {"digest": np.array(dataset.digest)}
    for part, images in zip(PARTS, (dataset.train, dataset.test), strict=True):
        arrays |= {f"{part}_images": images.images.numpy(), f"{part}_labels": images.labels.numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with suppress(OSError):  # a full or read-only cache costs time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_files(kept.parent, {kept.name: buffer.getvalue()})
