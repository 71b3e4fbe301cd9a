"""A network's inside, as `inspect --plots` draws it in files and as a report's page shows it: both from the same data.

Histograms of every layer, the first layer's filters, the confusion matrix, the hardest images.
"""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from qattrain.evaluation.inspection import Inspection
from qattrain.evaluation.metrics import Confusion, HardImage
from qattrain.evaluation.observed import LayerHistogram
from qattrain.report.console import UNKNOWN, Table, counted, percent, spread
from qattrain.report.drawing import BACKGROUND, COLORS, chart_figure, heading, plotted_name
from qattrain.report.filters import filter_figure, filter_tiles, known_kernels
from qattrain.report.page import Block, Chart, Charts, Section, Text, Tile, Tiles
from qattrain.report.tables import LAYER_COST, LAYER_GRID, LAYER_SUMS, LAYER_USE, layer_table

MOST_GRID_LINES = 32  # more would merge into a grey area
SHORT_NAME = 8  # of a class: longer ones get the line above an image for themselves
IMAGE_SIDE = 64  # on a page, in CSS pixels
AFTER, CLIP = COLORS[6], COLORS[3]  # colours that are no quantized method's
AFTER_LABEL = "after: codes"
THINGS = {"weight": "Weights", "activation": "Activations"}
UNITS = {  # of the axis of values
    ("weight", "steps"): "weight / scale (steps of its channel's grid)",
    ("weight", "value"): "weight (real value)",
    ("weight", "codes"): "weight code, zero point subtracted (steps)",
    ("activation", "value"): "activation (real value)",
    ("activation", "codes"): "activation code (steps)",
}


def inspection_figures(inspection: Inspection) -> dict[str, Figure]:
    """Every picture for which there are data, by the name of its file."""
    title, figures = inspection.title, {}
    for kind in THINGS:
        if histograms := [histogram for histogram in inspection.histograms if histogram.kind == kind]:
            figures[f"{kind}s"] = histogram_figure(histograms, title)
    if inspection.filters is not None:
        figures["filters"] = filter_figure(inspection.filters, title)
    if inspection.confusion is not None:
        figures["confusion"] = confusion_figure(inspection.confusion, title)
    if inspection.hardest:
        figures["hardest"] = hardest_figure(inspection.hardest, title)
    return figures


def network_section(inspection: Inspection, heading: str, ident: str) -> Section:
    """The same on a page, and the tables of layers."""
    costly = [layer for layer in inspection.layers if layer.macs is not None]
    layers: list[Block] = [
        layer_table(inspection.layers, LAYER_GRID + LAYER_USE),
        layer_table(costly, ("layer", *LAYER_COST, *LAYER_SUMS), totals=inspection.totals),
        Charts([histogram_chart(histogram) for histogram in inspection.histograms]),
        *map(filter_tiles, known_kernels(inspection.filters)),
    ]
    parts = [Section(f"{ident}-layers", "Layers", layers)]
    if inspection.confusion is not None:
        errors: list[Block] = [confusion_table(inspection.confusion)]
        errors += [hardest_tiles(inspection.hardest)] if inspection.hardest else []
        parts.append(Section(f"{ident}-errors", "Errors", errors))
    return Section(ident, heading, [Text(note) for note in inspection.notes], parts)


def histogram_figure(histograms: Sequence[LayerHistogram], title: str) -> Figure:
    """A panel for each layer's weights, or for each activation, all of one kind."""
    columns = 2 if len(histograms) == 4 else min(3, len(histograms))
    rows = math.ceil(len(histograms) / columns)
    figure = Figure(figsize=(11, 1.8 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(histograms) :]:
        axes.remove()
    legend: dict[str, Artist] = {}
    for axes, histogram in zip(panels, histograms, strict=False):
        draw_histogram(axes, histogram)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    what = THINGS[histograms[0].kind]
    if not any(len(histogram.after) for histogram in histograms):
        what += ", not quantized"
    elif any(len(histogram.before) for histogram in histograms):
        what += " before and after quantization"
    else:
        what += ", codes only"
    figure.suptitle(heading(f"{what}: {title}"))
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return figure


def histogram_chart(data: LayerHistogram) -> Chart:
    """One layer's histogram, and its counts as a table."""
    figure = chart_figure(lambda axes: draw_histogram(axes, data), columns=2)
    if len(data.grid):
        grid, columns = f"on a grid of {len(data.grid)} points", ["point of the grid"]
        bins = [([f"{point:g}"], count) for point, count in zip(data.grid, data.after, strict=True)]
    else:
        grid, columns = "not quantized", ["from", "to"]
        edges = zip(data.edges, data.edges[1:], data.before, strict=False)
        bins = [([f"{low:.4g}", f"{high:.4g}"], count) for low, high, count in edges]
    rows = [[*names, f"{count:,}", percent(count / data.total)] for names, count in bins]
    title = f"{THINGS[data.kind]} of {data.layer}"
    caption = f"{data.total:,} values, {grid}." + (" Logarithmic shares." if data.kind == "activation" else "")
    return Chart(figure, title, caption, f"Histogram. {caption}", Table(title, [*columns, "values", "share"], rows))


def draw_histogram(axes: Axes, data: LayerHistogram) -> None:
    """One layer: values before quantization, its grid, what lies on each point, and where values are clipped."""
    wide = "bin" if data.quantizer is None else "step"
    axes.set(xlabel=UNITS[data.kind, data.unit], ylabel=f"share of {data.kind}s per {wide}")
    if data.kind == "activation":
        axes.set_yscale("log")
    step = data.step
    if len(data.before):
        width = float(data.edges[1] - data.edges[0])
        per = width / step if len(data.grid) else 1.0  # as if bins were a step wide: both have one height
        shares = data.before / data.total / per
        axes.stairs(shares, data.edges, fill=True, color=BACKGROUND, label="before quantization")
    few = 0 < len(data.grid) <= MOST_GRID_LINES
    if len(data.after) and few:
        axes.bar(data.grid, data.after / data.total, 0.8 * step, fill=False, edgecolor=AFTER, lw=1.2, label=AFTER_LABEL)
    elif len(data.after):
        between = np.append(data.grid - step / 2, data.grid[-1] + step / 2)
        axes.stairs(data.after / data.total, between, color=AFTER, lw=0.8, label=AFTER_LABEL)
    if few:
        whole = axes.get_xaxis_transform()
        axes.vlines(data.grid, 0, 1, color="black", ls=":", lw=0.5, label="points of the grid", transform=whole)
    if data.clip is not None:
        low, high = data.clip
        points = [high] if data.kind == "activation" else [low, high]
        for index, point in enumerate(points):
            axes.axvline(point, color=CLIP, lw=1.6, ls="--", label="clipped beyond" if index == 0 else None)
    kind = "float" if data.quantizer is None else f"{data.quantizer}, {counted(data.bits, 'bit')}"
    scales = "" if data.scale_range is None else f", scale {spread(*data.scale_range)}"
    axes.set_title(f"{data.layer} ({kind}{scales})", fontsize=10)
    if data.unit != "value":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, axis="y")


def wrong_counts(confusion: Confusion) -> tuple[NDArray[np.int64], int]:
    """The counts with a diagonal of 0, which would hide all others, and the count that is shown darkest."""
    wrong = confusion.counts - np.diag(np.diag(confusion.counts))
    return wrong, max(int(wrong.max()), 1)


def error_summary(confusion: Confusion) -> str:
    """`57 errors on 10,000 test images (0.57 %)`."""
    share = percent(confusion.errors / confusion.total)
    return f"{counted(confusion.errors, 'error')} on {counted(confusion.total, 'test image')} ({share})"


def confusion_figure(confusion: Confusion, title: str) -> Figure:
    """Errors by true and predicted class; the diagonal stays white."""
    classes = len(confusion.class_names)
    side = max(6.0, 0.22 * classes + 2)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    wrong, darkest = wrong_counts(confusion)
    image = axes.imshow(wrong, cmap="Greys", vmin=0, vmax=darkest)
    rotation = 0 if max(map(len, confusion.class_names)) <= 2 else 90
    names = [plotted_name(name) for name in confusion.class_names]
    axes.set_xticks(range(classes), names, rotation=rotation)
    axes.set_yticks(range(classes), names)
    if classes <= 12:
        for (row, column), count in np.ndenumerate(confusion.counts):
            if count:
                ink = "white" if wrong[row, column] > darkest / 2 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=ink)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(heading(f"Confusion matrix: {title}\n{error_summary(confusion)}; diagonal: correct", 10 * int(side)))
    figure.colorbar(image, label="wrongly classified (images)", shrink=0.8, ticks=MaxNLocator(integer=True))
    return figure


def confusion_table(confusion: Confusion) -> Table:
    """All counts, the errors tinted; errors and accuracy of each class."""
    wrong, darkest = wrong_counts(confusion)
    rows, tints = [], []
    for index, (name, counts) in enumerate(zip(confusion.class_names, confusion.counts, strict=True)):
        accuracy = percent(counts[index] / counts.sum()) if counts.sum() else UNKNOWN
        cells = [f"{count:,}" if count else "·" for count in counts]
        rows.append([name, *cells, f"{wrong[index].sum():,}", accuracy])
        tints.append([0.0, *(wrong[index] / darkest).tolist(), 0.0, 0.0])
    title = (
        f"Confusion matrix: rows are true classes, columns predicted classes; {error_summary(confusion)}; the stronger "
        "the tint, the more errors"
    )
    return Table(title, ["true", *confusion.class_names, "errors", "accuracy"], rows, tints=tints)


def hardest_row(hard: HardImage) -> dict[str, str]:
    """A wrong answer in text: column -> cell."""
    return {
        "test image": str(hard.index),
        "true class": hard.true,
        "probability of the true class": percent(hard.true_probability),
        "predicted class": hard.predicted,
        "probability of the predicted class": percent(hard.predicted_probability),
    }


def hardest_figure(hardest: Sequence[HardImage], title: str) -> Figure:
    """The wrongly classified images whose true class got the lowest probability."""
    columns = min(5, len(hardest))
    rows = math.ceil(len(hardest) / columns)
    figure = Figure(figsize=(max(7.5, 1.9 * columns), 0.9 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, hard in zip(panels, hardest, strict=False):
        axes.imshow(hard.image, cmap="gray", vmin=0, vmax=255)
        _, true, of_true, predicted, of_predicted = hardest_row(hard).values()
        between = " " if max(len(true), len(predicted)) <= SHORT_NAME else "\n"
        lines = (f"true {true}{between}({of_true})", f"predicted {predicted}{between}({of_predicted})")
        axes.set_title("\n".join(plotted_name(line) for line in "\n".join(lines).split("\n")), fontsize=8)
    figure.suptitle(heading(f"Worst-classified test images: {title}\nin brackets: probability of the class"))
    return figure


def hardest_tiles(hardest: Sequence[HardImage]) -> Tiles:
    """The same images on a page, and their probabilities as a table."""
    rows = [hardest_row(hard) for hard in hardest]
    tiles = []
    for hard, row in zip(hardest, rows, strict=True):
        lines = [f"true {row['true class']}", f"predicted {row['predicted class']}"]
        tiles.append((hard.image, Tile("", f"Test image {row['test image']}: {', '.join(lines)}", lines)))
    caption = f"The {counted(len(hardest), 'error')} whose true class got the lowest probability, the worst first."
    return image_tiles("Hardest images", caption, tiles, Table.of("Hardest images", rows))


def image_tiles(title: str, caption: str, tiles: Sequence[tuple[NDArray[np.uint8], Tile]], table: Table) -> Tiles:
    """Test images, all of one size, on a page. tiles: pixels, and the tile, without its source, that shows them."""
    shape = tiles[0][0].shape[:2]
    size = _shown_size(shape, min(max(*shape, IMAGE_SIDE), 2 * IMAGE_SIDE))
    return Tiles(title, caption, [tile._replace(source=_png(pixels)) for pixels, tile in tiles], *size, table)


def _shown_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height in CSS pixels of an image of `shape` (height, width) whose longer side has `side`."""
    height, width = shape
    return max(1, round(side * width / max(shape))), max(1, round(side * height / max(shape)))


def _png(pixels: NDArray[np.uint8]) -> str:
    """uint8 (H, W), 0 black, or (H, W, 3) in colour, as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
