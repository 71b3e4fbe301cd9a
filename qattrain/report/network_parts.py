"""The parts of a page that show one network: its layers, the images it gets wrong."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from qattrain.inspection import Confusion, Filters, HardImage, LayerHistogram, LayerReport
from qattrain.report.blocks import Block, Cell, Chart, Charts, Section, Shaded, Table, Text, Tile, Tiles
from qattrain.report.console import counted, percent
from qattrain.report.figures import CHART_INCHES
from qattrain.report.findings import Finding
from qattrain.report.inspection_figures import draw_histogram
from qattrain.report.svg import inline_svg

UNKNOWN = "-"


def network_section(finding: Finding, ident: str) -> Section:
    """Everything about one network that is seen by looking into it."""
    inside = finding.inspection
    parts = [Section(f"{ident}-layers", "Layers", _layers(finding, ident))]
    if inside.confusion is not None:
        errors: list[Block] = [_confusion(inside.confusion, f"{ident}-confusion")]
        if inside.hardest:
            errors.append(_hardest(inside.hardest, f"{ident}-hardest"))
        parts.append(Section(f"{ident}-errors", "Errors", errors))
    return Section(ident, finding.name, [Text(note) for note in inside.notes], parts)


def _layers(finding: Finding, ident: str) -> list[Block]:
    inside = finding.inspection
    charts = [_histogram(layer, f"{ident}-{layer.layer}") for layer in inside.histograms]
    return [_layer_table(inside.layers, f"{ident}-layer-table"), Charts(charts), *_filters(inside.filters, ident)]


def _layer_table(layers: Sequence[LayerReport], ident: str) -> Table:
    def number(value: float | None, form: str) -> str:
        return UNKNOWN if value is None else format(value, form)

    def scales(layer: LayerReport) -> str:
        low, high = layer.scale_min, layer.scale_max
        return number(low, ".3g") if low == high else f"{number(low, '.3g')} to {number(high, '.3g')}"

    rows = [
        [
            layer.layer,
            layer.kind,
            "x".join(map(str, layer.shape)) or UNKNOWN,
            str(layer.bits),
            layer.quantizer or "float",
            scales(layer),
            UNKNOWN if layer.codes_used is None else f"{layer.codes_used} of {layer.levels}",
            number(layer.entropy_bits, ".2f"),
            UNKNOWN if layer.clipped_share is None else percent(layer.clipped_share),
            number(layer.sqnr_db, ".1f"),
            number(layer.accumulator_bound, ","),
            number(layer.accumulator_bits, "d"),
            number(layer.weight_bytes, ","),
        ]
        for layer in layers
    ]
    columns = ["layer", "of", "shape", "bits", "quantizer", "scale", "codes used", "entropy (bits)", "clipped"]
    columns += ["SQNR (dB)", "largest sum", "sum bits", "weight bytes"]
    caption = "Every layer's grid and how well it is used"
    return Table(ident, caption, columns, rows, left=("of", "shape", "quantizer", "scale"))


def _histogram(data: LayerHistogram, ident: str) -> Chart:
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = figure.subplots()
    draw_histogram(axes, data)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    what = "Weights" if data.kind == "weight" else "Activations"
    grid = f"on a grid of {len(data.grid)} points" if len(data.grid) else "not quantized"
    caption = f"{data.total:,} values, {grid}." + ("" if data.kind == "weight" else " Logarithmic shares.")
    if len(data.grid):
        columns = ["point of the grid", "values", "share"]
        pairs = zip(data.grid, data.after, strict=True)
        rows = [[f"{point:g}", f"{count:,}", percent(count / data.total)] for point, count in pairs]
    else:
        columns = ["from", "to", "values", "share"]
        bins = zip(data.edges, data.edges[1:], data.before, strict=False)
        rows = [[f"{a:.4g}", f"{b:.4g}", f"{count:,}", percent(count / data.total)] for a, b, count in bins]
    title = f"{what} of {data.layer}"
    table = Table(f"{ident}-table", title, columns, rows)
    return Chart(inline_svg(figure, ident, title, f"Histogram. {caption}"), title, caption, table)


def _filters(filters: Filters, ident: str) -> list[Block]:
    kinds = [("First-layer filters, float weights", filters.values, "real values", ".3f")]
    kinds += [(f"First-layer filters, codes of {counted(filters.bits, 'bit')}", filters.codes, "codes", "d")]
    blocks: list[Block] = []
    for title, kernels, unit, form in kinds:
        if kernels is None:
            continue
        bound = max(float(np.abs(kernels).max()), 1e-9)
        pixels = np.round((kernels / bound + 1) * 127.5).astype(np.uint8)
        tiles = [Tile(_png(image), f"Kernel of channel {n}", [f"channel {n}"]) for n, image in enumerate(pixels)]
        shown = f"{bound:.3g}" if form != "d" else f"{bound:.0f}"
        caption = f"{len(kernels)} kernels of 5x5 pixels; black is -{shown}, grey 0, white {shown} ({unit})."
        rows = [
            [f"channel {n}", *(" ".join(format(value, form) for value in row) for row in kernel)]
            for n, kernel in enumerate(kernels)
        ]
        name = f"{ident}-filters-{unit.split()[0]}"
        table = Table(name, title, ["kernel", *(f"row {row}" for row in range(1, 6))], rows)
        blocks.append(Tiles(title, caption, tiles, 56, table))
    return blocks


def _confusion(confusion: Confusion, ident: str) -> Table:
    counts, names = confusion.counts, confusion.class_names
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most = max(int(wrong.max()), 1)
    rows: list[list[Cell]] = [
        [
            name,
            *(
                Shaded(f"{count:,}" if count else "·", int(wrong[row, column]) / most)
                for column, count in enumerate(counts[row])
            ),
            f"{wrong[row].sum():,}",
            percent(counts[row, row] / counts[row].sum()) if counts[row].sum() else UNKNOWN,
        ]
        for row, name in enumerate(names)
    ]
    caption = (
        f"Confusion matrix: rows are true classes, columns the network's answers; {confusion.errors:,} errors on "
        f"{counted(confusion.total, 'test image')}, the stronger the tint, the more"
    )
    return Table(ident, caption, ["true", *names, "errors", "accuracy"], rows)


def _hardest(hardest: Sequence[HardImage], ident: str) -> Tiles:
    tiles = [
        Tile(
            _png(255 - hard.image),
            f"Test image {hard.index}: true {hard.true}, predicted {hard.predicted}",
            [f"true {hard.true}", f"said {hard.predicted}"],
        )
        for hard in hardest
    ]
    rows = [
        [
            str(hard.index),
            hard.true,
            percent(hard.true_probability),
            hard.predicted,
            percent(hard.predicted_probability),
        ]
        for hard in hardest
    ]
    columns = ["test image", "true class", "its probability", "predicted class", "its probability "]
    caption = f"The {counted(len(hardest), 'error')} where the true class got the least probability, the worst first."
    table = Table(ident, "Hardest images", columns, rows)
    return Tiles("Hardest images", caption, tiles, 64, table)


def _png(pixels: NDArray[np.uint8]) -> str:
    """uint8 (H, W), 0 black, as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
