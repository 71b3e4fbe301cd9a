"""Pictures of a network's inside and of a sweep, each from its data. Drawn to be read without colour, too."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from qattrain.experiments.folder import PICTURES, pareto_front
from qattrain.report.console import counted, percent
from qattrain.report.drawing import BEFORE, COLORS, DASHES, MARKERS, plotted_name, png, svg

if TYPE_CHECKING:  # they need torch, pictures of a sweep do not
    from qattrain.evaluation.inspection import Inspection, LayerHistogram, Observed
    from qattrain.evaluation.metrics import Confusion, HardImage

MOST_GRID_LINES = 32  # more would be a grey area
AFTER, CLIP = COLORS[0], COLORS[1]
AFTER_LABEL = "after: codes"
UNITS = {  # of the axis of values
    ("weight", "steps"): "weight / scale (steps of its channel's grid)",
    ("weight", "value"): "weight (real value)",
    ("weight", "codes"): "weight code, zero point subtracted (steps)",
    ("activation", "value"): "activation (real value)",
    ("activation", "codes"): "activation code (steps)",
}


def inspection_figures(inspection: "Inspection") -> dict[str, Figure]:
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


def weight_figure(histograms: "list[LayerHistogram]", title: str) -> Figure:
    """A panel per layer: weights before quantization, the grid, and how many weights lie on each of its points."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, histogram in zip(panels, histograms, strict=True):
        draw_histogram(axes, histogram)
    _title_and_legend(figure, f"{_what('Weights', histograms)}: {title}")
    return figure


def activation_figure(histograms: "list[LayerHistogram]", title: str) -> Figure:
    """A panel per activation: values after the ReLU, their grid, and where they are clipped."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(histograms), squeeze=False)[0]
    for axes, histogram in zip(panels, histograms, strict=True):
        draw_histogram(axes, histogram)
    _title_and_legend(figure, f"{_what('Activations', histograms)}: {title}")
    return figure


def _what(things: str, histograms: "list[LayerHistogram]") -> str:
    if not any(len(histogram.after) for histogram in histograms):
        return f"{things}, not quantized"
    known = any(len(histogram.before) for histogram in histograms)
    return f"{things} before and after quantization" if known else f"{things}, codes only"


def draw_histogram(axes: Axes, data: "LayerHistogram") -> None:
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


def filter_figure(filters: "Observed", title: str) -> Figure:
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


def confusion_figure(confusion: "Confusion", title: str) -> Figure:
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


def hardest_figure(hardest: "list[HardImage]", title: str) -> Figure:
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


FEWEST_LABELS = 4
SHIFT = 0.06  # in bits, from line to line
FEWEST_ERRORS = 1e-4  # where a logarithmic axis ends: no error at all has no place on it


def sweep_pictures(document: dict[str, Any]) -> dict[str, bytes]:
    """File name -> content of PICTURES, from a `sweep.json` with at least one group."""
    figures = {
        "accuracy-bits": _figure(document, draw_bits, "accuracy against bits"),
        "accuracy-bytes": _figure(document, draw_bytes, "accuracy against size"),
    }
    kinds = {"png": png, "svg": svg}
    names = {name: name.split(".") for name in PICTURES}
    return {name: kinds[kind](figures[stem]) for name, (stem, kind) in names.items()}


def _figure(document: dict[str, Any], draw: Callable[[Axes, dict[str, Any]], None], what: str) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    draw(axes, document)
    axes.set_title(_title(document, what))
    axes.legend(fontsize=9)
    return figure


def draw_bits(axes: Axes, document: dict[str, Any]) -> None:
    """A line per method and what else differs: accuracy against the bits of a weight."""
    series = _series(document["groups"])
    for index, (label, groups) in enumerate(series.items()):
        color, marker, dash = _style(index)
        if groups[0]["method"] == "fp32":
            for group in groups:
                axes.axhline(_errors(group), color=color, ls=":", lw=1.5, label=f"{label}: {_percent(group)}")
            continue
        line = sorted(groups, key=lambda group: group["bits"])
        shift = SHIFT * (index - (len(series) - 1) / 2)  # bars beside each other can be told apart
        bits, errors = [group["bits"] + shift for group in line], [_errors(group) for group in line]
        bars = axes.errorbar(
            bits, errors, yerr=_bars(line), color=color, marker=marker, ls=dash, capsize=4, label=label
        )
        bars[0].set_markerfacecolor("white" if groups[0]["method"] == "ptq" else color)
    bits = sorted({group["bits"] for group in document["groups"] if group["method"] != "fp32"})
    axes.set(xlabel="bits of a weight")
    axes.set_xticks(bits)
    if bits:
        axes.set_xlim(bits[0] - 0.5, bits[-1] + 0.5)
    _finish(axes, document, [])


def draw_bytes(axes: Axes, document: dict[str, Any]) -> None:
    """A point per group: accuracy against the bytes of the weights, with the Pareto front and the others' points."""
    for index, (label, groups) in enumerate(_series(document["groups"]).items()):
        color, marker, _ = _style(index)
        sizes, errors = [group["weight_bytes"] for group in groups], [_errors(group) for group in groups]
        bars = axes.errorbar(
            sizes, errors, yerr=_bars(groups), color=color, marker=marker, ls="", capsize=4, label=label
        )
        bars[0].set_markerfacecolor("white" if groups[0]["method"] == "ptq" else color)
    best: dict[int, dict[str, Any]] = {}
    for group in sorted(document["groups"], key=_errors):
        best.setdefault(group["weight_bytes"], group)
    for size, group in best.items():
        axes.annotate(_bits_text(group), (size, _errors(group)), xytext=(6, 6), textcoords="offset points", fontsize=8)
    front = pareto_front(document["groups"])
    sizes = [group["weight_bytes"] for group in front]
    axes.plot(
        sizes, [_errors(group) for group in front], color="black", lw=1, drawstyle="steps-post", label="Pareto front"
    )
    for index, point in enumerate(document["reference"]):
        where = (point["weight_bytes"], max(1 - point["accuracy"], FEWEST_ERRORS))
        label = "others" if index == 0 else "_"  # the legend skips what begins so
        axes.plot(*where, color="black", marker="*", mfc="white", ms=10, ls="", label=label)
        axes.annotate(plotted_name(point["name"]), where, xytext=(7, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="packed weights (bytes)", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    _finish(axes, document, document["reference"])


def _finish(axes: Axes, document: dict[str, Any], drawn: list[dict[str, Any]]) -> None:
    """Accuracy upwards, spread out towards 100 %: a logarithmic axis of the error, labelled as accuracy."""
    shown = [(_errors(group), group["accuracy_std"] or 0.0) for group in document["groups"]]
    shown += [(max(1 - point["accuracy"], FEWEST_ERRORS), 0.0) for point in drawn]
    top = min(1.2 * max(error + bar for error, bar in shown), 1.0)
    # A long bar must not squeeze everything else: of the lowest mean, two thirds are enough.
    lowest = min(error for error, _ in shown)
    bottom = max(min(error - bar for error, bar in shown) / 1.2, lowest / 3, FEWEST_ERRORS)
    axes.set(ylabel="test accuracy (%)", yscale="log", ylim=(top, bottom))
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100)):  # as fine as a few labels need
        steps = [digit * 10.0**power for power in range(-6, 1) for digit in digits]
        steps = [step for step in steps if bottom <= step <= top]
        if len(steps) >= FEWEST_LABELS:
            break
    axes.set_yticks(steps or [bottom, top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _series(groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Groups that belong on one line, by its label: the method, and what differs from line to line."""
    varying = [name for name in ("model", "dataset") if len({group[name] for group in groups}) > 1]
    by_epochs = len({group["epochs"] for group in groups if group["method"] == "qat"}) > 1
    follows = all(group["act_bits"] == group["bits"] for group in groups)
    settings = groups[0]["settings"]
    found: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        method = {"fp32": "float", "qat": "QAT", "ptq": "PTQ"}[group["method"]]
        parts = [group[name] for name in varying]
        if by_epochs and group["method"] != "ptq":
            parts.append(f"{group['epochs']} epochs")
        if group["method"] != "fp32":
            parts.append(group["quantizer"])
            if not follows:
                parts.append(f"{group['act_bits']}-bit activations")
        parts += [f"{key} {group['settings'][key]}" for key in settings if group["settings"][key] is not None]
        found.setdefault(", ".join([" ".join([method, *parts[:1]]), *parts[1:]]), []).append(group)
    return found


def _style(index: int) -> tuple[str, str, str]:
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]


def _errors(group: dict[str, Any]) -> float:
    return float(max(1 - group["accuracy_mean"], FEWEST_ERRORS))


def _bars(groups: list[dict[str, Any]]) -> list[list[float]]:
    """One standard deviation up and down, as far as the axis goes."""
    spread = [group["accuracy_std"] or 0.0 for group in groups]
    down = [min(std, _errors(group) - FEWEST_ERRORS) for group, std in zip(groups, spread, strict=True)]
    return [down, spread]


def _bits_text(group: dict[str, Any]) -> str:
    return "float" if group["method"] == "fp32" else "1 bit" if group["bits"] == 1 else f"{group['bits']} bits"


def _percent(group: dict[str, Any]) -> str:
    return f"{100 * group['accuracy_mean']:.2f} %"


def _title(document: dict[str, Any], what: str) -> str:
    groups = document["groups"]
    datasets = ", ".join(dict.fromkeys(group["dataset"] for group in groups))
    seeds = max(group["n"] for group in groups)
    bars = f"mean of {seeds} seeds, bars one standard deviation" if seeds > 1 else "one seed"
    stand_in = " (stand-in for MNIST)" if document["notice"] else ""
    return f"{datasets}{stand_in}: {what}\n{bars}"
