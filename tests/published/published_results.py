"""Tables and pictures of runs/published/results.json, for the README and the pages beside the JSON."""

import json
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes import LEFT_OUT, RESULTS, accuracies, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEVICES_FILE = RESULTS.parent / "devices.json"
LENET = ("w1a1", "w1a2", "w2a2", "w3a3", "w4a4", "w8a8")
FRONT = ("kb03", "kb05", "kb07", "kb09", "kb11")
# At most so many bytes of weights, and so many thousand multiply-accumulates where the name says so.
SMALL = ("b500", "b1100-m60", "b1600", "b3200-m60", "b3200-m420", "b11000-m240")
CHAINS = (*SMALL, "ds-cnn")  # no LeNets
SUMMARY = (*LENET, "kb11", "kb03")  # of the README, as is SMALL


class Rival(NamedTuple):
    """One of BitNetMCU's convolutional networks, as published. Accuracy: on the MNIST test images, scaled to 16x16.

    macs, milliseconds: for one image, on a CH32V002 at 48 MHz (RISC-V without a multiplier); None: not published.
    """

    weight_bytes: int
    accuracy: float
    macs: int | None = None
    milliseconds: float | None = None


BITNETMCU = (
    Rival(3_200, 0.9892, 59_000, 14.3),
    Rival(5_400, 0.9906),
    Rival(7_300, 0.9928),
    Rival(9_300, 0.9944),
    Rival(11_000, 0.9955, 236_000, 57.0),
    Rival(13_040, 0.9958),
)

# Titles of the rows of these recipes, in order.
ABLATION = (
    "**kb03**, ten epochs, without the teacher",
    "full learning rate for the quantizers' parameters",
    "shifted images instead of affine distortions",
    "elastic instead of affine distortions",
    "2 bits instead of 1 in the middle, fewer channels",
    "2 bits, with as many weights as would fit if they were ternary (1.6 bits each)",
    "with the teacher",
    "**kb11**, ten epochs, without the teacher",
    "with the teacher",
    "**w1a1**, ten epochs, with the polynomial gradient",
    "with the clipped gradient",
)
TRIALS = (
    "moving average of the weights, 0.998 per step",
    "batch normalization folded into the weight, five epochs",
    "4 bits in the first half",
)

Rows = list[dict[str, Any]]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def spread(row: dict[str, Any]) -> str:
    return f"{100 * row['standard_deviation']:.2f}"


def each(row: dict[str, Any]) -> str:
    return ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies(row))


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table: its header and its rows, cell by cell."""
    rows = ["| " + " | ".join(cells) + " |" for cells in (header, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(header), *rows[1:]])


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables by name, Markdown."""
    lenet = [[recipe, *_figures(row), str(row["epochs"])] for recipe in LENET for row in results[recipe]["rows"]]
    first = {recipe: results[recipe]["rows"][0] for recipe in (*SUMMARY, *FRONT, *CHAINS)}
    front = [
        [recipe, _network(first[recipe]), *_figures(first[recipe]), *_work(recipe, first[recipe])] for recipe in FRONT
    ]
    chains = [
        [recipe, *_chain(recipe, first[recipe]), *_figures(first[recipe]), *_work(recipe, first[recipe])]
        for recipe in CHAINS
    ]
    figures = ["mean", "deviation", "seeds 0, 1, 2", "weights, bytes", "others, bytes", "epochs"]
    ablation, trials = (results[recipe]["rows"] for recipe in ("ablation", LEFT_OUT))
    return {
        "ablation": _tried(ABLATION, ablation),
        LEFT_OUT: _tried(ABLATION[:1] + TRIALS, ablation[:1] + trials),
        "lenet": markdown(["recipe", *figures], lenet),
        "front": markdown(["recipe", "network", *figures, "multiply-accumulates"], front),
        "chains": markdown(["recipe", "network", "bits", *figures, "multiply-accumulates"], chains),
        "rivals": _rivals({recipe: first[recipe] for recipe in (*FRONT, *SMALL)}),
        "summary": _summary({recipe: first[recipe] for recipe in SUMMARY}),
        "pico": _pico(first["b3200-m60"]),
        "small": _summary({recipe: first[recipe] for recipe in SMALL}),
        "widths": _widths_table(results["widths"]["rows"]),
        "mixed": _mixed_table(results["mixed"]["rows"]),
        "quantizers": markdown(
            ["quantizer", "mean", "deviation", "seeds 0, 1, 2"],
            [[f"`{row['quantizer']}`", *_figures(row)[:3]] for row in results["quantizers"]["rows"]],
        ),
    }


def _tried(labels: tuple[str, ...], rows: Rows) -> str:
    lines = [
        [label, *_figures(row)[:4], f"{statistics.mean(row['train_seconds']):.0f}"]
        for label, row in zip(labels, rows, strict=True)
    ]
    return markdown(["", "mean", "deviation", "seeds 0, 1, 2", "weights, bytes", "seconds"], lines)


def _figures(row: dict[str, Any]) -> list[str]:
    other = "" if row["other_bytes"] is None else f"{row['other_bytes']:,}"
    return [percent(row["mean"]), spread(row), each(row), f"{row['weight_bytes']:,}", other]


def _summary(rows: dict[str, dict[str, Any]]) -> str:
    """The README's short table: a column per recipe."""
    return markdown(
        ["", *rows],
        [
            ["test accuracy", *(percent(row["mean"]) for row in rows.values())],
            ["deviation", *(spread(row) for row in rows.values())],
            ["weights, bytes", *(f"{row['weight_bytes']:,}" for row in rows.values())],
            ["total bytes", *(f"{total_bytes(row):,}" for row in rows.values())],
            ["multiply-accumulates", *(f"{macs(recipe, row):,}" for recipe, row in rows.items())],
        ],
    )


def _pico(row: dict[str, Any]) -> str:
    """The preset pico beside BitNetMCU's network with about as many multiply-accumulates."""
    rival = BITNETMCU[0]
    theirs = ["BitNetMCU, 3.2 kB", percent(rival.accuracy), f"{rival.weight_bytes:,}", "", f"{rival.macs:,}"]
    theirs += [f"{rival.milliseconds} (CH32V002)", "", ""]
    device = on_cortex_m0("b3200-m60")
    assert device is not None
    ours = [f"{row['weight_bytes']:,}", f"{total_bytes(row):,}", f"{macs('b3200-m60', row):,}"]
    ours += [f"{device['milliseconds_low']:.1f} (Cortex-M0)", f"{device['flash_bytes']:,}", f"{device['ram_bytes']:,}"]
    header = ["", "test accuracy", "weights, bytes", "total bytes", "multiply-accumulates"]
    header += ["ms at 48 MHz", "flash", "RAM"]
    return markdown(header, [["`pico`", percent(row["mean"]), *ours], theirs])


def _rivals(rows: dict[str, dict[str, Any]]) -> str:
    """Each of BitNetMCU's networks beside ours that needs no more bytes, nor more multiply-accumulates if known."""
    lines = []
    for rival in BITNETMCU:
        known = ["" if value is None else f"{value:,}" for value in (rival.macs, rival.milliseconds)]
        recipe = beside(rival, rows)
        row = rows[recipe]
        device = on_cortex_m0(recipe)
        ours = [recipe, f"{row['weight_bytes']:,}", f"{macs(recipe, row):,}"]
        ours += [f"{device['milliseconds_low']:.1f}" if device else "", percent(row["mean"])]
        lines.append([f"{rival.weight_bytes:,}", *known, percent(rival.accuracy), *ours])
    header = ["BitNetMCU: weights, bytes", "multiply-accumulates", "ms at 48 MHz", "accuracy"]
    return markdown([*header, "ours", "weights, bytes", *header[1:]], lines)


def on_cortex_m0(recipe: str) -> dict[str, Any] | None:
    """What `publish.py devices` measured of a recipe's smallest C, if it did."""
    networks: list[dict[str, Any]] = json.loads(DEVICES_FILE.read_text())["cores"]["cortex-m0"]["networks"]
    found = [row for row in networks if row["checkpoint"] == recipe and row["layout"] == "packed"]
    return found[0] if found else None


def beside(rival: Rival, rows: dict[str, dict[str, Any]]) -> str:
    """The most accurate of our recipes within the rival's bytes, and its multiply-accumulates if they are known."""
    within = [
        recipe
        for recipe, row in rows.items()
        if row["weight_bytes"] <= rival.weight_bytes and (rival.macs is None or macs(recipe, row) <= rival.macs)
    ]
    return max(within, key=lambda recipe: float(rows[recipe]["mean"]))


def macs(recipe: str, row: dict[str, Any]) -> int:
    """Multiply-accumulates for one image of MNIST, of the recipe's network with the row's widths."""
    from qattrain.config import ModelConfig

    model = read(recipe).get("model", {}) | {"widths": tuple(row["widths"])}
    return sum(layer.macs for layer in ModelConfig.model_validate(model).chain.place((1, 28, 28), 10))


def total_bytes(row: dict[str, Any]) -> int:
    """Of weights, biases, multipliers and shifts."""
    return int(row["weight_bytes"] + row["other_bytes"])


def _work(recipe: str, row: dict[str, Any]) -> list[str]:
    """Epochs and multiply-accumulates."""
    return [str(row["epochs"]), f"{macs(recipe, row):,}"]


def _chain(recipe: str, row: dict[str, Any]) -> list[str]:
    """The chain or preset, and `3, conv1 4`: bits of the weights, and of layers that differ."""
    bits = [str(row["bits"]), *(f"{layer} {bits}" for layer, bits in row["layer_bits"].items())]
    return [f"`{read(recipe)['model']['name']}`", ", ".join(bits)]


def _network(row: dict[str, Any]) -> str:
    """`12-34-24, bits 4 1 1 4`: widths; bits of the weights of conv1, conv2, fc1, fc2."""
    return f"{'-'.join(map(str, row['widths']))}, bits {' '.join(_bits(row))}"


def _bits(row: dict[str, Any]) -> list[str]:
    """Bits of the weights of a LeNet's layers."""
    return [str(row["layer_bits"].get(layer, row["bits"])) for layer in ("conv1", "conv2", "fc1", "fc2")]


def _widths_table(rows: Rows) -> str:
    (baseline,) = (row for row in rows if row["method"] == "fp32")
    bits = sorted({row["bits"] for row in rows if row["method"] != "fp32"})
    lines = []
    for width in bits:
        found = {row["method"]: row for row in rows if row["bits"] == width}
        lines.append([str(width), *_figures(found["qat"])[:2], *_figures(found["ptq"])[:2]])
    lines.append(["float", *_figures(baseline)[:2], "", ""])
    return markdown(["bits", "QAT", "deviation", "PTQ", "deviation"], lines)


def _mixed_table(rows: Rows) -> str:
    """Uniform bits beside those that `qattrain sensitivity` chose for as many bytes."""
    lines = [
        [" ".join(_bits(row)), str(row["act_bits"]), "chosen" if row["layer_bits"] else "uniform", *_figures(row)[:4]]
        for row in sorted(rows, key=lambda row: (-row["act_bits"], len(row["layer_bits"])))
    ]
    header = ["weight bits of conv1, conv2, fc1, fc2", "activation bits", "", "mean", "deviation", "seeds 0, 1, 2"]
    return markdown([*header, "weights, bytes"], lines)


ABOUT = "MNIST, mean of 3 seeds, bars one standard deviation"


def _axes(height: float, sentence: str, about: str) -> "Axes":
    from matplotlib.figure import Figure

    from qattrain.report.drawing import finding, heading

    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    finding(figure, sentence)
    axes.set_title(heading(about), fontsize=9)
    return axes


def draw_front(results: dict[str, Any]) -> "Figure":
    """Accuracy against bytes of the weights and against multiply-accumulates, beside BitNetMCU's."""
    from matplotlib.figure import Figure

    from qattrain.report.drawing import finding
    from qattrain.report.sweeps import draw_bytes

    rows = {recipe: results[recipe]["rows"][0] for recipe in (*FRONT, *SMALL)}
    ahead = [100 * (rows[beside(rival, rows)]["mean"] - rival.accuracy) for rival in BITNETMCU]
    sentence = (
        f"In no more bytes, and no more multiply-accumulates where they are known, our networks are {min(ahead):+.2f} "
        f"to {max(ahead):+.2f} points from BitNetMCU's"
    )
    figure = Figure(figsize=(7, 8), layout="constrained")
    finding(figure, sentence)
    above, below = figure.subplots(2, sharey=True)
    ours = [_group(row) | {"name": recipe, "macs": macs(recipe, row)} for recipe, row in rows.items()]
    others = [{"name": "BitNetMCU"} | rival._asdict() for rival in BITNETMCU]
    draw_bytes(above, {"groups": ours, "reference": others})
    above.set_title(f"{ABOUT};\nBitNetMCU: published figures, without a deviation", fontsize=9)
    above.lines[-len(others)].set_label("BitNetMCU")
    above.legend(fontsize=9, loc="lower right")
    # The same drawing over another cost.
    ours, others = ([one | {"weight_bytes": one["macs"]} for one in many if one["macs"]] for many in (ours, others))
    draw_bytes(below, {"groups": ours, "reference": others})
    below.set_xlabel("multiply-accumulates, logarithmic")
    return figure


def draw_widths(results: dict[str, Any]) -> "Figure":
    """Accuracy against bits: QAT and PTQ."""
    from qattrain.report.sweeps import CHARTS, accuracy_figure

    groups = [_group(row) for row in results["widths"]["rows"]]
    return accuracy_figure(CHARTS[0], {"groups": groups, "reference": []}, "MNIST, LeNet, five epochs")


def draw_quantizers(results: dict[str, Any]) -> "Figure":
    """Accuracy of every quantizer."""
    from qattrain.report.drawing import draw_intervals

    found = [(row["quantizer"], row["mean"], row["standard_deviation"]) for row in results["quantizers"]["rows"]]
    best, worst = (pick(found, key=lambda one: one[1]) for pick in (max, min))
    sentence = (
        f"At 4 bits, {len(found)} quantizers lie within {100 * (best[1] - worst[1]):.2f} points: {worst[0]} "
        f"{percent(worst[1])}, {best[0]} {percent(best[1])}"
    )
    axes = _axes(3.6, sentence, ABOUT)
    rows = [(name, mean, (mean - deviation, mean + deviation)) for name, mean, deviation in found]
    draw_intervals(axes, rows, [name for name, _, _ in rows])
    return axes.get_figure()


PICTURES = {"front": draw_front, "widths": draw_widths, "quantizers": draw_quantizers}


def _group(row: dict[str, Any]) -> dict[str, Any]:
    """As in `sweep.json`."""
    facts = {"n": len(row["seeds"]), "model": "lenet", "dataset": "mnist", "settings": {}, "epochs": 0}
    return row | facts | {"accuracy_mean": row["mean"], "accuracy_std": row["standard_deviation"]}
