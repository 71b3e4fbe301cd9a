"""`qattrain predict`: the digit in each picture."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from qattrain.commands import options as opt

STDIN = "-"


def predict(
    checkpoint: opt.NetworkName,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="PNG or JPEG files; - reads one from standard input.")
    ],
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Recognize the digit in each image: any size, grey or colour, dark on light or light on dark.

    The digit is cropped, scaled and centred like MNIST's own images. The printed picture is what the network sees.

    \b
    Examples:
      qattrain predict lenet-w4a4-lsq-mnist-s0 digit.png
      qattrain predict runs/lenet-w4a4-lsq-mnist-s0/export/model.safetensors a.jpg b.jpg
      cat digit.png | qattrain predict lenet-w4a4-lsq-mnist-s0 -
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    import numpy as np

    from qattrain.data.pictures import read_image
    from qattrain.evaluation.checkpoints import rank_classes
    from qattrain.evaluation.networks import load_network
    from qattrain.report.drawing import picture
    from qattrain.runs.folder import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    pictures = np.stack([read_image(_read(name), _shown(name)) for name in images])
    network = load_network(path)
    ranked = rank_classes(network, pictures, top=3)
    console.notice(network.notice)
    console.result(
        {
            "images": [
                {"path": name, "digit": top[0][0], "top": [list(pair) for pair in top]}
                for name, top in zip(images, ranked, strict=True)
            ]
        }
    )
    for name, seen, top in zip(images, pictures, ranked, strict=True):
        console.text(picture(seen[0]))
        console.text(f"{_shown(name)}: {top[0][0]}   ({', '.join(f'{label} {percent(p)}' for label, p in top)})")


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else name


def _read(name: str) -> bytes:
    from qattrain.errors import DataError, reason

    try:
        return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"cannot read {name}: {reason(error)}") from None
