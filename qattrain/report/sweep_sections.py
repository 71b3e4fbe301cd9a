"""The parts of a page that show a sweep: its groups and cells, accuracy over bits and bytes, learning curves."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qattrain.experiments.folder import SAME_IN_GROUP
from qattrain.report.blocks import (
    UNKNOWN,
    Block,
    Chart,
    Charts,
    Commands,
    Facts,
    Section,
    Table,
    Text,
    line_chart,
    recorded_section,
)
from qattrain.report.console import percent
from qattrain.report.drawing import CHART_INCHES, Series, inline_svg
from qattrain.report.figures import draw_bits, draw_bytes
from qattrain.report.sources import Sweep
from qattrain.runs import folder as runs

Group = dict[str, Any]
LEAST_ERROR = 0.01  # percent: on a logarithmic axis no error at all has no place
MOST_CURVES = 7  # in one chart


def sweep_sections(sweep: Sweep, ident: str) -> list[Section]:
    """What a sweep found, how it got there, and with which settings."""
    recorded = [(row["run_dir"], _recorded(sweep.folder / row["run_dir"])) for row in sweep.finished]
    configs = [(name, values["config"] | {"name": None}) for name, values in recorded if values]
    environments = [(name, values["environment"]) for name, values in recorded if values]
    parts = [
        recorded_section(f"{ident}-configuration", "configuration", configs, side_by_side=False),
        recorded_section(f"{ident}-environment", "environment", environments, side_by_side=False),
    ]
    blocks = [*_overview(sweep, ident), *_curves(sweep, ident), _cell_table(sweep, ident)]
    trained = [row["run_dir"] for row in sweep.finished if row["method"] != "ptq"]
    if trained:
        config = sweep.folder / trained[0] / runs.CONFIG_FILE
        caption = "Every run's folder holds its whole configuration. To train one of them again, for example the first:"
        blocks.append(Commands(caption, [["qattrain", "train", "--config", str(config)]]))
    return [Section(ident, f"Sweep {sweep.folder.name}", blocks, parts)]


def _overview(sweep: Sweep, ident: str) -> list[Block]:
    groups = sweep.document["groups"]
    statuses = [row["status"] for row in sweep.document["rows"]]
    facts = [(status, str(statuses.count(status)), "") for status in ("finished", "failed", "unfinished")]
    seeds = sorted({row["seed"] for row in sweep.document["rows"]})
    facts.append(("seeds", str(len(seeds)), ", ".join(map(str, seeds))))
    notices: list[Block] = [Text(sweep.document["notice"], notice=True)] if sweep.document["notice"] else []
    blocks = [*notices, Facts(facts)]
    return [*blocks, Charts(_accuracy_charts(sweep, ident)), _group_table(sweep, ident)] if groups else blocks


def _accuracy_charts(sweep: Sweep, ident: str) -> list[Chart]:
    """Those of the sweep's own pictures, as small as a phone."""
    charts = []
    for name, title, draw in (
        ("bits", "Accuracy against bits", draw_bits),
        ("bytes", "Accuracy against size", draw_bytes),
    ):
        figure = Figure(figsize=(CHART_INCHES[0], CHART_INCHES[1] + 0.4), layout="constrained")
        draw(figure.subplots(), sweep.document)
        figure.legend(loc="outside lower center", fontsize=9, frameon=False)
        caption = "Means of all seeds, bars one standard deviation; the numbers are in the table below."
        charts.append(Chart(inline_svg(figure, f"{ident}-{name}", title, caption), title, caption))
    return charts


def _group_table(sweep: Sweep, ident: str) -> Table:
    rows = [
        [
            group["method"],
            f"{group['bits']}/{group['act_bits']}",
            group["quantizer"],
            group["model"],
            group["dataset"],
            str(group["epochs"]) if group["epochs"] else UNKNOWN,
            _settings(group),
            str(group["n"]),
            percent(group["accuracy_mean"]),
            UNKNOWN if group["accuracy_std"] is None else f"{100 * group['accuracy_std']:.2f}",
            f"{group['loss_mean']:.4f}",
            f"{group['weight_bytes']:,}",
            UNKNOWN if group["images_per_second"] is None else f"{group['images_per_second']:,.0f}",
        ]
        for group in sweep.document["groups"]
    ]
    columns = ["method", "W/A bits", "quantizer", "model", "dataset", "epochs", "other settings", "runs"]
    columns += ["mean test accuracy", "deviation (points)", "mean loss", "weight bytes", "images/s"]
    caption = "All seeds of the same settings together: mean accuracy and its standard deviation"
    return Table(f"{ident}-groups", caption, columns, rows, left=("quantizer", "model", "dataset", "other settings"))


def _cell_table(sweep: Sweep, ident: str) -> Table:
    rows = [
        [
            row["run_dir"],
            row["method"],
            f"{row['bits']}/{row['act_bits']}",
            str(row["seed"]),
            row["status"],
            UNKNOWN if row["accuracy"] is None else percent(row["accuracy"]),
            UNKNOWN if row["loss"] is None else f"{row['loss']:.4f}",
            row["error"] or UNKNOWN,
        ]
        for row in sweep.document["rows"]
    ]
    columns = ["run", "method", "W/A bits", "seed", "status", "test accuracy", "loss", "error"]
    return Table(f"{ident}-cells", "Every run of the sweep", columns, rows, ("method", "status", "error"), folded=True)


def _settings(group: Group) -> str:
    return ", ".join(f"{name}={value}" for name, value in group["settings"].items()) or UNKNOWN


def _recorded(run_dir: Path) -> dict[str, Any]:
    """A cell's `config.json`; {} where it cannot be read."""
    try:
        values = json.loads((run_dir / runs.CONFIG_FILE).read_text(encoding="utf-8"))
        return values if {"config", "environment"} <= set(values) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _curves(sweep: Sweep, ident: str) -> list[Block]:
    """Mean test error of all seeds over the epochs, for every group that was trained."""
    series: list[Series] = []
    for group in sweep.document["groups"]:
        members = [row for row in sweep.finished if all(row[key] == group[key] for key in SAME_IN_GROUP)]
        histories = [history for row in members if (history := runs.read_metrics(sweep.folder / row["run_dir"]))]
        epochs = [[1 - record["test_accuracy"] for record in history if record["epoch"] > 0] for history in histories]
        means = [100 * max(sum(errors) / len(errors), LEAST_ERROR / 100) for errors in zip(*epochs, strict=False)]
        if len(means) > 1:
            name = f"{group['method']} {group['bits']}/{group['act_bits']} {group['quantizer']} {_settings(group)}"
            series.append(Series(name.removesuffix(UNKNOWN).strip(), list(range(1, len(means) + 1)), means))
    charts = [
        line_chart(
            f"{ident}-curves-{start}",
            "Learning curves",
            series[start : start + MOST_CURVES],
            ("epoch", "test error (%)"),
            "Mean of all seeds after every epoch.",
        )
        for start in range(0, len(series), MOST_CURVES)
    ]
    return [Charts(charts)] if charts else []
