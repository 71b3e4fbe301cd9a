"""Tables and pictures of runs/published/results.json, for the README and the pages beside the JSON."""

import statistics
from typing import TYPE_CHECKING, Any

from recipes import LEFT_OUT, accuracies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENET = ("w1a1", "w1a2", "w2a2", "w3a3", "w4a4", "w8a8")
OTHERS = ("ds-cnn",)  # chains that are no LeNets
FRONT = ("kb03", "kb05", "kb07", "kb09", "kb11")
SUMMARY = (*LENET, "kb11", "kb03", "ds-cnn")  # of the README
# BitNetMCU's published figures for its convolutional networks: weight bytes, accuracy on the MNIST test images.
BITNETMCU = ((3_200, 0.9892), (5_400, 0.9906), (7_300, 0.9928), (9_300, 0.9944), (11_000, 0.9955), (13_000, 0.9958))

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
    front = []
    for recipe in FRONT:
        (row,) = results[recipe]["rows"]
        cells = [recipe, _network(row), *_figures(row), str(row["epochs"]), macs("lenet", row)]
        front.append([*cells, percent(rival(row))])
    chains = [
        [recipe, *_figures(row), str(row["epochs"]), macs(recipe, row)]
        for recipe in OTHERS
        for row in results[recipe]["rows"]
    ]
    figures = ["mean", "deviation", "seeds 0, 1, 2", "weights, bytes", "others, bytes", "epochs"]
    ablation, trials = (results[recipe]["rows"] for recipe in ("ablation", LEFT_OUT))
    return {
        "ablation": _tried(ABLATION, ablation),
        LEFT_OUT: _tried(ABLATION[:1] + TRIALS, ablation[:1] + trials),
        "lenet": markdown(["recipe", *figures], lenet),
        "front": markdown(["recipe", "network", *figures, "multiply-accumulates", "BitNetMCU"], front),
        "chains": markdown(["recipe", *figures, "multiply-accumulates"], chains),
        "summary": _summary({recipe: results[recipe]["rows"][0] for recipe in SUMMARY}),
        "widths": _widths_table(results["widths"]["rows"]),
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
            [
                "multiply-accumulates",
                *(macs(recipe if recipe in OTHERS else "lenet", row) for recipe, row in rows.items()),
            ],
        ],
    )


def macs(model: str, row: dict[str, Any]) -> str:
    """Multiply-accumulates for one image of MNIST, of a preset with the row's widths."""
    from qattrain.config import ModelConfig

    placed = ModelConfig(name=model, widths=tuple(row["widths"])).chain.place((1, 28, 28), 10)
    return f"{sum(layer.macs for layer in placed):,}"


def _network(row: dict[str, Any]) -> str:
    """`12-34-24, bits 4 1 1 4`: widths; bits of the weights of conv1, conv2, fc1, fc2."""
    bits = " ".join(str(row["layer_bits"].get(layer, row["bits"])) for layer in ("conv1", "conv2", "fc1", "fc2"))
    return f"{'-'.join(map(str, row['widths']))}, bits {bits}"


def _widths_table(rows: Rows) -> str:
    (baseline,) = (row for row in rows if row["method"] == "fp32")
    bits = sorted({row["bits"] for row in rows if row["method"] != "fp32"})
    lines = []
    for width in bits:
        found = {row["method"]: row for row in rows if row["bits"] == width}
        lines.append([str(width), *_figures(found["qat"])[:2], *_figures(found["ptq"])[:2]])
    lines.append(["float", *_figures(baseline)[:2], "", ""])
    return markdown(["bits", "QAT", "deviation", "PTQ", "deviation"], lines)


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
    """Accuracy against bytes of the weights, beside BitNetMCU's."""
    from qattrain.report.sweeps import draw_bytes

    rows = [row for recipe in FRONT for row in results[recipe]["rows"]]
    ahead = [100 * (row["mean"] - rival(row)) for row in rows]
    better = sum(points > 0 for points in ahead)
    sentence = (
        f"At {better} of {len(rows)} sizes our network (kb) is more accurate than BitNetMCU's, by {min(ahead):.2f} to "
        f"{max(ahead):.2f} points"
    )
    axes = _axes(4.6, sentence, f"{ABOUT};\nBitNetMCU: published figures, without a deviation")
    groups = [_group(row) | {"name": recipe} for recipe, row in zip(FRONT, rows, strict=True)]
    others = [{"name": "BitNetMCU", "weight_bytes": size, "accuracy": accuracy} for size, accuracy in BITNETMCU]
    draw_bytes(axes, {"groups": groups, "reference": others})
    axes.lines[-len(others)].set_label("BitNetMCU")
    axes.legend(fontsize=9, loc="lower right")
    return axes.get_figure()


def rival(row: dict[str, Any]) -> float:
    """The accuracy of BitNetMCU's smallest network that is at least as large."""
    return next(accuracy for size, accuracy in BITNETMCU if row["weight_bytes"] <= size)


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
