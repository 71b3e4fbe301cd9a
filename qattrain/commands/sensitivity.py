"""`qattrain sensitivity`: which layers can take few bits."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.report.console import Table
    from qattrain.training.sensitivity import Sensitivity


def sensitivity(
    checkpoint: opt.CheckpointName,
    quantizer: Annotated[str, typer.Option(help=f"{opt.QUANTIZERS}.")] = "lsq",
    calibration: Annotated[
        str, typer.Option(help=f"How ranges are found: {opt.listed('training/ptq.py', 'CALIBRATIONS')}.")
    ] = "mse",
    images: Annotated[int, typer.Option(min=2, help="Held-out images to measure the loss on.")] = 5000,
    like_bits: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="Also choose bits for as many bytes of weights as this width takes."),
    ] = None,
    most_bytes: Annotated[
        int | None, typer.Option("--bytes", metavar="N", help="Also choose bits for at most N bytes of weights.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw the table, as PNG and SVG, here.")
    ] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Show which layers can take few bits: how the loss rises.

    The weights of one layer, or one activation, get 8, 4, 3, 2 and 1 bits, everything else stays as it is. Nothing is
    trained: that tensor is quantized after training. The rise of the loss is measured on held-out training images,
    never on test images. With --bytes or --like-bits, bits are chosen for all layers so that the sum of the rises is
    the smallest for that many bytes.

    \b
    Examples:
      qattrain sensitivity lenet-w32a32-float-mnist-s0
      qattrain sensitivity lenet-w32a32-float-mnist-s0 --like-bits 3
      qattrain sensitivity lenet-w32a32-float-mnist-s0 --bytes 150000
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    from qattrain.errors import ConfigError
    from qattrain.runs.folder import find_checkpoint

    if most_bytes is not None and like_bits is not None:
        raise ConfigError(f"--bytes {most_bytes} with --like-bits {like_bits}: give only one of them")
    path, folder = find_checkpoint(checkpoint, runs_dir), opt.data_folder(data_dir)
    with console.busy(f"measuring {path}"):
        from qattrain.evaluation.checkpoints import load_test_data
        from qattrain.evaluation.networks import Packed, load_network
        from qattrain.layers.network import packed_bytes
        from qattrain.report.drawing import check_writable, write_pictures
        from qattrain.training.sensitivity import assign_bits, measure, uniform_bytes

        network = load_network(path)
        if isinstance(network, Packed):
            raise ConfigError(f"{path} is a packed file, which has no real weights; allowed: a run or its checkpoint")
        if plots is not None:
            check_writable(plots)
        dataset = load_test_data(network, path, folder)
        found = measure(network, dataset, quantizer=quantizer, calibration=calibration, images=images)
        budget = uniform_bytes(found.weights, like_bits) if like_bits is not None else most_bytes
        chosen = assign_bits(found, budget) if budget is not None else None
        written = []
        if plots is not None:
            from qattrain.report.sensitivity import sensitivity_figure

            title = f"{path.parent.name}, {found.images:,} held-out images of {dataset.name}"
            written = write_pictures(plots, {"sensitivity": sensitivity_figure(found, title)})
    console.notice(network.notice)
    line = ",".join(f"{name}={bits}" for name, bits in chosen.items()) if chosen else None
    taken = sum(packed_bytes(found.weights[name], bits) for name, bits in (chosen or {}).items())
    result: dict[str, Any] = {
        "checkpoint": str(path),
        "dataset": dataset.name,
        "quantizer": quantizer,
        "calibration": calibration,
        "images": found.images,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "rises": [asdict(rise) for rise in found.rises],
        "notes": list(found.notes),
        "pictures": [str(picture) for picture in written],
    }
    if chosen:
        result |= {"most_bytes": budget, "layer_bits": chosen, "bytes": taken}
    console.result(result)
    console.text(
        f"{path}: loss {found.loss:.4f}, accuracy {percent(found.accuracy)} on {found.images:,} held-out training "
        f"images of {dataset.name}",
        dim=str(path),
    )
    for note in found.notes:
        console.text(note)
    console.table(rises_table(found))
    console.paragraph(
        "Rise of the loss, with half of its 95 % interval, when only that tensor has so many bits "
        f"({quantizer}, {calibration}; after training)."
    )
    if chosen:
        console.text(f"the smallest sum of rises in {budget:,} bytes of weights ({taken:,} used):")
        console.text(f"--layer-bits {line}", strong=line or "")
    if written:
        console.text(f"pictures: {' and '.join(map(str, written))}")


def rises_table(found: "Sensitivity") -> "Table":
    """A row for each tensor, a column for each width."""
    from qattrain.report.console import Table

    rows: dict[str, dict[str, str]] = {}
    for rise in found.rises:
        row = rows.setdefault(rise.name, {"layer": rise.name, "of": f"{rise.kind}s"})
        row[f"{rise.bits} bit{'' if rise.bits == 1 else 's'}"] = f"{rise.rise:+.4f} ±{rise.margin:.4f}"
    return Table.of("Rise of the loss", list(rows.values()), left=("of",), keys=2)
