"""Pictures of a network's inside, each from its data to a matplotlib figure. Drawn to be read without colour, too."""

import math

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qattrain.inspection import Confusion, Filters, HardImage, Inspection, LayerHistogram
from qattrain.report.console import counted, percent
from qattrain.report.figures import COLORS

MOST_GRID_LINES = 32  # more would be a grey area
BEFORE, AFTER, CLIP = "#c0c0c0", COLORS[0], COLORS[1]
AFTER_LABEL = "after: codes"
UNITS = {  # of the axis of values
    ("weight", "steps"): "weight / scale (steps of its channel's grid)",
    ("weight", "value"): "weight (real value)",
    ("weight", "codes"): "weight code, zero point subtracted (steps)",
    ("activation", "value"): "activation (real value)",
    ("activation", "codes"): "activation code (steps)",
}


def inspection_figures(inspection: Inspection) -> dict[str, Figure]:
    """Every picture for which there are data, by the name of its file."""
    title, found = inspection.title, inspection.histograms
    weights = [histogram for histogram in found if histogram.kind == "weight"]
    activations = [histogram for histogram in found if histogram.kind == "activation"]
    figures = {"weights": weight_figure(weights, title)}
    if activations:
        figures["activations"] = activation_figure(activations, title)
    figures["filters"] = filter_figure(inspection.filters, title)
    if inspection.confusion is not None:
        figures["confusion"] = confusion_figure(inspection.confusion, title)
    if inspection.hardest:
        figures["hardest"] = hardest_figure(inspection.hardest, title)
    return figures


def weight_figure(histograms: list[LayerHistogram], title: str) -> Figure:
    """A panel per layer: weights before quantization, the grid, and how many weights lie on each of its points."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, histogram in zip(panels, histograms, strict=True):
        draw_histogram(axes, histogram)
    _title_and_legend(figure, f"{_what('Weights', histograms)}: {title}")
    return figure


def activation_figure(histograms: list[LayerHistogram], title: str) -> Figure:
    """A panel per activation: values after the ReLU, their grid, and where they are clipped."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(histograms), squeeze=False)[0]
    for axes, histogram in zip(panels, histograms, strict=True):
        draw_histogram(axes, histogram)
    _title_and_legend(figure, f"{_what('Activations', histograms)}: {title}")
    return figure


def _what(things: str, histograms: list[LayerHistogram]) -> str:
    if not any(len(histogram.after) for histogram in histograms):
        return f"{things}, not quantized"
    known = any(len(histogram.before) for histogram in histograms)
    return f"{things} before and after quantization" if known else f"{things}, codes only"


def draw_histogram(axes: Axes, data: LayerHistogram) -> None:
    """One layer: values before quantization, its grid, what lies on each point, and where values are clipped."""
    wide = "bin" if data.quantizer is None else "step"
    axes.set(xlabel=UNITS[data.kind, data.unit], ylabel=f"share of {data.kind}s per {wide}")
    if data.kind == "activation":
        axes.set_yscale("log")
    step = data.step
    if len(data.before):
        width = float(data.edges[1] - data.edges[0])
        per = width / step if len(data.grid) else 1.0  # in bins one step wide both histograms have one height
        axes.stairs(data.before / data.total / per, data.edges, fill=True, color=BEFORE, label="before quantization")
    few = 0 < len(data.grid) <= MOST_GRID_LINES
    if len(data.after) and few:
        axes.bar(data.grid, data.after / data.total, 0.8 * step, fill=False, edgecolor=AFTER, lw=1.2, label=AFTER_LABEL)
    elif len(data.after):
        between = np.append(data.grid - step / 2, data.grid[-1] + step / 2)
        axes.stairs(data.after / data.total, between, color=AFTER, lw=0.8, label=AFTER_LABEL)
    if few:
        for index, point in enumerate(data.grid):
            axes.axvline(point, color="black", lw=0.5, ls=":", label="points of the grid" if index == 0 else None)
    if data.clip is not None:
        low, high = data.clip
        points = [high] if data.kind == "activation" else [low, high]
        for index, point in enumerate(points):
            axes.axvline(point, color=CLIP, lw=1.6, ls="--", label="clipped beyond" if index == 0 else None)
    kind = "float" if data.quantizer is None else f"{data.quantizer}, {counted(data.bits, 'bit')}"
    scales = ""
    if data.scale_range is not None:
        low, high = data.scale_range
        scales = f", scale {low:.3g}" + ("" if low == high else f" to {high:.3g}")
    axes.set_title(f"{data.layer} ({kind}{scales})", fontsize=10)
    if data.unit != "value":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, axis="y")


def _title_and_legend(figure: Figure, title: str) -> None:
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.suptitle(title)
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=len(named))


def filter_figure(filters: Filters, title: str) -> Figure:
    """The first layer's kernels: as floats above, as codes below; whichever is known."""
    kinds = [
        ("float weights", "weight (real value)", filters.values),
        (f"codes ({counted(filters.bits, 'bit')})", "code, zero point subtracted (steps)", filters.codes),
    ]
    known = [(name, unit, kernels) for name, unit, kernels in kinds if kernels is not None]
    count = len(known[0][2])
    columns = min(10, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(11, 0.6 + len(known) * (0.9 + 1.0 * rows)), layout="constrained")
    parts = figure.subfigures(len(known), 1, squeeze=False)[:, 0]
    for part, (name, unit, kernels) in zip(parts, known, strict=True):
        bound = max(float(np.abs(kernels).max()), 1e-9)
        panels = part.subplots(rows, columns, squeeze=False).flatten()
        for number, axes in enumerate(panels):
            axes.set(xticks=[], yticks=[])
            axes.set_visible(number < count)
            if number < count:
                image = axes.imshow(kernels[number], cmap="gray", vmin=-bound, vmax=bound)
                axes.set_title(f"channel {number}", fontsize=7)
        ticks = MaxNLocator(integer=True) if kernels is filters.codes else None
        part.colorbar(image, ax=panels.tolist(), label=unit, shrink=0.9, ticks=ticks)
        part.suptitle(f"conv1, {count} kernels of 5x5 pixels: {name}", fontsize=10)
    figure.suptitle(f"First-layer filters: {title}")
    return figure


def confusion_figure(confusion: Confusion, title: str) -> Figure:
    """Errors by true and predicted class; the diagonal, which would hide all else, is left white."""
    classes = len(confusion.class_names)
    side = max(6.0, 0.22 * classes + 2)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    errors = confusion.counts.astype(float)
    np.fill_diagonal(errors, 0)
    darkest = max(1.0, float(errors.max()))
    image = axes.imshow(errors, cmap="Greys", vmin=0, vmax=darkest)
    rotation = 0 if max(map(len, confusion.class_names)) <= 2 else 90
    axes.set_xticks(range(classes), confusion.class_names, rotation=rotation)
    axes.set_yticks(range(classes), confusion.class_names)
    if classes <= 12:
        for (row, column), count in np.ndenumerate(confusion.counts):
            if count:
                ink = "white" if errors[row, column] > darkest / 2 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=ink)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(
        f"Confusion matrix: {title}\n{confusion.errors:,} errors on {confusion.total:,} test images "
        f"({percent(confusion.errors / confusion.total)}); diagonal: correct"
    )
    figure.colorbar(image, label="wrongly classified (images)", shrink=0.8, ticks=MaxNLocator(integer=True))
    return figure


def hardest_figure(hardest: list[HardImage], title: str) -> Figure:
    """The wrongly classified images whose true class got the least probability."""
    columns = min(5, len(hardest))
    rows = math.ceil(len(hardest) / columns)
    figure = Figure(figsize=(max(7.5, 1.9 * columns), 0.9 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, image in zip(panels, hardest, strict=False):
        axes.imshow(image.image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(
            f"true {image.true} ({percent(image.true_probability, 1)})\n"
            f"predicted {image.predicted} ({percent(image.predicted_probability, 1)})",
            fontsize=8,
        )
    figure.suptitle(f"Worst-classified test images: {title}\nprobability of the class in brackets")
    return figure
