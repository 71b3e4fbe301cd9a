"""What a report's page says about networks: results, curves, layers, errors, settings, and how to get them again."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from qattrain.config import FLOAT_BITS, ExperimentConfig, QuantConfig
from qattrain.config.sources import leaves
from qattrain.evaluation.inspection import LayerHistogram, LayerReport, Observed
from qattrain.evaluation.metrics import Confusion, HardImage
from qattrain.report.blocks import (
    UNKNOWN,
    Block,
    Cell,
    Chart,
    Charts,
    Commands,
    Facts,
    Section,
    Shaded,
    Table,
    Text,
    Tile,
    Tiles,
    line_chart,
    recorded_section,
)
from qattrain.report.console import counted, p_value, percent
from qattrain.report.drawing import CHART_INCHES, Series, draw_intervals, error_series, inline_svg
from qattrain.report.figures import draw_histogram
from qattrain.report.findings import Finding
from qattrain.report.sources import Sweep
from qattrain.report.sweep_sections import sweep_sections

FLOAT_RUN = "the-float-run"  # the name given to the run that a post-training quantization starts from

Flags = Mapping[tuple[str, ...], str]  # path of a setting -> the option of `train` that sets it


def command_lines(config: ExperimentConfig, flags: Flags) -> list[list[str]]:
    """Commands with their arguments, in order; they train what `config`, every value settled, describes.

    What equals its default is left out. What `auto` had become is spelled out: another machine might choose otherwise.
    The run's name is left out, too: it is taken where the run lies.
    """
    if config.ptq is None:
        return [["qattrain", "train", *_settings(config, flags)]]
    quant, ptq = config.quant, config.ptq
    if quant.layer_bits:  # `ptq` has no such option: a comparison made it
        asked = list(_settings(config.model_copy(update={"ptq": None}), flags))
        if "--quantizer" not in asked:  # train's default is not that of ptq
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
    default = ExperimentConfig().model_dump(mode="json")
    for path, value in leaves(config.model_dump(mode="json")):
        usual: Any = default
        for key in path:
            usual = usual[key] if usual is not None else None
        if path == ("name",) or value == usual:
            continue
        if path == ("quant", "layer_bits"):
            yield from (flags[path], _layer_bits(value))
        elif path in flags:
            yield from (flags[path], str(value))
        else:  # JSON's numbers and lists are TOML's, too
            yield from ("--set", f"{'.'.join(path)}={value if isinstance(value, str) else json.dumps(value)}")


def _layer_bits(layer_bits: dict[str, int]) -> str:
    return ",".join(f"{layer}={bits}" for layer, bits in layer_bits.items())


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


def _filters(filters: Observed, ident: str) -> list[Block]:
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


MOST_NAMES = 4  # in a title


def page_contents(findings: Sequence[Finding], sweeps: Sequence[Sweep], flags: Flags) -> tuple[str, str, list[Section]]:
    """Title, lead and sections of a report on these sweeps and networks."""
    names = [*(sweep.folder.name for sweep in sweeps), *(finding.name for finding in findings)]
    title = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    subjects = [counted(len(things), noun) for things, noun in ((sweeps, "sweep"), (findings, "network")) if things]
    datasets = dict.fromkeys(finding.facts.dataset for finding in findings)
    trained_on = f", on {', '.join(datasets)}" if datasets else ""
    sections = [s for n, sweep in enumerate(sweeps, start=1) for s in sweep_sections(sweep, f"sweep-{n}")]
    if findings:
        sections += network_sections(findings, flags)
    return f"Report: {title}", f"{' and '.join(subjects)}{trained_on}.".capitalize(), sections
