"""One image through the integer network, layer by layer; then all test images through the exported C."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qattrain.config import QuantConfig
from qattrain.errors import ExportError
from qattrain.evaluation.networks import ENGINES, Packed, compare_with_integers
from qattrain.explain.lab import MODEL, Explanation, Lab, Table
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.model import IntArray
from qattrain.report.drawing import COLORS

BITS, EPOCHS = 4, 4
SHOWN_CHANNELS = 8
EXAMPLE = ("channel", "accumulator", "multiplier", "shift", "code")


@dataclass(frozen=True, eq=False)
class Step:
    """One layer on one image: input codes, accumulators, output, and one channel worked out as an example."""

    layer: IntegerLayer
    input: IntArray
    acc: IntArray
    output: IntArray
    example: dict[str, int]


def walk(model: IntegerModel, image: NDArray[np.uint8]) -> list[Step]:
    """Every layer's step on one image (1, 1, 28, 28).

    The example is the position with the largest output code that was not clipped; in the last layer, the answer.
    """
    steps, x = [], image.astype(np.int64)
    for layer, after in zip(model.products, model.trace(image), strict=True):
        if layer.kind == "linear":
            x = x.reshape(1, -1)
        acc = layer.accumulate(x)
        steps.append(Step(layer, x, acc, after, _example(layer, acc, after)))
        x = after
    return steps


def _example(layer: IntegerLayer, acc: IntArray, after: IntArray) -> dict[str, int]:
    rescaling = layer.requantization
    if rescaling is None:
        channel = int(after[0].argmax())
        return {"channel": channel, "accumulator": int(acc[0, channel]), "code": int(after[0, channel])}
    inside = np.where(after < rescaling.qmax, after, -1)
    position = np.unravel_index(int(inside.argmax()), after.shape)
    channel, value = int(position[1]), int(acc[position])
    m, k = int(rescaling.multiplier[channel]), int(rescaling.shift[channel])
    code = min(max((value * m + (1 << (k - 1))) >> k, 0), rescaling.qmax)
    assert code == after[position], (code, after[position])
    return {"channel": channel, "accumulator": value, "multiplier": m, "shift": k, "code": code}


def explain(lab: Lab) -> Explanation:
    """A network trained for seconds and lowered to integers: one test image step by step, all of them through the C."""
    model = lab.train(QuantConfig(bits=BITS), EPOCHS)
    integers, test = lower(model), lab.dataset.test
    image, label = test.images[:1].numpy(), int(test.labels[0])
    steps = walk(integers, image)
    logits = steps[-1].output[0]
    answer = int(logits.argmax())
    said, in_c = _in_c(lab, integers)
    rows = [
        [
            step.layer.name,
            f"0..{step.layer.input_max}",
            f"{step.acc.min():,}..{step.acc.max():,}",
            f"{step.layer.accumulator_bound:,}",
            f"{step.output.min():,}..{step.output.max():,}",
        ]
        for step in steps
    ]
    examples = [
        [step.layer.name, *(f"{step.example[key]:,}" if key in step.example else "-" for key in EXAMPLE)]
        for step in steps
    ]
    channel, acc, m, k, code = (steps[0].example[key] for key in EXAMPLE)
    return Explanation(
        numbers={
            "data": lab.data_line,
            "test_accuracy": lab.accuracy(model),
            "label": label,
            "answer": answer,
            "layers": [
                {
                    "layer": step.layer.name,
                    "input_codes": step.input[0].tolist(),
                    "accumulators": step.acc[0].tolist(),
                    "next_codes": step.output[0].tolist(),
                    "example": step.example,
                }
                for step in steps
            ],
            "logits": logits.tolist(),
            "c": in_c,
        },
        tables=[
            Table(
                f"one image of the digit {label}; {lab.data_line}",
                ["layer", "codes in", "sums", "bound of sums", "codes out"],
                rows,
            ),
            Table("one sum per layer, worked out", ["layer", "channel", "sum", "times m", ">> k", "gives"], examples),
        ],
        answer=[
            f"Pixels already are codes (0..255). Each layer sums products of codes in an int32; conv1's sums on this "
            f"image stay within its bound of {steps[0].layer.accumulator_bound:,}.",
            "Three scales take a sum to the next codes: M = s_x s_w / s_y, a real number. It is stored as m / 2^k: for "
            f"channel {channel} of conv1, {m:,} / 2^{k} = {m / 2**k:.6g}. ({acc:,} * {m:,} + 2^{k - 1}) >> {k} = "
            f"{code}: one multiplication, one addition, one shift. Adding the half makes the shift round.",
            f"The last layer's sums are the logits. The largest is that of {answer}; the image is a {label}.",
            said,
        ],
        look=[
            "qattrain.integer.model.IntegerModel: the whole integer network in NumPy; its run defines the result",
            "qattrain.integer.lowering.multiplier_and_shift: how a scale becomes m and k",
            "the C of your own run: qattrain export RUN --to c",
        ],
        paper="Jacob et al. 2018, section 2.2 (integer multiplier and shift)",
        figure=_figure(steps, image, label, lab.dataset.class_names),
    )


def _in_c(lab: Lab, integers: IntegerModel) -> tuple[str, dict[str, int] | None]:
    """All test images through the C of an export: a sentence about it, and the counts (None without a compiler)."""
    facts = ModelFacts(MODEL.name, lab.dataset.name, lab.dataset.class_names, None)
    images = lab.dataset.test.images
    try:
        with ENGINES["c"](Packed(facts, integers)) as predict:
            found = compare_with_integers(predict, integers, images)
    except ExportError as error:
        return f"The exported C was not compared: {error}.", None
    return (
        f"The exported C was compiled and run on all {len(images):,} test images: in {found.logits} of them a logit "
        "differs. Equal means equal integers, not close floats."
    ), {"images": len(images), "images_with_another_logit": found.logits}


def _figure(steps: list[Step], image: NDArray[np.uint8], label: int, names: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(12, 8), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=[1, 1, 1.25], squeeze=False)[:, 0]
    outputs = [step.output[0] for step in steps]
    qmax = 2**BITS - 1
    panels = above.subplots(1, 1 + SHOWN_CHANNELS // 2)
    shown = panels[0].imshow(image[0, 0], cmap="gray", vmin=0, vmax=255)
    panels[0].set_title("image, 28x28", fontsize=9)
    above.colorbar(shown, ax=panels[0], label="pixel (code)", shrink=0.8, ticks=MaxNLocator(integer=True))
    for part, axes_list, codes, name in (
        (above, panels[1:], outputs[0], "act1"),
        (middle, middle.subplots(1, SHOWN_CHANNELS), outputs[1], "act2"),
    ):
        for channel, axes in enumerate(axes_list):
            shown = axes.imshow(codes[channel], cmap="gray", vmin=0, vmax=qmax)
            axes.set_title(f"{name}, channel {channel}", fontsize=9)
        part.colorbar(
            shown, ax=list(axes_list), label=f"code, {BITS} bits", shrink=0.8, ticks=MaxNLocator(integer=True)
        )
    for axes in figure.axes:
        if axes.images and axes.get_label() != "<colorbar>":
            axes.set(xticks=[], yticks=[])
    hidden, logits = below.subplots(1, 2, width_ratios=[2, 1])
    hidden.bar(range(len(outputs[2])), outputs[2], color=COLORS[0])
    hidden.set(title="act3: codes after fc1", xlabel="feature", ylabel=f"code ({BITS} bits)", ylim=(0, qmax + 0.5))
    hidden.yaxis.set_major_locator(MaxNLocator(integer=True))
    colors = ["0.6" if value < outputs[3].max() else COLORS[1] for value in outputs[3]]
    logits.bar(names, outputs[3], color=colors, edgecolor="black", lw=0.5)
    logits.axhline(0, color="black", lw=0.8)
    logits.set(title=f"fc2: sums are the logits; the image is a {names[label]}", xlabel="class", ylabel="logit (int32)")
    figure.suptitle("One image through integers only: pixels, codes after every layer, logits")
    return figure
