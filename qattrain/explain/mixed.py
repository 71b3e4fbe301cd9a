"""Mixed precision: which layers can take few bits, and what the first and the last one cost at 8."""

from typing import Any

from matplotlib.figure import Figure

from qattrain.config import FLOAT_BITS, QuantConfig
from qattrain.explain.lab import CALIBRATION_IMAGES, MODEL, Explanation, Lab, Table, panels
from qattrain.layers.network import packed_bytes
from qattrain.report.console import percent
from qattrain.report.drawing import LOOKS, method_style, series_style
from qattrain.training.ptq import CALIBRATIONS
from qattrain.training.sensitivity import BITS, Sensitivity, measure_model, rise_of

EPOCHS, FEW, MANY = 6, 2, 8
CALIBRATION = "mse"
ENDS = ("conv1", "fc2")  # the first and the last layer


def exemptions() -> dict[str, dict[str, int]]:
    """Title of each trained network -> the layers that have 8 bits in it; all others have 2."""
    layers = MODEL.chain.weight_layers
    return {
        f"all at {FEW} bits": {},
        f"first and last at {MANY}": dict.fromkeys(ENDS, MANY),
        f"the middle at {MANY}": {name: MANY for name in layers if name not in ENDS},
        f"all at {MANY} bits": dict.fromkeys(layers, MANY),
    }


def measure(lab: Lab) -> tuple[Sensitivity, float, dict[str, dict[str, Any]]]:
    """Rises of a float network's loss, its test accuracy, and the networks trained with each exemption."""
    float_model = lab.train(QuantConfig(bits=FLOAT_BITS), EPOCHS)
    images = lab.dataset.train.images[:CALIBRATION_IMAGES]
    found = measure_model(float_model, images, lab.dataset.test, "lsq", CALIBRATIONS[CALIBRATION])
    trained = {}
    for title, layer_bits in exemptions().items():
        model = lab.train(QuantConfig(bits=FEW, act_bits=MANY, layer_bits=layer_bits), EPOCHS)
        sizes = [packed_bytes(count, layer_bits.get(name, FEW)) for name, count in found.weights.items()]
        trained[title] = {"bytes": sum(sizes), "test_accuracy": lab.accuracy(model)}
    return found, lab.accuracy(float_model), trained


def explain(lab: Lab) -> Explanation:
    """Every tensor of a float network at a few widths, one at a time; then four networks trained with few bits."""
    found, reference, trained = measure(lab)
    weights = found.weights
    saved = {name: packed_bytes(count, MANY) - packed_bytes(count, FEW) for name, count in weights.items()}
    price = {name: 1000 * rise_of(found, name, FEW).rise / saved[name] for name in weights}
    largest = max(weights, key=lambda name: weights[name])
    names = list(dict.fromkeys(rise.name for rise in found.rises))
    plain, ends, middle, whole = trained.values()
    ends_title, middle_title = list(trained)[1:3]

    def gained(one: dict[str, Any]) -> str:
        points = 100 * (one["test_accuracy"] - plain["test_accuracy"])
        return f"{points:+.1f} points for {one['bytes'] - plain['bytes']:,} bytes"

    return Explanation(
        numbers={
            "data": lab.data_line,
            "epochs": EPOCHS,
            "float": reference,
            "weights": weights,
            "rises": {name: {str(bits): rise_of(found, name, bits).rise for bits in BITS} for name in names},
            "margins": {name: {str(bits): rise_of(found, name, bits).margin for bits in BITS} for name in names},
            "rise_per_kb_saved": price,
            "trained": trained,
        },
        tables=[
            Table(
                f"rise of the loss when only these weights, or this activation, are quantized after training "
                f"({lab.data_line})",
                ["layer", "weights", *map(str, BITS)],
                [
                    [name, f"{weights[name]:,}" if name in weights else "-"]
                    + [f"{rise_of(found, name, bits).rise:+.4f}" for bits in BITS]
                    for name in names
                ],
            ),
            Table(
                f"what {FEW} instead of {MANY} bits save in each layer, and what that costs",
                ["layer", "bytes saved", "rise of the loss", "rise per kB saved"],
                [
                    [name, f"{saved[name]:,}", f"{rise_of(found, name, FEW).rise:+.4f}", f"{price[name]:.2f}"]
                    for name in weights
                ],
            ),
            Table(
                f"trained with quantization for {EPOCHS} epochs, activations at {MANY} bits; float "
                f"{percent(reference, 1)}",
                ["weights", "bytes", "test accuracy"],
                [[title, f"{one['bytes']:,}", percent(one["test_accuracy"], 1)] for title, one in trained.items()],
            ),
        ],
        answer=[
            f"The first and the last layer have few weights: {weights[ENDS[0]]:,} and {weights[ENDS[1]]:,} of "
            f"{sum(weights.values()):,}. But the first one's errors reach every layer after it, and the last one's go "
            f"straight into the logits. Rounded to {FEW} bits after training, {ENDS[0]} raises the loss by "
            f"{rise_of(found, ENDS[0], FEW).rise:.3f} and {ENDS[1]} by {rise_of(found, ENDS[1], FEW).rise:.3f}; "
            f"{largest}, the largest layer, by {rise_of(found, largest, FEW).rise:.3f}.",
            f"What counts is the price of a byte. Each kB saved in {ENDS[0]} costs {price[ENDS[0]]:.2f} of loss, in "
            f"{ENDS[1]} {price[ENDS[1]]:.2f}, in {largest} {price[largest]:.3f}. So bits are saved in the large "
            "layers, and the small ones at both ends keep theirs: they take hardly any room.",
            f"Trained with quantization, the network learns to live with its grid, and the differences shrink. Against "
            f"{FEW} bits everywhere ({percent(plain['test_accuracy'], 1)}), {ends_title} bits gives {gained(ends)}; "
            f"{middle_title} bits {gained(middle)}; {MANY} bits everywhere {gained(whole)}. One test image is "
            f"{100 / len(lab.dataset.test.labels):.1f} points.",
        ],
        look=[
            "qattrain.training.sensitivity.measure: one tensor at a time; assign_bits: the bits that fit a budget",
            "your own network: qattrain sensitivity RUN --like-bits 3, then qattrain train --layer-bits ...",
            "qattrain inspect RUN: bytes and multiply-accumulates of every layer",
        ],
        paper="Wu et al. 2020, section 4 (sensitivity of layers); Dong et al. 2020 (HAWQ-V2: bits from a budget)",
        figure=_figure(found, price, trained, reference, lab.data_line),
    )


def _figure(
    found: Sensitivity, price: dict[str, float], trained: dict[str, dict[str, Any]], reference: float, data: str
) -> Figure:
    dearest, cheapest = max(price, key=lambda name: price[name]), min(price, key=lambda name: price[name])
    title = f"A byte saved in {dearest} costs {price[dearest] / price[cheapest]:.0f} times as much as one in {cheapest}"
    figure, [[left, right]] = panels(f"{title}\n({data})")
    for index, name in enumerate(found.weights):
        points = [(bits, max(rise_of(found, name, bits).rise, 1e-4)) for bits in BITS]
        left.plot(*zip(*points, strict=True), label=f"{name} ({found.weights[name]:,} weights)", **series_style(index))
    left.set_yscale("log")
    left.set_xticks(BITS)
    left.set(title="one layer's weights rounded after training", xlabel="bits of that layer alone")
    left.set(ylabel="rise of the loss (nats; at least 0.0001)")
    left.legend(fontsize=8)
    style = method_style("QAT", linestyle="none")
    xs, ys = [one["bytes"] for one in trained.values()], [100 * one["test_accuracy"] for one in trained.values()]
    right.plot(xs, ys, **style)
    for name, x, y in zip(trained, xs, ys, strict=True):
        right.annotate(name, (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    right.axhline(100 * reference, color=LOOKS["float"].color, ls=":", label="float")
    right.margins(0.25)
    right.set(
        title=f"trained with quantization, {EPOCHS} epochs", xlabel="bytes of weights", ylabel="test accuracy (%)"
    )
    right.legend(fontsize=8, loc="lower right")
    return figure
