"""`qattrain predict`: the class of each picture."""

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
        import numpy as np
        import torch

        from qattrain.evaluation.checkpoints import rank_classes
        from qattrain.evaluation.metrics import channels_last
        from qattrain.evaluation.networks import load_network
        from qattrain.report.drawing import picture

        network = load_network(path)
        found = [_prepared(network, name) for name in images]
        readable = [each.image for each in found if not isinstance(each, DataError)]
        seen = np.stack(readable) if readable else np.zeros((0, *network.input_shape), np.uint8)
        ranked = zip(seen, rank_classes(network, seen, top=3) if readable else [], strict=True)
    console.notice(network.notice)
    entries: list[dict[str, Any]] = []
    errors: list[str] = []
    for name, each in zip(images, found, strict=True):
        if isinstance(each, DataError):
            entries.append({"path": name, "digit": None, "top": [], "notes": [], "error": str(each)})
            errors.append(str(each))
            if len(images) > 1:
                console.text(f"not read: {each}")
            continue
        image, top = next(ranked)
        digit, notes = top[0][0], [*each.notes, *_doubts(network, each, top)]
        entries.append({"path": name, "digit": digit, "top": [list(p) for p in top], "notes": notes, "error": None})
        console.picture(picture(channels_last(torch.from_numpy(image))))
        console.text(
            f"{_shown(name)}: {digit}   ({', '.join(f'{label} {percent(p)}' for label, p in top)})",
            strong=f": {digit} ",
        )
        for note in notes:
            console.text(f"  {note}")
        if each is not found[-1]:
            console.text("")
    console.result({"images": entries})
    if errors and len(images) == 1:
        raise DataError(errors[0])
    if errors:
        first = errors[0] if len(errors) == 1 else f"the first: {errors[0]}"
        raise DataError(f"{len(errors)} of {len(images)} pictures could not be read: {first}")


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


def _doubts(network: "Network", prepared: "Prepared", top: "list[tuple[int | str, float]]") -> list[str]:
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
    from qattrain.errors import DataError, reason

    try:
        return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"cannot read {name}: {reason(error)}") from None
