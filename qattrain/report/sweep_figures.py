"""Pictures of a sweep: accuracy against bits, and against the bytes of the weights. No torch in here."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qattrain.report.figures import COLORS, DASHES, MARKERS, plotted_name
from qattrain.report.picture import png, svg
from qattrain.sweeps.results import PICTURES, pareto_front

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
