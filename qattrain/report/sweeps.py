"""A sweep's results: accuracy over bits and over bytes as pictures, and the sections of a report's page about it.

Nothing here imports torch: the process that runs a sweep does without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from qattrain.experiments.folder import SAME_IN_GROUP, pareto_front
from qattrain.report.console import UNKNOWN, Table, counted, number, percent
from qattrain.report.drawing import Series, chart_figure, picture_files, plotted_name, series_style
from qattrain.report.page import Block, Chart, Charts, Commands, Facts, Section, Text, line_chart, recorded_section
from qattrain.report.sources import Sweep
from qattrain.report.tables import chain_lines, group_table, network_label
from qattrain.runs import folder as runs
from qattrain.runs.folder import read_record

Group = dict[str, Any]  # of `sweep.json`, as `qattrain.experiments.folder` describes it
Document = dict[str, Any]  # all of `sweep.json`

FEWEST_LABELS = 4
SHIFT = 0.06  # in bits, from line to line
LEAST_ERROR = 1e-4  # drawn for smaller errors: a logarithmic axis has no 0
MOST_CURVES = 7  # in one chart


def sweep_pictures(document: Document) -> dict[str, bytes]:
    """File name -> content of `qattrain.experiments.folder.PICTURES`, from a `sweep.json` with at least one group."""
    groups = document["groups"]
    datasets = ", ".join(dict.fromkeys(group["dataset"] for group in groups))
    seeds = max(group["n"] for group in groups)
    spread = f"mean of {seeds} seeds, bars one standard deviation" if seeds > 1 else "one seed"
    stand_in = " (stand-in for MNIST)" if document["notice"] else ""
    figures = {}
    for name, title, draw in CHARTS:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        draw(axes, document)
        axes.set_title(f"{datasets}{stand_in}: {title.lower()}\n{spread}")
        axes.legend(fontsize=9)
        figures[f"accuracy-{name}"] = figure
    return picture_files(figures)


def draw_bits(axes: Axes, document: Document) -> None:
    """Accuracy against weight bits: a line for each method and whatever else differs."""
    lines = _lines(document["groups"])
    for index, (label, groups) in enumerate(lines.items()):
        if groups[0]["method"] == "fp32":
            color = series_style(index)["color"]
            for group in groups:
                accuracy = percent(group["accuracy_mean"])
                axes.axhline(_error(group), color=color, ls=":", lw=1.5, label=f"{label}: {accuracy}")
            continue
        line = sorted(groups, key=lambda group: group["bits"])
        shift = SHIFT * (index - (len(lines) - 1) / 2)  # error bars must not cover each other
        _draw_groups(axes, [group["bits"] + shift for group in line], line, label=label, **series_style(index))
    bits = sorted({group["bits"] for group in document["groups"] if group["method"] != "fp32"})
    axes.set(xlabel="weight bits")
    axes.set_xticks(bits)
    if bits:
        axes.set_xlim(bits[0] - 0.5, bits[-1] + 0.5)
    _finish(axes, document, [])


def draw_bytes(axes: Axes, document: Document) -> None:
    """Accuracy against weight bytes: a point for each group, the Pareto front, and the reference points."""
    for index, (label, groups) in enumerate(_lines(document["groups"]).items()):
        sizes = [group["weight_bytes"] for group in groups]
        _draw_groups(axes, sizes, groups, label=label, **series_style(index, linestyle=""))
    best: dict[int, Group] = {}
    for group in sorted(document["groups"], key=_error):
        best.setdefault(group["weight_bytes"], group)
    for size, group in best.items():
        text = "float" if group["method"] == "fp32" else counted(group["bits"], "bit")
        axes.annotate(text, (size, _error(group)), xytext=(6, 6), textcoords="offset points", fontsize=8)
    front = pareto_front(document["groups"])
    sizes, errors = [group["weight_bytes"] for group in front], [_error(group) for group in front]
    axes.plot(sizes, errors, color="black", lw=1, drawstyle="steps-post", label="Pareto front")
    for index, point in enumerate(document["reference"]):
        where = (point["weight_bytes"], max(1 - point["accuracy"], LEAST_ERROR))
        label = "others" if index == 0 else "_"  # the legend skips labels that start with _
        axes.plot(*where, color="black", marker="*", mfc="white", ms=10, ls="", label=label)
        axes.annotate(plotted_name(point["name"]), where, xytext=(7, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="packed weights (bytes)", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    _finish(axes, document, document["reference"])


CHARTS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("bits", "Accuracy against bits", draw_bits),
    ("bytes", "Accuracy against size", draw_bytes),
)


def _draw_groups(axes: Axes, x: list[float], groups: list[Group], **style: Any) -> None:
    """The groups' errors at `x`, with one standard deviation up and down, as far as the axis goes; PTQ is hollow."""
    errors, spread = [_error(group) for group in groups], [group["accuracy_std"] or 0.0 for group in groups]
    down = [min(std, error - LEAST_ERROR) for std, error in zip(spread, errors, strict=True)]
    drawn = axes.errorbar(x, errors, yerr=[down, spread], **style)
    drawn[0].set_markerfacecolor("white" if groups[0]["method"] == "ptq" else style["color"])


def _finish(axes: Axes, document: Document, drawn: list[dict[str, Any]]) -> None:
    """Accuracy upwards, spread out towards 100 %: a logarithmic axis of the error, labelled as accuracy."""
    shown = [(_error(group), group["accuracy_std"] or 0.0) for group in document["groups"]]
    shown += [(max(1 - point["accuracy"], LEAST_ERROR), 0.0) for point in drawn]
    top = min(1.2 * max(error + bar for error, bar in shown), 1.0)
    # A long bar must not squeeze everything else: the axis goes no lower than a third of the lowest mean.
    lowest = min(error for error, _ in shown)
    bottom = max(min(error - bar for error, bar in shown) / 1.2, lowest / 3, LEAST_ERROR)
    axes.set(ylabel="test accuracy (%)", yscale="log", ylim=(top, bottom))
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100)):  # the coarsest that gives enough labels
        steps = [digit * 10.0**power for power in range(-6, 1) for digit in digits]
        steps = [step for step in steps if bottom <= step <= top]
        if len(steps) >= FEWEST_LABELS:
            break
    axes.set_yticks(steps or [bottom, top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _lines(groups: list[Group]) -> dict[str, list[Group]]:
    """The groups of each line, by its label: the method, and whatever differs from line to line."""
    varying = [name for name in ("model", "dataset") if len({group[name] for group in groups}) > 1]
    by_epochs = len({group["epochs"] for group in groups if group["method"] == "qat"}) > 1
    same_bits = all(group["act_bits"] == group["bits"] for group in groups)
    found: dict[str, list[Group]] = {}
    for group in groups:
        method = {"fp32": "float", "qat": "QAT", "ptq": "PTQ"}[group["method"]]
        parts = [network_label(group[name]) if name == "model" else group[name] for name in varying]
        if by_epochs and group["method"] != "ptq":
            parts.append(counted(group["epochs"], "epoch"))
        if group["method"] != "fp32":
            parts.append(group["quantizer"])
            if not same_bits:
                parts.append(f"{group['act_bits']}-bit activations")
        parts += [f"{key} {value}" for key, value in group["settings"].items() if value is not None]
        found.setdefault(", ".join([" ".join([method, *parts[:1]]), *parts[1:]]), []).append(group)
    return found


def _error(group: Group) -> float:
    return float(max(1 - group["accuracy_mean"], LEAST_ERROR))


def sweep_section(sweep: Sweep, ident: str) -> Section:
    """What a sweep found: counts, accuracies, learning curves, every run, and the settings they share."""
    document = sweep.document
    rows, groups = document["rows"], document["groups"]
    statuses = [row["status"] for row in rows]
    facts = [(status, str(statuses.count(status)), "") for status in ("finished", "failed", "unfinished")]
    seeds = sorted({row["seed"] for row in rows})
    facts.append(("seeds", str(len(seeds)), ", ".join(map(str, seeds))))
    blocks: list[Block] = [Text(document["notice"], notice=True)] if document["notice"] else []
    blocks.append(Facts(facts))
    if groups:
        blocks += [Charts(_accuracy_charts(document)), group_table(groups)]
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
    figures = [(title, chart_figure(partial(draw, document=document), 0.4)) for _, title, draw in CHARTS]
    return [Chart(figure, title, caption, caption) for title, figure in figures]


def _curves(sweep: Sweep) -> list[Chart]:
    """The test error of every group that was trained, mean of all seeds, over the epochs."""
    series: list[Series] = []
    several_models = len({group["model"] for group in sweep.document["groups"]}) > 1
    for group in sweep.document["groups"]:
        members = [row for row in sweep.finished if all(row[key] == group[key] for key in SAME_IN_GROUP)]
        histories = [history for row in members if (history := runs.read_metrics(sweep.folder / row["run_dir"]))]
        epochs = [[1 - record["test_accuracy"] for record in history if record["epoch"] > 0] for history in histories]
        means = [100 * max(sum(errors) / len(errors), LEAST_ERROR) for errors in zip(*epochs, strict=False)]
        if len(means) > 1:
            settings = ", ".join(f"{name}={value}" for name, value in group["settings"].items())
            model = network_label(group["model"]) if several_models else ""
            words = [group["method"], f"{group['bits']}/{group['act_bits']}", group["quantizer"], model, settings]
            name = " ".join(word for word in words if word)
            series.append(Series(name, list(range(1, len(means) + 1)), means))
    labels, caption = ("epoch", "test error (%)"), "Mean of all seeds after every epoch."
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
