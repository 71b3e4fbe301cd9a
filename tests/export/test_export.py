"""What is exported equals the integers on every image, or it is not written; and it is written whole or not at all."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import KINDS, SMALL, random_images, random_model

from qattrain.errors import ConfigError, ExportError
from qattrain.export import EXPORTERS
from qattrain.export.base import (
    MARK,
    MARKED_BYTES,
    NOISE_IMAGES,
    Exporter,
    Files,
    Runner,
    check_boards,
    noise_images,
    write_verified,
)
from qattrain.integer import ModelFacts

MODEL, IMAGES = random_model(widths=SMALL), random_images(10)
FACTS = ModelFacts("lenet-nano", "digits", tuple("0123456789"), None)
FILES = {"a.bin": b"qattrain a", "b.bin": b"qattrain b"}


def exporter(change: Callable[[Any], Any] = lambda logits: logits, files: Files = FILES) -> Exporter:
    """Writes `files`; running them gives the model's logits, changed."""

    @contextmanager
    def run(_files: Files) -> Iterator[Runner]:
        yield lambda images: change(MODEL.run(images))

    return Exporter(lambda _model, _facts, _layout: files, run, ("one", "two"))


def export(folder: Path, given: Exporter | None = None, images: Any = IMAGES, force: bool = False) -> Any:
    return write_verified(given or exporter(), MODEL, FACTS, None, images, folder, force)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_every_exporters_files_equal_the_integers_and_carry_the_mark(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    model = random_model(**{"widths": SMALL, "seed": 5} | arguments)
    facts = dataclasses.replace(FACTS, class_names=tuple(str(label) for label in range(model.classes)))
    for layout in EXPORTERS[name].layouts or (None,):
        folder = tmp_path / f"{name}-{layout}"
        exported = write_verified(EXPORTERS[name], model, facts, layout, IMAGES, folder)
        assert exported.verified_images == len(IMAGES) + NOISE_IMAGES
        assert exported.sizes == {path.name: path.stat().st_size for path in folder.iterdir()}
        assert all(MARK in content[:MARKED_BYTES] for content in contents(folder).values())
        before = contents(folder)
        write_verified(EXPORTERS[name], model, facts, layout, None, folder)
        if EXPORTERS[name].prove is not None:  # its files show the images
            assert contents(folder) != before
            write_verified(EXPORTERS[name], model, facts, layout, IMAGES, folder)
        assert contents(folder) == before  # the same network gives the same bytes, over what it wrote before


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 12)])
def test_noise_holds_the_ends_and_is_always_the_same(shape: tuple[int, int, int]) -> None:
    images = noise_images(shape)
    assert (images.shape, images.dtype) == ((NOISE_IMAGES, *shape), np.uint8)
    assert (images[0].max(), images[1].min()) == (0, 255)
    assert set(np.unique(images[2])) == {0, 255}
    assert len(np.unique(images[3::2])) == 256
    assert np.array_equal(images, noise_images(shape))


def refused(folder: Path, *texts: str, error: type[Exception] = ExportError, **arguments: Any) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(error) as caught:
        export(folder, **arguments)
    assert len(str(caught.value).splitlines()) == 1
    for text in texts:
        assert text in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


def one_off(logits: Any) -> Any:
    logits[len(IMAGES) + 4, 3] += 1  # of a noise image
    return logits


def many_off(logits: Any) -> Any:
    logits[2:4] -= 1
    return logits


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (one_off, ("a.bin, b.bin: 1 of 266 images", "1 logits in all", "image 14, class 3", "nothing was written")),
        (many_off, ("2 of 266 images", "20 logits in all", "image 2, class 0")),
        (lambda logits: logits[:-1], ("(265, 10)", "(266, 10)")),
        (lambda logits: logits.astype(np.int64), ("int64", "int32")),
    ],
)
def test_a_single_differing_logit_is_counted_and_leaves_nothing(
    tmp_path: Path, change: Callable[[Any], Any], texts: tuple[str, ...]
) -> None:
    refused(tmp_path / "deep" / "out", *texts, given=exporter(change))


def test_without_images_nothing_is_run(tmp_path: Path) -> None:
    def fail(_logits: Any) -> Any:
        raise AssertionError

    assert export(tmp_path / "out", exporter(fail), images=None).verified_images == 0
    assert contents(tmp_path / "out") == FILES


def test_no_test_images_still_verify_on_noise(tmp_path: Path) -> None:
    assert export(tmp_path, images=IMAGES[:0]).verified_images == NOISE_IMAGES


def test_the_layout_is_the_first_unless_given_and_another_is_refused(tmp_path: Path) -> None:
    written: list[str] = []
    noting = dataclasses.replace(exporter(), write=lambda _model, _facts, layout: (written.append(layout), FILES)[1])
    for layout in (None, "two"):
        write_verified(noting, MODEL, FACTS, layout, None, tmp_path / "out")
    assert written == ["one", "two"]
    with pytest.raises(ConfigError, match=r"'three'.*one, two"):
        write_verified(noting, MODEL, FACTS, "three", None, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"'one'.*none: leave it out"):
        write_verified(EXPORTERS["packed"], MODEL, FACTS, "one", None, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_files_without_the_mark_are_a_fault_of_the_exporter(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a\.bin"):
        export(tmp_path / "out", exporter(files={"a.bin": b"x"}))


def test_what_was_exported_may_be_overwritten_and_stays_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"older qattrain")
    (tmp_path / "model.onnx").write_bytes(b"another of qattrain's")
    export(tmp_path)
    assert contents(tmp_path) == FILES | {"model.onnx": b"another of qattrain's"}


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "a.bin"])
def test_other_files_are_neither_joined_nor_overwritten_without_force(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_bytes(b"mine")
    refused(folder, str(folder), name, "--force")
    assert contents(folder) == {name: b"mine"}
    export(folder, force=True)
    assert contents(folder) == {name: b"mine"} | FILES


def test_many_other_files_are_not_all_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "folder").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").touch()
    refused(folder, "0.txt, 1.txt, 2.txt, 3.txt, ...")


def test_a_file_as_folder_and_a_folder_as_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file", force=True)
    refused(tmp_path / "file" / "deeper", "--out", force=True)
    (tmp_path / "out" / "b.bin").mkdir(parents=True)
    refused(tmp_path / "out", "b.bin", "is a folder", force=True)
    assert not any((tmp_path / "out" / "b.bin").iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_on_the_disk_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "a.bin").write_bytes(b"older qattrain")

    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    for folder in (old, tmp_path / "deep" / "new"):
        with pytest.raises(ExportError if isinstance(error, OSError) else KeyboardInterrupt):
            export(folder)
    assert contents(tmp_path / "old") == {"a.bin": b"older qattrain"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.bin", "old"]


def test_no_file_has_its_name_before_all_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
    export(tmp_path / "out")
    assert calls == ["fsync", "fsync", "replace", "replace"]


IN_FOLDERS = FILES | {"sub/a.bin": b"qattrain c", "sub/deep/a.bin": b"qattrain d"}


def in_folders(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_in_subfolders_are_written_and_may_be_overwritten(tmp_path: Path) -> None:
    for _ in range(2):
        export(tmp_path / "out", exporter(files=IN_FOLDERS))
        assert in_folders(tmp_path / "out") == IN_FOLDERS
    (tmp_path / "out" / "sub" / "notes.txt").write_text("mine")
    refused(tmp_path / "out", "(sub)", "--force")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_no_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    refused(tmp_path / "out", "No space left", given=exporter(files=IN_FOLDERS))
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("qattrain")
    refused(tmp_path / "out", "sub: it is a file", given=exporter(files=IN_FOLDERS))


def test_what_an_exporter_has_for_boards_is_added_with_the_first_image_or_one_of_noise(tmp_path: Path) -> None:
    given: list[Any] = []

    def board(files: Files, model: Any, image: Any) -> Files:
        given.append((files, model, image))
        return {"board/a.bin": b"qattrain board"}

    with_board = dataclasses.replace(exporter(), board=board)
    for images in (IMAGES, None, IMAGES[:0]):
        write_verified(with_board, MODEL, FACTS, None, images, tmp_path / "out", board=True)
        assert in_folders(tmp_path / "out")["board/a.bin"] == b"qattrain board"
    assert all((files.items() >= FILES.items(), model is MODEL) == (True, True) for files, model, _ in given)
    for (_, _, image), expected in zip(given, (IMAGES[0], *[noise_images(MODEL.input_shape)[2]] * 2), strict=True):
        assert np.array_equal(image, expected)
    write_verified(with_board, MODEL, FACTS, None, None, tmp_path / "without")
    assert contents(tmp_path / "without") == FILES
    with pytest.raises(ConfigError, match="--board: allowed only with --to c"):
        check_boards(EXPORTERS["packed"], board=True, measure=False)
