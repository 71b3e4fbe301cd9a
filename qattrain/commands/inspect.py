"""`qattrain inspect`: a network's inside, layer by layer, in numbers and in pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.evaluation.inspection import Inspection, LayerReport
    from qattrain.report.console import Console


HISTOGRAM_COLUMNS = 16


def inspect(
    checkpoint: opt.NetworkName,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw every picture, as PNG and SVG, into this folder.")
    ] = None,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use only the first N test images.")] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Show every layer's grid, and how well it is used: codes, entropy, clipping, noise, and a histogram.

    With --plots: weights before and after with the grid, activations with their clip point, first-layer filters,
    confusion matrix, and the worst-classified images. What depends on images needs the dataset on disk.

    \b
    Examples:
      qattrain inspect lenet-w4a4-lsq-mnist-s0
      qattrain inspect lenet-w4a4-lsq-mnist-s0 --plots pictures
      qattrain inspect runs/lenet-w4a4-lsq-mnist-s0/export/model.safetensors
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    from qattrain.data import is_on_disk
    from qattrain.evaluation.checkpoints import load_test_data
    from qattrain.evaluation.inspection import inspect_network
    from qattrain.evaluation.networks import Packed, load_network
    from qattrain.report.drawing import check_writable, write_pictures
    from qattrain.runs.folder import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    network, folder = load_network(path), opt.data_folder(data_dir)
    name, test = network.facts.dataset, None
    if is_on_disk(name, folder):
        test = load_test_data(network, path, folder).test.head(limit_test or network.limit_test)
    if plots is not None:
        check_writable(plots)
    run_name = path.name if isinstance(network, Packed) else path.parent.name
    found = inspect_network(network, test, title=f"{run_name}, {name}")
    if network.notice:
        console.notice(network.notice)
    written = []
    if plots is not None:
        from qattrain.report.figures import inspection_figures

        written = write_pictures(plots, inspection_figures(found))
    console.result(
        {
            "checkpoint": str(path),
            "dataset": name,
            "test_images": found.images,
            "accuracy": found.accuracy,
            "layers": [asdict(report) for report in found.layers],
            "pictures": [str(picture) for picture in written],
            "notes": found.notes,
        }
    )
    console.text(f"{path}: {network.facts.name} on {name}")
    _tables(console, found)
    if found.confusion is not None:
        errors, right = found.confusion.errors, percent(found.accuracy or 0)
        console.text(f"{errors:,} errors on {found.images:,} test images: accuracy {right}")
    for note in found.notes:
        console.text(note + (f" (looked in {folder}; see --data-dir)" if test is None and "no images" in note else ""))
    if written:
        console.text(f"pictures in {plots}: {', '.join(sorted({picture.stem for picture in written}))} (PNG and SVG)")


def _tables(console: "Console", found: "Inspection") -> None:
    from qattrain.report.console import percent
    from qattrain.report.drawing import bars

    # Most activations are 0: counted plainly, nothing else would be seen.
    shapes = {
        histogram.layer: bars(
            histogram.after if len(histogram.after) else histogram.before,
            HISTOGRAM_COLUMNS,
            logarithmic=histogram.kind == "activation",
        )
        for histogram in found.histograms
    }

    def scales(report: "LayerReport") -> str:
        if report.scale_min is None:
            return "-"
        same = report.scale_min == report.scale_max
        return f"{report.scale_min:.3g}" + ("" if same else f" .. {report.scale_max:.3g}")

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    made_of = [
        [
            report.layer,
            report.kind,
            "x".join(map(str, report.shape)) or "-",
            str(report.bits),
            report.quantizer or "float",
            scales(report),
        ]
        for report in found.layers
    ]
    used = [
        [
            report.layer,
            "-" if report.codes_used is None else f"{report.codes_used} of {report.levels}",
            number(report.entropy_bits, ".2f"),
            "-" if report.clipped_share is None else percent(report.clipped_share),
            number(report.sqnr_db, ".1f"),
            shapes.get(report.layer, "-"),
        ]
        for report in found.layers
    ]
    costs = [
        [
            report.layer,
            number(report.weight_bytes, ","),
            number(report.accumulator_bound, ","),
            number(report.accumulator_bits, "d"),
        ]
        for report in found.layers
        if report.kind == "weight"
    ]
    # Three narrow tables: a terminal of 80 columns shows them whole.
    columns = ["layer", "of", "shape", "bits", "quantizer", "scale"]
    console.table(columns, made_of, left=("of", "shape", "quantizer", "scale"))
    columns = ["layer", "codes used", "entropy (bits)", "clipped", "SQNR (dB)", "histogram"]
    console.table(columns, used, left=("histogram",))
    console.table(["layer", "weight bytes", "largest sum", "sum bits"], costs)
