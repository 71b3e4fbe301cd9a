"""`qattrain predict`: the class of each picture."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDIN = "-"


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

    For a network trained on MNIST or a dataset like it: a digit, PNG or JPEG, of any size, dark on light or light on
    dark, is cropped, scaled and centred like MNIST's own images. For all others: the whole picture is resized to what
    the network takes, in grey or colour. The printed picture is what the network sees.

    \b
    Examples:
      qattrain predict lenet-w4a4-lsq-mnist-s0 digit.png
      qattrain predict runs/lenet-w4a4-lsq-mnist-s0/export/model.safetensors a.jpg b.jpg
      cat digit.png | qattrain predict lenet-w4a4-lsq-mnist-s0 -
      qattrain predict lenet-w4a4-lsq-pets-s0 cat.jpg        trained with --dataset folder:pets
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    import numpy as np
    import torch

    from qattrain.data import is_handwriting
    from qattrain.data.pictures import read_image, read_picture
    from qattrain.evaluation.checkpoints import rank_classes
    from qattrain.evaluation.metrics import channels_last
    from qattrain.evaluation.networks import load_network
    from qattrain.report.drawing import picture
    from qattrain.runs.folder import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    network = load_network(path)
    channels, *size = network.input_shape

    def prepared(name: str) -> "NDArray[np.uint8]":
        if is_handwriting(network.facts.dataset):
            return read_image(_read(name), _shown(name))
        return read_picture(_read(name), _shown(name), (size[0], size[1]), color=channels == 3)

    pictures = np.stack([prepared(name) for name in images])
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
        console.text(picture(channels_last(torch.from_numpy(seen))))
        console.text(f"{_shown(name)}: {top[0][0]}   ({', '.join(f'{label} {percent(p)}' for label, p in top)})")


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else name


def _read(name: str) -> bytes:
    from qattrain.errors import DataError, reason

    try:
        return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"cannot read {name}: {reason(error)}") from None
