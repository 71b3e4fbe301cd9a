"""The sections of a report's page about networks: results, learning curves, each one's inside, settings, commands."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from qattrain.config import FLOAT_BITS, ExperimentConfig, QuantConfig
from qattrain.config.sources import leaves
from qattrain.report.console import Table, confidence, counted, percent
from qattrain.report.drawing import CHART_INCHES, Series, draw_intervals, error_series
from qattrain.report.findings import Finding, same_images, short_names
from qattrain.report.inspection import network_section
from qattrain.report.page import Block, Chart, Charts, Commands, Facts, Section, Text, line_chart, recorded_section
from qattrain.report.side_by_side import disagreement_blocks, error_blocks, layer_parts
from qattrain.report.tables import COST_NOTE, chain_lines, epoch_row, network_label, result_row

FLOAT_RUN = "the-float-run"  # the name of the run that the commands for a post-training quantization start from

Flags = Mapping[tuple[str, ...], str]  # path of a setting -> the option of `train` that sets it


def command_lines(config: ExperimentConfig, flags: Flags) -> list[list[str]]:
    """The commands, with their arguments, that train what `config` describes. config: settled.

    Settings that equal their defaults are left out. What `auto` became is spelled out: another machine might choose
    differently. The run's name is left out, too: it is taken already in the folder of the run.
    """
    if config.ptq is None:
        return [["qattrain", "train", *_settings(config, flags)]]
    quant, ptq = config.quant, config.ptq
    if quant.layer_bits:  # `ptq` has no option for it, so this is from a comparison
        asked = list(_settings(config.model_copy(update={"ptq": None}), flags))
        if "--quantizer" not in asked:  # train and ptq have different defaults
            asked += ["--quantizer", quant.quantizer]
        return [["qattrain", "compare", "fp32", "vs", "ptq", *asked]]
    source = config.model_copy(update={"quant": QuantConfig(bits=FLOAT_BITS, act_bits=FLOAT_BITS), "ptq": None})
    train = ["qattrain", "train", *_settings(source, flags), "--name", FLOAT_RUN]
    if ptq.source_epochs < config.train.epochs:
        train += ["--stop-after", str(ptq.source_epochs)]
    quantize = ["qattrain", "ptq", FLOAT_RUN, "--bits", str(quant.bits), "--act-bits", str(quant.act_bits)]
    quantize += ["--quantizer", quant.quantizer, "--calibration", ptq.calibration]
    return [train, [*quantize, "--calibration-images", str(ptq.images)]]


def _settings(config: ExperimentConfig, flags: Flags) -> Iterator[str]:
    defaults = dict(leaves(ExperimentConfig().model_dump(mode="json")))
    for path, value in leaves(config.model_dump(mode="json")):
        if path == ("name",) or value == defaults[path]:
            continue
        if path == ("quant", "layer_bits"):
            yield from (flags[path], ",".join(f"{layer}={bits}" for layer, bits in value.items()))
        elif path in flags:
            yield from (flags[path], *([] if value is True else [str(value)]))  # a switch takes no value
        else:  # numbers and lists in JSON are valid TOML
            yield from ("--set", f"{'.'.join(path)}={value if isinstance(value, str) else json.dumps(value)}")


def network_sections(findings: Sequence[Finding], flags: Flags) -> list[Section]:
    """Results, curves, the networks' inside, configuration, environment, and how to get all that again."""
    configs = [(f.name, f.config.model_dump(mode="json", exclude={"name"}) if f.config else {}) for f in findings]
    environments = [(f.name, f.environment) for f in findings]
    return [
        Section("results", "Results", _results(findings)),
        *(_one_inside(findings[0]) if len(findings) == 1 else _several_inside(findings)),
        Section("curves", "Learning curves", _curves(findings)),
        recorded_section("configuration", "configuration", configs, side_by_side=True),
        recorded_section("environment", "environment", environments, side_by_side=True),
        Section("reproduce", "How to reproduce", _reproduction(findings, flags)),
    ]


def _one_inside(finding: Finding) -> list[Section]:
    section = network_section(finding.inspection, finding.name, "network")
    layers, errors = section.parts[0], Section("network-errors", "Errors", error_blocks(finding))
    return [replace(section, parts=[layers, errors])]


def _several_inside(findings: Sequence[Finding]) -> list[Section]:
    errors = [
        Section(f"errors-{number}", finding.name, error_blocks(finding))
        for number, finding in enumerate(findings, start=1)
    ]
    compared = same_images(findings)
    return [
        *([Section("disagreement", "Where they disagree", disagreement_blocks(findings))] if compared else []),
        Section("layers", "Layers side by side", parts=layer_parts(findings)),
        Section("errors", "Errors", parts=errors),
    ]


def _results(findings: Sequence[Finding]) -> list[Block]:
    notes = dict.fromkeys(note for finding in findings for note in finding.notes)
    blocks: list[Block] = [Text(note, notice=True) for note in notes]
    chains = [Text(f"{f.name} is {line}") for f in findings for line in chain_lines([f.facts.name])]
    if len(findings) == 1:
        return [*blocks, _key_figures(findings[0]), *chains]
    first = findings[0]
    images = {f"{f.evaluation.total:,} test images of {f.facts.dataset}": None for f in findings}
    title = f"Accuracy on {' and '.join(images)}; differences, in points, and p-values are relative to {first.name}"
    rows = [_result_row(finding, first) for finding in findings]
    blocks.append(Table.of(title, rows, left=("method", "W / A bits")))
    blocks.append(
        Text(
            "The intervals are Wilson score intervals. McNemar's test is exact and paired. It looks at the images that "
            "only one of the two networks gets right: how unlikely is such a split if both are equally good?"
        )
    )
    costs = [_cost_row(finding) for finding in findings]
    blocks.append(Table.of(f"Loss and cost of every network; {COST_NOTE}", costs, ("test images", "file"), folded=True))
    blocks += chains
    figure = Figure(figsize=(CHART_INCHES[0], 1.1 + 0.42 * len(findings)), layout="constrained")
    names = short_names(findings)  # long ones would leave little room for the axis
    intervals = [(name, f.evaluation.accuracy, f.evaluation.interval) for name, f in zip(names, findings, strict=True)]
    draw_intervals(figure.subplots(), intervals, [f.kind for f in findings])
    described = "; ".join(f"{f.name} {percent(f.evaluation.accuracy)}" for f in findings)
    caption = "The numbers are those of the table above."
    return [*blocks, Charts([Chart(figure, "Test accuracy with 95 % intervals", caption, described)])]


def _key_figures(finding: Finding) -> Facts:
    result = finding.evaluation
    images = f"of {counted(result.total, 'test image')} of {finding.facts.dataset}"
    epochs = counted(len(finding.trained_epochs), "epoch") if finding.trained_epochs else ""
    totals = finding.inspection.totals
    return Facts(
        [
            ("test accuracy", percent(result.accuracy), confidence(result.interval)),
            ("errors", f"{result.total - result.correct:,}", images),
            ("test loss", f"{result.loss:.4f}", "nats, mean cross-entropy"),
            ("weight / activation bits", finding.bits, finding.kind),
            ("weight bytes", f"{finding.weight_bytes:,}", "packed codes, without biases and scales"),
            ("total bytes", f"{totals['total_bytes']:,}", "with biases, multipliers and shifts"),
            ("multiply-accumulates", f"{totals['macs']:,}", "for one image"),
            ("network", network_label(finding.facts.name), epochs),
        ]
    )


def _result_row(finding: Finding, first: Finding) -> dict[str, str]:
    """A network among several: column -> text."""
    result, against_first = finding.evaluation, None
    if finding is not first and finding.delta is not None and finding.mcnemar_p is not None:
        against_first = (finding.delta, finding.mcnemar_p)
    row = result_row(result.accuracy, result.interval, against_first, result.loss, finding.weight_bytes)
    shown = ("test accuracy", "95 % interval", "difference", "McNemar p")
    return {
        "network": finding.name,
        **{column: row[column] for column in shown},
        "method": finding.kind,
        "W / A bits": finding.bits,
        "weight bytes": row["weight bytes"],
    }


def _cost_row(finding: Finding) -> dict[str, str]:
    """The rest about a network among several: column -> text."""
    totals = finding.inspection.totals
    return {
        "network": finding.name,
        "loss": f"{finding.evaluation.loss:.4f}",
        "total bytes": f"{totals['total_bytes']:,}",
        "MACs": f"{totals['macs']:,}",
        "test images": f"{finding.facts.dataset}, {finding.evaluation.total:,}",
        "file": str(finding.subject.path),
    }


def _curves(findings: Sequence[Finding]) -> list[Block]:
    trained = [finding for finding in findings if finding.trained_epochs]
    blocks: list[Block] = [
        Text(f"{finding.name} ({finding.kind}) has no learning curve: its file records no training.")
        for finding in findings
        if finding not in trained
    ]
    if not trained:
        return blocks
    errors = [error_series(f.name, f.history, f.evaluation.total, f.kind) for f in findings]
    caption = (
        "Percent of the test images, after every epoch. The scale is logarithmic; no error is drawn as half an image."
    )
    charts = [line_chart("Test error", errors, ("epoch", "test error (%)"), caption)]
    if len(findings) == 1:
        title, keys = "Loss", ("train_loss", "test_loss", "val_loss")
        losses = [
            _series(findings[0], key, key.replace("_", " ")) for key in keys if key in trained[0].trained_epochs[0]
        ]
    else:
        title, losses = "Training loss", [_series(finding, "train_loss", finding.name) for finding in findings]
    caption = "Mean cross-entropy. Training loss is on augmented images, while the weights were still changing."
    charts.append(line_chart(title, losses, ("epoch", "loss (nats)"), caption))
    tables = [
        Table.of(f"Epochs of {finding.name}", [epoch_row(record) for record in finding.trained_epochs], folded=True)
        for finding in trained
    ]
    return [*blocks, Charts(charts), *tables]


def _series(finding: Finding, key: str, name: str) -> Series:
    records = finding.trained_epochs
    epochs, values = [record["epoch"] for record in records], [record[key] for record in records]
    return Series(name, epochs, values, method=finding.kind)


def _reproduction(findings: Sequence[Finding], flags: Flags) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "On a CPU, the same versions and the same number of threads give the same weights. Every value that was "
            "chosen automatically is spelled out."
        )
    ]
    for finding in findings:
        if finding.config is None:
            caption = f"{finding.name} is a packed file, which does not record how it was trained. To evaluate it:"
            lines = [["qattrain", "eval", str(finding.subject.path)]]
        else:
            caption = f"To get {finding.name}:"
            lines = command_lines(finding.config, flags)
        blocks.append(Commands(caption, lines))
    return blocks
