"""`folder:PATH`: which pictures become which images, the fixed split, the cache, and a clear line for what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qattrain.config import IMAGE_SIDES
from qattrain.data import Dataset, load_dataset
from qattrain.data import folder as folders
from qattrain.data.dataset import identity
from qattrain.data.folder import SUFFIXES, load_folder
from qattrain.errors import DataError
from qattrain.files import cache_dir

GREYS = {"cat": 10, "dog": 110}  # the first picture's; each one after it is one lighter


def draw(path: Path, grey: int, size: tuple[int, int] = (12, 10), mode: str = "L") -> None:
    """A picture of one grey in `path`, of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).convert(mode).save(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """10 pictures of 12x10 pixels of each class, of different greys."""
    for name, grey in GREYS.items():
        for index in range(10):
            draw(tmp_path / "pets" / name / f"{index}.png", grey + index)
    return tmp_path / "pets"


@pytest.fixture
def split_pets(tmp_path: Path) -> Path:
    """4 training and 2 test pictures of each class."""
    for name, grey in GREYS.items():
        for index in range(6):
            part = "train" if index < 4 else "test"
            draw(tmp_path / "split" / part / name / f"{index}.png", grey + index)
    return tmp_path / "split"


def load(path: Path, options: str = "") -> Dataset:
    return load_dataset(f"folder:{path}{options}", Path("/nowhere"))


def greys(dataset: Dataset) -> list[list[tuple[int, int]]]:
    """(grey of the first pixel, label) of every image, by part."""
    parts = (dataset.train, dataset.test)
    return [list(zip(p.images[:, 0, 0, 0].tolist(), p.labels.tolist(), strict=True)) for p in parts]


def never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_decoded", lambda *_: pytest.fail("decoded again"))


def test_every_picture_is_an_image_of_its_class(pets: Path) -> None:
    dataset = load(pets)
    assert (dataset.name, dataset.class_names, dataset.shape) == (f"folder:{pets}", ("cat", "dog"), (1, 10, 12))
    train, test = greys(dataset)
    assert (len(train), len(test)) == (16, 4)
    assert [label for _, label in test].count(0) == 2  # a fifth of each class
    assert sorted(train + test) == [(GREYS[name] + i, label) for label, name in enumerate(GREYS) for i in range(10)]
    for part in (dataset.train, dataset.test):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.images.shape == (len(part.labels), 1, 10, 12)
        assert part.images.is_contiguous()


def test_the_split_depends_on_the_pictures_only(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, listed = greys(load(pets)), Path.iterdir
    for path in pets.rglob("*.png"):
        path.rename(path.with_name(f"{path.stem[::-1]}-renamed.PNG"))
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    moved = pets.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert greys(load(moved)) == expected
    assert expected[0] != sorted(expected[0])  # classes are mixed: the first N images have several


def test_train_and_test_folders_are_the_two_parts(split_pets: Path) -> None:
    draw(split_pets / "val" / "cow" / "1.png", 3)  # beside them: ignored
    train, test = greys(load(split_pets))
    assert sorted(train) == [(10, 0), (11, 0), (12, 0), (13, 0), (110, 1), (111, 1), (112, 1), (113, 1)]
    assert sorted(test) == [(14, 0), (15, 0), (114, 1), (115, 1)]


def test_a_folder_beside_train_and_test_is_not_left_out_in_silence(split_pets: Path) -> None:
    draw(split_pets / "cow" / "1.png", 3)
    with pytest.raises(DataError, match=r"holds train and test, and besides them the folder 'cow'"):
        load(split_pets)


def test_a_relative_path_is_looked_for_in_the_data_folder_too(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load_dataset("folder:pets", pets.parent).digest == load(pets).digest
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("folder:pets", Path("/nowhere"))


def test_a_class_may_be_called_train(pets: Path) -> None:
    (pets / "cat").rename(pets / "train")
    assert load(pets).class_names == ("dog", "train")


def test_a_class_of_two_has_one_test_image(pets: Path) -> None:
    for index in range(2, 10):
        (pets / "cat" / f"{index}.png").unlink()
    train, test = ([label for _, label in part].count(0) for part in greys(load(pets)))
    assert (train, test) == (1, 1)


def test_hidden_files_and_files_that_are_no_pictures_are_ignored(pets: Path) -> None:
    before = load(pets).digest
    for name in (".hidden.png", "Thumbs.db", "desktop.ini", "notes.txt", ".DS_Store"):
        (pets / "cat" / name).write_text("no picture")
        (pets / name).write_text("no picture")
    (pets / ".git").mkdir()
    (pets / "__MACOSX").mkdir()
    (pets / "cat" / ".thumbnails").mkdir()
    draw(pets / "stray.png", 7)
    assert load(pets).digest == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_picture_is_read(suffix: str, pets: Path) -> None:
    shutil.rmtree(pets / "dog")
    for index, grey in enumerate((20, 200)):
        draw(pets / "dog" / f"{index}{suffix.upper()}", grey)
    found = sorted(grey for part in greys(load(pets)) for grey, label in part if label == 1)
    assert [abs(one - other) <= 1 for one, other in zip(found, (20, 200), strict=True)] == [True, True]


def test_pictures_are_resized_and_coloured_as_asked(pets: Path) -> None:
    Image.new("RGB", (30, 20), (255, 0, 0)).save(pets / "cat" / "0.png")
    dataset = load(pets, "@8x6,color")
    assert dataset.shape == (3, 8, 6)
    colours = {tuple(image[:, 0, 0].tolist()) for part in (dataset.train, dataset.test) for image in part.images}
    assert (255, 0, 0) in colours
    assert (11, 11, 11) in colours
    grey = load(pets, "@8x6")
    assert grey.shape == (1, 8, 6)
    assert 76 in {value for part in greys(grey) for value, _ in part}  # 0.299 of 255
    assert load(pets, "@8x6").digest == grey.digest != dataset.digest


def test_the_identity_is_that_of_pixels_labels_classes_and_split(pets: Path) -> None:
    dataset = load(pets)
    assert dataset.digest == identity(dataset.class_names, dataset.train, dataset.test)
    seen = {dataset.digest, load(pets, "@10x13").digest}
    draw(pets / "cat" / "0.png", 9)
    seen.add(load(pets).digest)
    (pets / "cat").rename(pets / "bat")
    seen.add(load(pets).digest)
    for part in ("train", "test"):
        shutil.copytree(pets / "bat", pets / part / "bat")
        shutil.copytree(pets / "dog", pets / part / "dog")
    for name in ("bat", "dog"):
        shutil.rmtree(pets / name)
    seen.add(load(pets).digest)
    assert len(seen) == 5


def test_pictures_are_decoded_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(pets)
    never_decoded(monkeypatch)
    again = load(pets)
    assert again.digest == first.digest
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    with pytest.raises(pytest.fail.Exception):
        load(pets, "@8x8")  # other settings are another entry


def kept_file() -> Path:
    (kept,) = (cache_dir() / "images").iterdir()
    return kept


def flipped(data: bytes) -> bytes:
    return data[:400] + bytes([data[400] ^ 1]) + data[401:]


def other_pixels(data: bytes) -> bytes:  # noqa: ARG001
    """A well-formed file whose pixels are not those of its digest."""
    with np.load(kept_file()) as found:
        arrays = {key: found[key] for key in found.files}
    arrays["train_images"][0] += 1
    np.savez(kept_file(), **arrays)
    return kept_file().read_bytes()


def with_objects(data: bytes) -> bytes:  # noqa: ARG001
    np.savez(kept_file(), digest=np.array([{}], object))
    return kept_file().read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda data: data[:-30], lambda _: b"hello", flipped, other_pixels, with_objects]
)
def test_a_damaged_cache_is_made_again(damage: Callable[[bytes], bytes], pets: Path) -> None:
    first, data = load(pets), kept_file().read_bytes()
    kept_file().write_bytes(damage(data))
    again = load(pets)
    assert again.digest == first.digest
    assert torch.equal(again.train.images, first.train.images)
    with np.load(kept_file()) as found:
        assert str(found["digest"]) == first.digest


def test_a_cache_that_cannot_be_written_is_done_without(pets: Path) -> None:
    cache_dir().parent.mkdir(parents=True)
    cache_dir().write_text("a file in the way")
    assert len(load(pets).train.labels) == 16


def test_a_home_folder_is_understood(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pets.parent))
    assert load(Path("~/pets")).class_names == ("cat", "dog")


def test_a_symbolic_link_to_a_picture_is_a_picture_and_a_loop_does_no_harm(pets: Path) -> None:
    (pets / "cat" / "link.png").symlink_to(pets / "dog" / "0.png")
    (pets / "self").symlink_to(pets / "self")
    assert sum(map(len, greys(load(pets)))) == 21
    (pets / "loop").symlink_to(pets)
    with pytest.raises(DataError, match="loop is a class and holds another folder"):
        load(pets)


def a_file(pets: Path) -> None:
    shutil.rmtree(pets)
    pets.write_text("x")


def flat(pets: Path) -> None:
    for name in GREYS:
        for path in (pets / name).iterdir():
            path.rename(pets / f"{name}{path.name}")
        (pets / name).rmdir()


def broken(pets: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    Image.fromarray(noise).save(pets / "cat" / "3.png")
    data = (pets / "cat" / "3.png").read_bytes()
    (pets / "cat" / "3.png").write_bytes(data[: len(data) // 2])


def two_images(pets: Path) -> None:
    for name in GREYS:
        for index in range(1, 10):
            (pets / name / f"{index}.png").unlink()


def only(part: str) -> Callable[[Path], None]:
    def make(pets: Path) -> None:
        for name in GREYS:
            (pets / name).rename(pets / f"{name}-moved")
        (pets / part).mkdir()
        for name in GREYS:
            (pets / f"{name}-moved").rename(pets / part / name)

    return make


def other_classes(pets: Path) -> None:
    only("train")(pets)
    shutil.copytree(pets / "train", pets / "test")
    (pets / "test" / "dog").rename(pets / "test" / "fox")


def unsplit_parts(pets: Path) -> None:
    (pets / "cat").rename(pets / "train")
    (pets / "dog").rename(pets / "test")


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (shutil.rmtree, ("does not exist", "a folder of pictures for each class")),
    "a file": (a_file, ("is a file", "a folder of pictures for each class")),
    "no classes": (flat, ("no class folders", "pets/cat")),
    "one class": (lambda pets: shutil.rmtree(pets / "dog"), ("only one class, 'cat'", "at least two")),
    "an empty class": (lambda pets: (pets / "cow").mkdir(), ("pets/cow has no pictures", ".png", "remove")),
    "nested": (
        lambda pets: (pets / "cat" / "more").mkdir(),
        ("pets/cat", "another folder, 'more'", "move", "train and test"),
    ),
    "broken": (broken, ("cat/3.png is a damaged image", "intact")),
    "no image": (lambda pets: (pets / "cat" / "3.png").write_text("hello"), ("cat/3.png is no PNG", "WebP", "convert")),
    "empty file": (lambda pets: (pets / "cat" / "3.png").write_text(""), ("cat/3.png is empty",)),
    "dangling": (lambda pets: (pets / "cat" / "x.png").symlink_to("gone"), ("cat/x.png: cannot be read", "remove it")),
    "a pipe": (lambda pets: os.mkfifo(pets / "cat" / "x.png"), ("cat/x.png is no ordinary file", "remove it")),
    "mixed sizes": (lambda pets: draw(pets / "cat" / "x.png", 3, (7, 9)), ("9x7", "10x12", "x.png", "--image-size")),
    "two images": (two_images, ("pets/cat has a single picture", "training and testing", "add more")),
    "train only": (only("train"), ("pets/test is missing", "pets/test/cat")),
    "test only": (only("test"), ("pets/train is missing", "pets/train/cat")),
    "other classes": (other_classes, ("pets/train has a class 'dog', ", "pets/test has not", "same class folders")),
    "unsplit parts": (unsplit_parts, ("pets/train has no class folders", "pets/train/cat")),
    "strange name": (lambda pets: (pets / "cat").rename(pets / "ca\nt"), (r"'ca\nt'", "print", "rename")),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_says_what_to_do(case: str, pets: Path, raises_data_error: Any) -> None:
    make, texts = WRONG[case]
    make(pets)
    with raises_data_error(*texts):
        load(pets)


def test_sizes_out_of_range_are_refused(pets: Path, raises_data_error: Any) -> None:
    for path in pets.rglob("*.png"):
        draw(path, 3, (IMAGE_SIDES[-1] + 1, 10))
    with raises_data_error("10x257", "4 to 256", "--image-size"):
        load(pets)
    assert load(pets, "@10x12").shape == (1, 10, 12)


def test_more_than_fits_into_memory_is_refused(
    pets: Path, raises_data_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_TOTAL_BYTES", 20 * 120 - 1)
    with raises_data_error("20 images of 1x10x12", "2,400", "2,399", "--image-size"):
        load(pets)


def test_a_huge_file_is_not_read(pets: Path, raises_data_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr("qattrain.files.open_at_once", lambda *_: pytest.fail("read"))
    with raises_data_error("cat/0.png has", "bytes; allowed: 10"):
        load(pets)


def test_a_path_that_the_system_refuses_is_a_data_error(raises_data_error: Any) -> None:
    with raises_data_error("folder:", "cannot be read: File name too long"):
        load(Path("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("what", ["", "cat", "cat/3.png"])
def test_what_may_not_be_read_is_named(what: str, pets: Path, raises_data_error: Any) -> None:
    (pets / what).chmod(0)
    try:
        with raises_data_error(what, "Permission denied", "permissions"):
            load(pets)
    finally:
        (pets / what).chmod(0o700)


def test_a_file_that_cannot_be_read_is_named(
    pets: Path, raises_data_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qattrain.files.open_at_once", forbidden)
    with raises_data_error("cannot read the picture", "cat/0.png: Permission denied", "permissions"):
        load(pets)


def test_too_many_files_are_refused_before_any_is_read(
    pets: Path, raises_data_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qattrain.files.open_at_once", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(folders, "MAX_PICTURES", 11)
    with raises_data_error(pets, "more than 11 pictures", "use fewer"):
        load(pets)
    monkeypatch.setattr(folders, "MAX_PICTURES", 3)
    with raises_data_error(pets / "cat", "more than 3 files", "use fewer"):
        load(pets)


def test_the_library_takes_the_same_as_the_specification(pets: Path) -> None:
    dataset = load_folder(pets, "mine", (8, 8), color=True)
    assert (dataset.name, dataset.digest) == ("mine", load(pets, "@8x8,color").digest)
    json.dumps(dataset.class_names)
