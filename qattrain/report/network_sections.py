"""The sections of a page about networks: results, curves, settings; what is inside each, `network_parts` shows."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from qattrain.report.blocks import Block, Chart, Charts, Commands, Facts, Section, Table, Text
from qattrain.report.console import counted, p_value, percent
from qattrain.report.figures import CHART_INCHES, Series, draw_intervals, draw_lines, error_series
from qattrain.report.findings import Finding
from qattrain.report.network_parts import UNKNOWN, network_section
from qattrain.report.reproduction import Flags, command_lines, leaves
from qattrain.report.svg import inline_svg


def line_chart(ident: str, title: str, series: Sequence[Series], labels: tuple[str, str], caption: str) -> Chart:
    """Lines over epochs, logarithmic, and their table; labels: of both axes, with units.

    A series without points is not shown; the others look as they would beside it.
    """
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    draw_lines(figure.subplots(), series, *labels)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    series = [one for one in series if len(one.x)]
    described = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    points = [dict(zip(one.x, one.y, strict=True)) for one in series]
    epochs = sorted({epoch for one in points for epoch in one})
    rows = [[f"{x:g}", *(f"{one[x]:.4g}" if x in one else UNKNOWN for one in points)] for x in epochs]
    table = Table(f"{ident}-table", f"{title}: {labels[1]}", [labels[0], *(one.name for one in series)], rows)
    svg = inline_svg(figure, ident, title, f"{labels[1]} over {labels[0]}: {described}.")
    return Chart(svg, title, caption, table)


def network_sections(findings: Sequence[Finding], flags: Flags) -> list[Section]:
    """Results, curves, every network, configuration, environment, and how to get all that again."""
    sections = [Section("results", "Results", _results(findings))]
    sections.append(Section("curves", "Learning curves", _curves(findings)))
    sections += [network_section(finding, f"network-{n}") for n, finding in enumerate(findings, start=1)]
    configs = [(f.name, f.config.model_dump(mode="json", exclude={"name"}) if f.config else {}) for f in findings]
    environments = [(f.name, f.environment or {}) for f in findings]
    return [
        *sections,
        recorded_section("configuration", "configuration", configs, side_by_side=True),
        recorded_section("environment", "environment", environments, side_by_side=True),
        Section("reproduce", "How to reproduce", _reproduction(findings, flags)),
    ]


def _results(findings: Sequence[Finding]) -> list[Block]:
    notes = dict.fromkeys(note for finding in findings for note in finding.notes)
    blocks: list[Block] = [Text(note, notice=True) for note in notes]
    first = findings[0]
    if len(findings) == 1:
        result = first.evaluation
        interval = f"95 % interval {percent(result.interval[0])} to {percent(result.interval[1])}"
        images = f"of {counted(result.total, 'test image')} of {first.facts.dataset}"
        epochs = counted(len(first.trained_epochs), "epoch") if first.trained_epochs else ""
        facts = [
            ("test accuracy", percent(result.accuracy), interval),
            ("errors", f"{result.total - result.correct:,}", images),
            ("test loss", f"{result.loss:.4f}", "nats, mean cross-entropy"),
            ("weight / activation bits", first.bits, first.kind),
            ("weight bytes", f"{first.weight_bytes:,}", "packed codes, without biases and scales"),
            ("network", first.facts.name, epochs),
        ]
        return [*blocks, Facts(facts)]
    rows = []
    for finding in findings:
        result = finding.evaluation
        is_first = finding is first
        unpaired = finding.delta is None or finding.mcnemar_p is None
        rows.append(
            [
                finding.name,
                finding.kind,
                finding.bits,
                f"{finding.facts.dataset}, {result.total:,}",
                percent(result.accuracy),
                f"{100 * result.interval[0]:.2f} to {100 * result.interval[1]:.2f}",
                UNKNOWN if is_first or unpaired else f"{100 * (finding.delta or 0):+.2f}",
                UNKNOWN if is_first or unpaired else p_value(finding.mcnemar_p or 0),
                f"{result.loss:.4f}",
                f"{finding.weight_bytes:,}",
                str(finding.subject.path),
            ]
        )
    columns = ["network", "method", "W/A bits", "test images", "test accuracy", "95 % interval", "difference"]
    columns += ["McNemar p", "loss", "weight bytes", "file"]
    caption = f"Accuracy of every network; differences, in points, and p-values are to {first.name}"
    blocks.append(Table("results-table", caption, columns, rows, left=("method", "test images", "file")))
    blocks.append(
        Text(
            "Intervals are Wilson's. McNemar's test is exact and paired: of the images that just one of two networks "
            "gets right, how unlikely is such a split if both are equally good?"
        )
    )
    height = 1.1 + 0.42 * len(findings)
    figure = Figure(figsize=(CHART_INCHES[0], height), layout="constrained")
    draw_intervals(figure.subplots(), [(f.name, f.evaluation.accuracy, f.evaluation.interval) for f in findings])
    title = "Test accuracy with 95 % intervals"
    described = "; ".join(f"{f.name} {percent(f.evaluation.accuracy)}" for f in findings)
    svg = inline_svg(figure, "chart-intervals", title, described)
    return [*blocks, Charts([Chart(svg, title, "The numbers are those of the table above.")])]


def _curves(findings: Sequence[Finding]) -> list[Block]:
    trained = [finding for finding in findings if finding.trained_epochs]
    blocks: list[Block] = [
        Text(f"{finding.name} ({finding.kind}) was not trained further: it has no curve.")
        for finding in findings
        if finding not in trained
    ]
    if not trained:
        return blocks
    errors = [error_series(f.name, f.history, f.evaluation.total) for f in findings]
    caption = "Percent of the test images, after every epoch; the scale is logarithmic."
    charts = [line_chart("chart-error", "Test error", errors, ("epoch", "test error (%)"), caption)]
    if len(findings) == 1:
        keys = [key for key in ("train_loss", "test_loss", "val_loss") if key in trained[0].trained_epochs[0]]
        losses = [Series(key.replace("_", " "), *_points(trained[0], key)) for key in keys]
    else:
        losses = [Series(finding.name, *_points(finding, "train_loss")) for finding in findings]
    title = "Loss" if len(findings) == 1 else "Training loss"
    caption = "Mean cross-entropy; training loss is of augmented images, while the weights still changed."
    charts.append(line_chart("chart-loss", title, losses, ("epoch", "loss (nats)"), caption))
    tables = [_epochs(finding, f"epochs-{n}") for n, finding in enumerate(trained, start=1)]
    return [*blocks, Charts(charts), *tables]


def _points(finding: Finding, key: str) -> tuple[list[float], list[float]]:
    return [r["epoch"] for r in finding.trained_epochs], [r[key] for r in finding.trained_epochs]


def _epochs(finding: Finding, ident: str) -> Table:
    validated = "val_accuracy" in finding.trained_epochs[0]
    rows = [
        [
            str(record["epoch"]),
            f"{record['train_loss']:.4f}",
            f"{record['test_loss']:.4f}",
            percent(record["test_accuracy"]),
            *([percent(record["val_accuracy"])] if validated else []),
            f"{record['learning_rate']:.3g}",
            f"{record['images_per_second']:,.0f}",
            f"{record['epoch_seconds']:.1f}",
        ]
        for record in finding.trained_epochs
    ]
    columns = ["epoch", "train loss", "test loss", "test accuracy", *(["val accuracy"] if validated else [])]
    columns += ["learning rate", "images/s", "seconds"]
    return Table(ident, f"Epochs of {finding.name}", columns, rows, folded=True)


def recorded_section(
    ident: str, what: str, recorded: Sequence[tuple[str, dict[str, Any]]], side_by_side: bool
) -> Section:
    """All values that every name has in common; where `side_by_side`, before them those that differ.

    what: "configuration" or "environment". recorded: names of networks and what is recorded of each, {} if nothing.
    """
    known = {name: _flat(values) for name, values in recorded if values}
    blocks: list[Block] = [Text(f"{name} does not record its {what}.") for name, values in recorded if not values]
    keys = dict.fromkeys(key for values in known.values() for key in values)
    table = {key: [values.get(key, UNKNOWN) for values in known.values()] for key in keys}
    differing = [[key, *row] for key, row in table.items() if len(set(row)) > 1]
    common = [[key, row[0]] for key, row in table.items() if len(set(row)) == 1]
    if differing and side_by_side:
        caption, columns = f"{what}: what differs".capitalize(), ["setting", *known]
        blocks.append(Table(f"{ident}-differs", caption, columns, differing, left=list(known), compact=True))
    if common:
        caption = f"{what}{'' if len(known) == 1 else ': what all have in common'}".capitalize()
        blocks.append(Table(f"{ident}-common", caption, ["setting", "value"], common, left=["value"], compact=True))
    return Section(ident, what.capitalize(), blocks)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted names and what they are; what is not set is `-`."""
    return {".".join(path): UNKNOWN if value in (None, {}) else str(value) for path, value in leaves(values)}


def _reproduction(findings: Sequence[Finding], flags: Flags) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "On a CPU the same versions and number of threads give the same weights; every value that was chosen "
            "automatically is spelled out."
        )
    ]
    for finding in findings:
        if finding.config is None:
            caption = f"{finding.name} is a packed file: it does not say how it was trained. To evaluate it:"
            lines = [["qattrain", "eval", str(finding.subject.path)]]
        else:
            caption = f"To get {finding.name}:"
            lines = command_lines(finding.config, flags)
        blocks.append(Commands(caption, lines))
    return blocks
