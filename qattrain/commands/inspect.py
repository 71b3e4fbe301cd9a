"""`qattrain inspect`: the inside of a network, layer by layer, in numbers and pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.evaluation.inspection import Inspection
    from qattrain.report.console import Console

HISTOGRAM_COLUMNS = 16


def inspect(
    checkpoint: opt.NetworkName,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write all pictures, as PNG and SVG, to this folder.")
    ] = None,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use only the first N test images.")] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Show each layer's grid, its use and what it costs.

    Its use: codes, entropy, clipping, noise and a histogram. Its cost: bytes of the weights, bytes with biases,
    multipliers and shifts, and multiply-accumulates for one image.

    With --plots, pictures of the weights before and after quantization, the activations and where they are clipped, the
    first-layer filters, the confusion matrix and the worst-classified images. Everything about activations and errors
    needs the dataset on disk.

    \b
    Examples:
      qattrain inspect lenet-w4a4-lsq-mnist-s0
      qattrain inspect lenet-w4a4-lsq-mnist-s0 --plots pictures
      qattrain inspect runs/lenet-w4a4-lsq-mnist-s0/export/model.safetensors
    """
    from qattrain.report.console import Console, counted, percent

    console = Console(json)
    from qattrain.runs.folder import find_checkpoint

    path, folder = find_checkpoint(checkpoint, runs_dir), opt.data_folder(data_dir)
    with console.busy(f"inspecting {path}"):
        from qattrain.data import is_on_disk
        from qattrain.evaluation.checkpoints import load_test_data
        from qattrain.evaluation.inspection import inspect_network
        from qattrain.evaluation.networks import Packed, load_network
        from qattrain.report.drawing import check_writable, write_pictures

        network = load_network(path)
        name, test = network.facts.dataset, None
        if is_on_disk(name, folder):
            test = load_test_data(network, path, folder).test.head(limit_test or network.limit_test)
        if plots is not None:
            check_writable(plots)
        run_name = path.name if isinstance(network, Packed) else path.parent.name
        found = inspect_network(network, test, title=f"{run_name}, {name}")
        written = []
        if plots is not None:
            from qattrain.report.inspection import inspection_figures

            written = write_pictures(plots, inspection_figures(found))
    console.notice(network.notice)
    console.result(
        {
            "checkpoint": str(path),
            "dataset": name,
            "test_images": found.images,
            "accuracy": found.accuracy,
            "layers": [asdict(report) for report in found.layers],
            "totals": found.totals,
            "pictures": [str(picture) for picture in written],
            "notes": found.notes,
        }
    )
    console.text(f"{path}: {network.facts.name} on {name}", dim=str(path))
    _show_layers(console, found)
    if found.confusion is not None:
        errors, images = counted(found.confusion.errors, "error"), counted(found.images, "test image")
        console.text(f"{errors} on {images}: accuracy {percent(found.accuracy)}", strong=percent(found.accuracy))
    for note in found.notes:
        console.text(note + (f" (searched {folder}; see --data-dir)" if test is None and "no images" in note else ""))
    if written:
        console.text(f"pictures in {plots}: {', '.join(sorted({picture.stem for picture in written}))} (PNG and SVG)")


def _show_layers(console: "Console", found: "Inspection") -> None:
    """Four narrow tables: a terminal of 80 columns shows each of them whole."""
    from qattrain.report.drawing import bars
    from qattrain.report.tables import COST_NOTE, LAYER_COST, LAYER_GRID, LAYER_SUMS, LAYER_USE, layer_table

    histograms = {
        histogram.layer: bars(
            histogram.after if len(histogram.after) else histogram.before,
            HISTOGRAM_COLUMNS,
            logarithmic=histogram.kind == "activation",  # most activations are 0: nothing else would be visible
        )
        for histogram in found.histograms
    }
    console.table(layer_table(found.layers, LAYER_GRID))
    console.table(layer_table(found.layers, ("layer", *LAYER_USE), histograms))
    costly = [layer for layer in found.layers if layer.macs is not None]
    console.table(layer_table(costly, ("layer", *LAYER_COST), totals=found.totals))
    console.paragraph(COST_NOTE)
    console.table(layer_table(costly, ("layer", *LAYER_SUMS)))
