"""What an exporter is, how its files are proven equal to the integers before they are written, what exporters share."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ConfigError, ExportError, did_you_mean, system_errors
from qattrain.files import replace_files
from qattrain.files.locks import is_in_the_making
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts

Files = dict[str, bytes]  # name -> content, written into the target folder; a name may begin with a subfolder, sub/name
Labels = NDArray[np.int64]  # the class of every image
Runner = Callable[[NDArray[np.uint8]], NDArray[np.int32]]  # images (N, C, H, W) -> logits (N, classes)

NOISE_IMAGES = 256
MARK, MARKED_BYTES = b"qattrain", 2**16  # appears early in every exported file: files with it may be overwritten


@dataclass(frozen=True)
class Exporter:
    """One way to export.

    write: all files, from the integers alone; raises ExportError. layouts: what its third argument may be, the default
    first; empty if there is only one form (the argument is then ""). run: a context that executes the files.
    with_prefix: the same exporter with another name before its C symbols (ConfigError if none may be so called); None
    if its files have no symbols. board: what --board adds, in subfolders: examples for boards, made from the files, the
    integers and an image (C, H, W) that they classify; None if there are none. measure: what --measure does: run the
    files on microcontrollers' cores; None if they are not for these. prove: writes and verifies in one, for files that
    show the images (N, C, H, W) they were verified on, with labels (N,) if known, or may be written without having been
    run; None: `verify` is enough.
    """

    write: Callable[[IntegerModel, ModelFacts, str], Files]
    run: Callable[[Files], AbstractContextManager[Runner]]
    layouts: tuple[str, ...] = ()
    with_prefix: "Callable[[str], Exporter] | None" = None
    board: Callable[[Files, IntegerModel, NDArray[np.uint8]], Files] | None = None
    measure: "Callable[[Files, IntegerModel, NDArray[np.uint8]], Measurement] | None" = None
    prove: "Callable[[IntegerModel, ModelFacts, NDArray[np.uint8], Labels | None], Proven] | None" = None


@dataclass(frozen=True)
class Proven:
    """Files that were run. verified_images: on how many, noise included; 0: on none. notice: why, else None."""

    files: Files
    verified_images: int
    notice: str | None


@dataclass(frozen=True)
class Measurement:
    """What the files take on microcontrollers. files: those that now say so. devices: a row of plain values per core.

    notices: why a core was left out, a line each.
    """

    files: Files
    devices: list[dict[str, Any]]
    notices: list[str]


@dataclass(frozen=True)
class Exported:
    """What was written. verified_images: how many every logit was compared on, noise included; 0: none.

    measurement: of microcontrollers; None if it was not asked for. notice: what the user must know about the files.
    """

    folder: Path
    sizes: dict[str, int]  # bytes by file name
    verified_images: int
    measurement: Measurement | None = field(default=None, kw_only=True)
    notice: str | None = field(default=None, kw_only=True)


def write_verified(
    exporter: Exporter,
    model: IntegerModel,
    facts: ModelFacts,
    layout: str | None,
    images: NDArray[np.uint8] | None,
    folder: Path,
    force: bool = False,
    board: bool = False,
    measure: bool = False,
    labels: Labels | None = None,
) -> Exported:
    """Verify the files of `model`, then write them into `folder`, which is created if it does not exist.

    layout: one of the exporter's; None: its default. images: uint8 (N, C, H, W) to verify on, besides noise; None:
    verify nothing. force: write into a folder that holds other files, and overwrite them. board: add what the exporter
    has for boards, with the first image, or one of noise. measure: run the files on microcontrollers' cores, too.
    labels: (N,), of the images, for files that show some.
    Raises ConfigError for an unknown layout, ExportError if a logit differs or a file cannot be written; nothing is
    left behind then.
    """
    layout, noise, notice = settled_layout(exporter, layout), noise_images(model.input_shape), None
    check_folder(folder, force)
    if images is not None and exporter.prove is not None:
        proven = exporter.prove(model, facts, images, labels)
        files, verified, notice = proven.files, proven.verified_images, proven.notice
    else:
        files = exporter.write(model, facts, layout)
        verified = 0 if images is None else verify(exporter, files, model, np.concatenate([images, noise]))
    shown = noise[2:] if images is None or not len(images) else images
    if board:
        assert exporter.board is not None
        files = files | exporter.board(files, model, shown[0])
    measurement = None
    if measure:
        assert exporter.measure is not None
        measurement = exporter.measure(files, model, shown)
        files = files | measurement.files
    assert all(MARK in content[:MARKED_BYTES] for content in files.values()), list(files)
    _write(folder, files)
    sizes = {name: len(content) for name, content in files.items()}
    return Exported(folder, sizes, verified, measurement=measurement, notice=notice)


def settled_layout(exporter: Exporter, layout: str | None) -> str:
    """`layout`, or the default one. Raises ConfigError."""
    if layout is None:
        return exporter.layouts[0] if exporter.layouts else ""
    if layout not in exporter.layouts:
        allowed = ", ".join(exporter.layouts) or "none: leave it out"
        hint = did_you_mean(layout, exporter.layouts)
        raise ConfigError(f"--layout {layout!r}: {hint}allowed with this --to: {allowed}")
    return layout


def settled_prefix(exporter: Exporter, prefix: str | None) -> Exporter:
    """The exporter with `prefix` before its C symbols, or as it is. Raises ConfigError."""
    if prefix is None:
        return exporter
    if exporter.with_prefix is None:
        raise ConfigError(f"--prefix {prefix!r}: allowed only with --to c; leave it out")
    return exporter.with_prefix(prefix)


def check_boards(exporter: Exporter, board: bool, measure: bool) -> None:
    """Raises ConfigError if what is for microcontrollers is asked of an exporter that has nothing for them."""
    for option, asked, there in (("--board", board, exporter.board), ("--measure", measure, exporter.measure)):
        if asked and there is None:
            raise ConfigError(f"{option}: allowed only with --to c; leave it out")


def noise_images(shape: Shape) -> NDArray[np.uint8]:
    """256 images unlike any in a dataset, always the same: all 0, all 255, the two extremes mixed, random bytes.

    shape: (C, H, W) of each.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (NOISE_IMAGES, *shape)).astype(np.uint8)
    images[::2] = np.where(images[::2] < 128, 0, 255)
    images[0], images[1] = 0, 255
    return images


def verify(exporter: Exporter, files: Files, model: IntegerModel, images: NDArray[np.uint8]) -> int:
    """Run `files` on all `images`, and return how many. Raises ExportError, with counts, if any logit differs."""
    expected = model.run(images)
    with exporter.run(files) as run:
        found = run(images)
    names = ", ".join(files)
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        kinds = [f"{logits.dtype} {logits.shape}" for logits in (found, expected)]
        raise ExportError(f"{names}: its logits are {kinds[0]} instead of {kinds[1]}; nothing was written")
    different = found != expected
    if different.any():
        image, label = (int(index) for index in np.argwhere(different)[0])
        raise ExportError(
            f"{names}: {different.any(1).sum()} of {len(images)} images have different logits, {different.sum()} "
            f"logits in all; the first: image {image}, class {label}: {found[image, label]}, not "
            f"{expected[image, label]}; nothing was written; this is a bug: please report it"
        )
    return len(images)


def check_folder(folder: Path, force: bool) -> None:
    """Raises ExportError if `folder` is not a folder or, without `force`, holds anything but exported files."""
    with system_errors(ExportError, f"cannot look into {folder}", "choose another --out"):
        if folder.exists() and not folder.is_dir():
            raise ExportError(f"--out {folder} is a file; name a folder")
        found = [path for path in sorted(folder.glob("*")) if not is_in_the_making(path.name)]
        others = [path.name for path in found if not _is_ours(path)]
    if others and not force:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        raise ExportError(f"{folder} holds other files ({shown}); choose another --out, or write there with --force")


def _is_ours(path: Path) -> bool:
    """Whether it is an exported file, or a folder of nothing else."""
    if path.is_dir() and not path.is_symlink():
        entries = [entry for entry in path.iterdir() if not is_in_the_making(entry.name)]
        return bool(entries) and all(map(_is_ours, entries))
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK in file.read(MARKED_BYTES)


def _write(folder: Path, files: Files) -> None:
    folders = {(folder / name).parent for name in files}
    needed = {path for each in folders for path in (each, *each.parents)}
    missing = sorted((path for path in needed if not path.exists()), key=lambda path: -len(path.parts))
    with system_errors(ExportError, f"cannot write into {folder}", "free space there, or choose another --out"):
        try:
            blocked = [name for name in files if (folder / name).is_dir()]
            if blocked:
                raise ExportError(f"cannot write {folder / blocked[0]}: it is a folder; choose another --out")
            for each in sorted(folders):  # a folder before those in it
                if each.is_file():
                    raise ExportError(f"cannot write into {each}: it is a file; choose another --out")
                each.mkdir(parents=True, exist_ok=True)
            replace_files(folder, files)
        except BaseException:
            for path in missing:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            raise


def pixels_first(layer: IntegerLayer, codes: NDArray[np.int64], inputs: Shape) -> NDArray[np.int64]:
    """codes, of the layer's shape -> (D, inputs), the inputs in the order (row, column, channel).

    In IntegerModel the order is (channel, row, column). inputs: the shape (C, H, W) that the layer receives.
    """
    if layer.kind == "linear":
        codes = codes.reshape(len(codes), *inputs)
    return codes.transpose(0, 2, 3, 1).reshape(len(codes), -1)


def fits_16_bits(largest_weight: int, input_max: int) -> bool:
    """Whether two products of a weight up to that magnitude and an input can be added in 16 bits."""
    return 2 * input_max * largest_weight < 2**15
