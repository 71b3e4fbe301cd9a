"""`qattrain predict`: the class of each picture."""

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.data.pictures import Prepared
    from qattrain.errors import DataError
    from qattrain.evaluation.networks import Network

STDIN = "-"
# The second class has at least a tenth of the first one's probability. So it is for 2.7 % of MNIST's test images in a
# 4-bit LeNet after 2 epochs; of these 26 % are misread, of all others 0.17 %.
LOW_MARGIN = 0.1
AT_ONCE = 100  # pictures in memory


def predict(
    checkpoint: opt.NetworkName,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Picture files; - reads one from standard input.")
    ],
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Recognize what each image shows. Each is prepared as the network's training images were.

    For a network trained on MNIST or a dataset like it: a digit of any size, dark on light or light on dark, is
    cropped, scaled and centred like MNIST's own images; frames, shadows and specks are removed. For all others: the
    whole picture is resized to what the network takes, in grey or colour. The printed picture is what the network sees;
    lines below the answer say what was done to it, and what is doubtful. PNG, JPEG, BMP, GIF, TIFF and WebP are read.
    A picture that cannot be read does not stop the others; the exit code is then 1.

    \b
    Examples:
      qattrain predict lenet-w4a4-lsq-mnist-s0 digit.png
      qattrain predict export/model.safetensors a.jpg b.jpg
      cat digit.png | qattrain predict lenet-w4a4-lsq-mnist-s0 -
      qattrain predict lenet-w4a4-lsq-pets-s0 cat.jpg
    """
    from qattrain.report.console import Console, counted, percent

    console = Console(json)
    from qattrain.errors import DataError
    from qattrain.runs.folder import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    with console.busy(f"reading {counted(len(images), 'picture')} for {path}"):
        import torch

        from qattrain.evaluation.metrics import channels_last
        from qattrain.evaluation.networks import load_network
        from qattrain.report.drawing import picture

        network = load_network(path)
        first = _recognized(network, images[:AT_ONCE])
    console.notice(network.notice)
    entries: list[dict[str, Any]] = []
    errors: list[str] = []
    others = (_recognized(network, images[start : start + AT_ONCE]) for start in range(AT_ONCE, len(images), AT_ONCE))
    for name, (each, top) in zip(images, itertools.chain(first, itertools.chain.from_iterable(others)), strict=True):
        if isinstance(each, DataError):
            entries.append({"path": name, "digit": None, "top": [], "notes": [], "error": str(each)})
            errors.append(str(each))
            if len(images) > 1:
                console.text(f"not read: {each}")
            continue
        digit, notes = top[0][0], [*each.notes, *_doubts(network, each, top)]
        entries.append({"path": name, "digit": digit, "top": [list(p) for p in top], "notes": notes, "error": None})
        console.picture(picture(channels_last(torch.from_numpy(each.image.copy()))))
        console.text(
            f"{_shown(name)}: {digit}   ({', '.join(f'{label} {percent(p)}' for label, p in top)})",
            strong=f": {digit} ",
        )
        for note in notes:
            console.text(f"  {note}")
        if len(entries) < len(images):
            console.text("")
    console.result({"images": entries})
    if errors and len(images) == 1:
        raise DataError(errors[0])
    if errors:
        named = errors[0] if len(errors) == 1 else f"the first: {errors[0]}"
        raise DataError(f"{len(errors)} of {len(images)} pictures could not be read: {named}")


Ranked = list[tuple[int | str, float]]  # the most probable classes, with their probabilities


def _recognized(network: "Network", names: list[str]) -> "list[tuple[Prepared | DataError, Ranked]]":
    """Each picture with its classes; or why it cannot be read, without any."""
    import numpy as np

    from qattrain.errors import DataError
    from qattrain.evaluation.checkpoints import rank_classes

    found = [_prepared(network, name) for name in names]
    readable = [each.image for each in found if not isinstance(each, DataError)]
    ranked = iter(rank_classes(network, np.stack(readable), top=3) if readable else [])
    return [(each, [] if isinstance(each, DataError) else next(ranked)) for each in found]


def _prepared(network: "Network", name: str) -> "Prepared | DataError":
    """The picture as the network takes it, or why it cannot be read."""
    from qattrain.data import is_handwriting
    from qattrain.data.pictures import Prepared, read_image, read_picture
    from qattrain.errors import DataError

    channels, height, width = network.input_shape
    try:
        data = _read(name)
        if is_handwriting(network.facts.dataset):
            return read_image(data, _shown(name))
        return Prepared(read_picture(data, _shown(name), (height, width), color=channels == 3))
    except DataError as error:
        return error


def _doubts(network: "Network", prepared: "Prepared", top: Ranked) -> list[str]:
    """Why the answer, the first of the classes and probabilities `top`, may be wrong."""
    from qattrain.evaluation.checkpoints import rank_classes

    (answer, p), (second, next_p), *_ = top
    notes = []
    if prepared.other is not None:
        [[(other, _)]] = rank_classes(network, prepared.other[None], top=1)
        if other != answer:
            this, that = ("dark on light", "light on dark")[:: 1 if prepared.is_dark else -1]
            notes.append(f"taken as {this}; as {that} it would be {other}")
    if next_p >= LOW_MARGIN * p:
        notes.append(f"low margin: {answer} or {second}?")
    return notes


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else name


def _read(name: str) -> bytes:
    """The content of a picture file, never more than MAX_FILE_BYTES. Raises DataError."""
    from qattrain.data.dataset import MAX_FILE_BYTES
    from qattrain.errors import DataError, system_errors
    from qattrain.files import read_bounded

    remedy = "give a picture file"
    if name != STDIN:
        return read_bounded(Path(name), MAX_FILE_BYTES, DataError, name, remedy)
    if sys.stdin is None:  # it was closed
        raise DataError(f"cannot read standard input: it is closed; {remedy}")
    with system_errors(DataError, "cannot read standard input", remedy):
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            f"cannot read standard input: it has more than {MAX_FILE_BYTES:,} bytes, the most allowed; {remedy}"
        )
    return data
