"""A sweep's results: accuracy over bits and over bytes as pictures, and the sections of a report's page about it.

Nothing here imports torch: the process that runs a sweep does without.
"""

from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qattrain.experiments.folder import SAME_IN_GROUP, pareto_front
from qattrain.files.escapes import visible
from qattrain.report.console import UNKNOWN, Table, counted, number, percent
from qattrain.report.drawing import (
    LEAST_ERROR,
    METHODS,
    Series,
    accuracy_axis,
    chart_figure,
    drawn_error,
    finding,
    heading,
    method_style,
    picture_files,
    plotted_name,
    series_styles,
)
from qattrain.report.labels import label_lines, name_points
from qattrain.report.page import Block, Chart, Charts, Commands, Facts, Section, Text, line_chart, recorded_section
from qattrain.report.sources import Sweep
from qattrain.report.tables import chain_lines, group_table, network_label, shared_columns, shared_line
from qattrain.runs import folder as runs
from qattrain.runs.folder import read_record

Group = dict[str, Any]  # of `sweep.json`, as `qattrain.experiments.folder` describes it
Document = dict[str, Any]  # all of `sweep.json`

SHIFT = 0.06  # in bits, from line to line
MOST_CURVES = 7  # in one chart
NEAR = 0.01  # in accuracy: what "within 1 point" means
FLOAT = "fp32"


def sweep_pictures(document: Document) -> dict[str, bytes]:
    """File name -> content of `qattrain.experiments.folder.PICTURES`, from a `sweep.json` with at least one group."""
    groups = document["groups"]
    datasets = ", ".join(dict.fromkeys(group["dataset"] for group in groups))
    stand_in = " (stand-in for MNIST)" if document["notice"] else ""
    figures = {f"accuracy-{chart.name}": accuracy_figure(chart, document, f"{datasets}{stand_in}") for chart in CHARTS}
    return picture_files(figures)


def accuracy_figure(chart: "AccuracyChart", document: Document, about: str) -> Figure:
    """One of CHARTS with its finding as the title. about: the data, for the line below."""
    groups = document["groups"]
    seeds = max(group["n"] for group in groups)
    spread = f"mean of {seeds} seeds, bars one standard deviation" if seeds > 1 else "one seed"
    spared = any(1 - group["accuracy_mean"] < LEAST_ERROR for group in groups)
    lines = [about, spread] + ([f"no error drawn as {percent(LEAST_ERROR)}"] if spared else [])
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    chart.draw(axes, document)
    axes.set_title(heading("; ".join(lines)), fontsize=9)
    finding(figure, chart.finding(document))
    if not label_lines(axes, LONGEST_LINE):
        axes.legend(fontsize=9)
    return figure


LONGEST_LINE = 26  # a name beside a line of a sweep's picture


def draw_bits(axes: Axes, document: Document) -> None:
    """Accuracy against weight bits, fewest first: a line for each method and whatever else differs."""
    lines = _lines(document["groups"])
    for index, (label, (groups, style)) in enumerate(lines.items()):
        if groups[0]["method"] == FLOAT:
            for group in groups:
                accuracy = percent(group["accuracy_mean"])
                axes.axhline(_error(group), color=style["color"], ls=":", lw=1.5, label=heading(f"{label}: {accuracy}"))
            continue
        line = sorted(groups, key=lambda group: group["bits"])
        shift = SHIFT * (index - (len(lines) - 1) / 2)  # error bars must not cover each other
        _draw_groups(axes, [group["bits"] + shift for group in line], line, label=heading(label), **style)
    bits = sorted({group["bits"] for group in document["groups"] if group["method"] != FLOAT})
    axes.set(xlabel="weight bits")
    axes.set_xticks(bits)
    if bits:
        axes.set_xlim(bits[0] - 0.5, bits[-1] + 0.5)
    _finish(axes, document, [])


def draw_bytes(axes: Axes, document: Document) -> None:
    """Accuracy against weight bytes: a point for each group, the Pareto front, and the reference points."""
    named = []
    for label, (groups, style) in _lines(document["groups"]).items():
        sizes = [group["weight_bytes"] for group in groups]
        _draw_groups(axes, sizes, groups, label=heading(label), **style | {"linestyle": ""})
    best: dict[int, Group] = {}
    for group in sorted(document["groups"], key=_error):
        best.setdefault(group["weight_bytes"], group)
    for size, group in best.items():
        text = group.get("name") or ("float" if group["method"] == FLOAT else counted(group["bits"], "bit"))
        named.append((text, size, _error(group), "black"))
    front = pareto_front(document["groups"])
    sizes, errors = [group["weight_bytes"] for group in front], [_error(group) for group in front]
    axes.plot(sizes, errors, color="black", lw=1, drawstyle="steps-post", label="Pareto front")
    style = method_style("others", linestyle="", markersize=9)
    for index, point in enumerate(document["reference"]):
        where = (point["weight_bytes"], drawn_error(point["accuracy"]))
        axes.plot(*where, label="others" if index == 0 else "_", **style)  # the legend skips labels that start with _
        named.append((plotted_name(point["name"]), *where, style["color"]))
    axes.set(xlabel="packed weights (bytes), logarithmic", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    _finish(axes, document, document["reference"])
    name_points(axes, named)


def bits_finding(document: Document) -> str:
    """What accuracy against bits shows, as a sentence: how few bits stay near float, or the best at each end."""
    groups = document["groups"]
    lines = {label: members for label, (members, _) in _lines(groups).items() if members[0]["method"] != FLOAT}
    floats = [group["accuracy_mean"] for group in groups if group["method"] == FLOAT]
    if not lines:
        return f"float has {percent(max(floats))}"
    bits = sorted({group["bits"] for members in lines.values() for group in members})
    if len(floats) == 1 and len(lines) <= 2 and len(bits) > 1:
        parts = [f"{label} {_holds(members, floats[0])}" for label, members in lines.items()]
        return f"Within 1 point of float: {'; '.join(parts)}"
    parts = []
    for width in dict.fromkeys((bits[0], bits[-1])):
        found = {label: group for label, members in lines.items() for group in members if group["bits"] == width}
        label = max(found, key=lambda label: found[label]["accuracy_mean"])
        who = f" ({label})" if len(lines) > 1 else ""
        parts.append(f"{percent(found[label]['accuracy_mean'])} at {counted(width, 'bit')}{who}")
    return f"{'Highest mean' if len(lines) > 1 else 'Mean of ' + next(iter(lines))}: {', '.join(parts)}"


def _holds(members: list[Group], reference: float) -> str:
    """`down to 2 bits, 98.33 % at 1`: the fewest bits for which these and all higher ones are near the reference."""
    line = {group["bits"]: group["accuracy_mean"] for group in sorted(members, key=lambda group: -group["bits"])}
    near = [bits for bits, _ in takewhile(lambda point: point[1] >= reference - NEAR, line.items())]
    said = f"down to {counted(near[-1], 'bit')}" if near else "at no width"
    fewest = min(line)
    return said if near and near[-1] == fewest else f"{said} ({percent(line[fewest])} at {fewest})"


def bytes_finding(document: Document) -> str:
    """What accuracy against size shows, as a sentence: the smallest network near the best one."""
    groups = document["groups"]
    best = max(groups, key=lambda group: group["accuracy_mean"])
    near = [group for group in groups if group["accuracy_mean"] >= best["accuracy_mean"] - NEAR]
    smallest = min(near, key=lambda group: (group["weight_bytes"], -group["accuracy_mean"]))
    label = next(label for label, (members, _) in _lines(groups).items() if smallest in members)
    bits = "" if smallest["method"] == FLOAT else f" at {counted(smallest['bits'], 'bit')}"
    return (
        f"Within 1 point of the best ({percent(best['accuracy_mean'])}), the smallest is {label}{bits}: "
        f"{smallest['weight_bytes']:,} bytes, {percent(smallest['accuracy_mean'])}"
    )


class AccuracyChart(NamedTuple):
    """A picture of a sweep: its name in the file's, its title on a page, how it is drawn, its finding as a sentence."""

    name: str
    title: str
    draw: Callable[..., None]  # on axes, a document
    finding: Callable[[Document], str]


CHARTS = (
    AccuracyChart("bits", "Accuracy against bits", draw_bits, bits_finding),
    AccuracyChart("bytes", "Accuracy against size", draw_bytes, bytes_finding),
)


def _draw_groups(axes: Axes, x: list[float], groups: list[Group], **style: Any) -> None:
    """The groups' errors at `x`, with one standard deviation up and down, as far as the axis goes."""
    errors, spread = [_error(group) for group in groups], [group["accuracy_std"] or 0.0 for group in groups]
    down = [min(std, error - LEAST_ERROR) for std, error in zip(spread, errors, strict=True)]
    axes.errorbar(x, errors, yerr=[down, spread] if any(spread) else None, capsize=4, **style)


def _finish(axes: Axes, document: Document, drawn: list[dict[str, Any]]) -> None:
    """The axis of accuracies, for all groups with their bars, and for other points that are drawn."""
    shown = [(_error(group), group["accuracy_std"] or 0.0) for group in document["groups"]]
    shown += [(drawn_error(point["accuracy"]), 0.0) for point in drawn]
    top = min(1.2 * max(error + bar for error, bar in shown), 1.0)
    # A long bar must not squeeze everything else: the axis goes no lower than a third of the lowest mean.
    lowest = min(error for error, _ in shown)
    bottom = max(min(error - bar for error, bar in shown) / 1.2, lowest / 3, LEAST_ERROR)
    accuracy_axis(axes, "test", top, bottom)


def _lines(groups: list[Group]) -> dict[str, tuple[list[Group], dict[str, Any]]]:
    """The groups of each line, and its look, by its label: the method, and whatever differs from line to line."""
    varying = [name for name in ("model", "dataset") if len({group[name] for group in groups}) > 1]
    by_epochs = len({group["epochs"] for group in groups if group["method"] == "qat"}) > 1
    same_bits = all(group["act_bits"] == group["bits"] for group in groups)
    found: dict[str, list[Group]] = {}
    for group in groups:
        parts = [network_label(group[name]) if name == "model" else group[name] for name in varying]
        if by_epochs and group["method"] != "ptq":
            parts.append(counted(group["epochs"], "epoch"))
        if group["method"] != FLOAT:
            parts.append(group["quantizer"])
            if not same_bits:
                parts.append(f"{group['act_bits']}-bit activations")
        parts += [f"{key} {value}" for key, value in group["settings"].items() if value is not None]
        label = ", ".join([" ".join([METHODS[group["method"]], *parts[:1]]), *parts[1:]])
        found.setdefault(visible(label), []).append(group)
    looks = series_styles([_look(members[0], groups) for members in found.values()])
    return {label: (members, look) for (label, members), look in zip(found.items(), looks, strict=True)}


def _look(group: Group, groups: list[Group]) -> str:
    """The key of LOOKS for this one of the groups: its method, or its quantizer where QAT has several."""
    quantizers = {group["quantizer"] for group in groups if group["method"] == "qat"}
    return group["quantizer"] if group["method"] == "qat" and len(quantizers) > 1 else METHODS[group["method"]]


def _error(group: Group) -> float:
    return drawn_error(group["accuracy_mean"])


def sweep_section(sweep: Sweep, ident: str) -> Section:
    """What a sweep found: counts, accuracies, learning curves, every run, and the settings they share."""
    document = sweep.document
    rows, groups = document["rows"], document["groups"]
    statuses = [row["status"] for row in rows]
    facts = [(status, str(statuses.count(status)), "") for status in ("finished", "failed", "unfinished")]
    seeds = sorted({row["seed"] for row in rows})
    facts.append(("seeds", str(len(seeds)), f"seed {', '.join(map(str, seeds))}"))
    blocks: list[Block] = [Text(document["notice"], notice=True)] if document["notice"] else []
    blocks.append(Facts(facts))
    if groups:
        shared = shared_columns(groups)
        blocks += [Charts(_accuracy_charts(document)), *([Text(shared_line(shared))] if shared else [])]
        blocks.append(group_table(groups, without=tuple(shared)))
        blocks += [Text(line) for line in chain_lines(group["model"] for group in groups)]
    if curves := _curves(sweep):
        blocks.append(Charts(curves))
    blocks.append(
        Table.of("Every run of the sweep", [_cell_row(row) for row in rows], ("method", "status", "error"), folded=True)
    )
    trained = [row["run_dir"] for row in sweep.finished if row["method"] != "ptq"]
    if trained:
        config = sweep.folder / trained[0] / runs.CONFIG_FILE
        caption = "Every run's folder holds its whole configuration. To train one of them again, for example the first:"
        blocks.append(Commands(caption, [["qattrain", "train", "--config", str(config)]]))
    recorded = [(row["run_dir"], read_record(sweep.folder / row["run_dir"])) for row in sweep.finished]
    configs = [(name, values["config"] | {"name": None}) for name, values in recorded if values]
    environments = [(name, values["environment"]) for name, values in recorded if values]
    parts = [
        recorded_section(f"{ident}-configuration", "configuration", configs, side_by_side=False),
        recorded_section(f"{ident}-environment", "environment", environments, side_by_side=False),
    ]
    return Section(ident, f"Sweep {sweep.folder.name}", blocks, parts)


def _accuracy_charts(document: Document) -> list[Chart]:
    """The sweep's own pictures, as small as a phone."""
    caption = "Means of all seeds, bars one standard deviation; the numbers are in the table below."
    figures = [(chart, chart_figure(partial(chart.draw, document=document), 0.4)) for chart in CHARTS]
    return [Chart(figure, chart.title, f"{chart.finding(document)}. {caption}", caption) for chart, figure in figures]


def _curves(sweep: Sweep) -> list[Chart]:
    """The test error of every group that was trained, mean of all seeds, over the epochs."""
    series: list[Series] = []
    several_models = len({group["model"] for group in sweep.document["groups"]}) > 1
    for group in sorted(sweep.document["groups"], key=lambda group: int(group["bits"])):
        members = [row for row in sweep.finished if all(row[key] == group[key] for key in SAME_IN_GROUP)]
        histories = [history for row in members if (history := runs.read_metrics(sweep.folder / row["run_dir"]))]
        epochs = [[1 - record["test_accuracy"] for record in history if record["epoch"] > 0] for history in histories]
        means = [100 * sum(errors) / len(errors) for errors in zip(*epochs, strict=False)]
        if len(means) > 1:
            settings = ", ".join(f"{name}={value}" for name, value in group["settings"].items())
            model = network_label(group["model"]) if several_models else ""
            words = [
                METHODS[group["method"]],
                f"{group['bits']}/{group['act_bits']}",
                group["quantizer"],
                model,
                settings,
            ]
            name = " ".join(word for word in words if word)
            epochs_done = list(range(1, len(means) + 1))
            method = _look(group, sweep.document["groups"])
            series.append(Series(name, epochs_done, means, method=method, least=100 * LEAST_ERROR))
    labels, caption = ("epoch", "test error (%)"), "Mean of all seeds after every epoch; no error is drawn as 0.01 %."
    return [
        line_chart("Learning curves", series[start : start + MOST_CURVES], labels, caption)
        for start in range(0, len(series), MOST_CURVES)
    ]


def _cell_row(row: dict[str, Any]) -> dict[str, str]:
    """A run of the sweep: column -> text."""
    return {
        "run": row["run_dir"],
        "method": row["method"],
        "W/A bits": f"{row['bits']}/{row['act_bits']}",
        "seed": str(row["seed"]),
        "status": row["status"],
        "test accuracy": percent(row["accuracy"]),
        "loss": number(row["loss"], ".4f"),
        "error": row["error"] or UNKNOWN,
    }
