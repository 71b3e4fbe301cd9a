"""Batch normalization: why it hides a missing division, and how ours becomes part of a multiplier and a bias."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.evaluation.networks import compare_with_integers, torch_predictor
from qattrain.explain import scale
from qattrain.explain.lab import DEEP, SEED, Explanation, Lab, Table, panels
from qattrain.integer import IntegerLayer, IntegerModel
from qattrain.integer.lowering import lower
from qattrain.layers import BatchNorm, QuantConv2d, QuantReLU
from qattrain.layers.quantized import PIXEL_SCALE
from qattrain.report.console import counted, percent
from qattrain.report.drawing import COLORS, DASHES, FILLINGS, MARKERS, method_style
from qattrain.report.labels import label_lines

BITS, EPOCHS = (4, 3, 2), 8
PLAIN = ModelConfig(name=DEEP.name.replace(" bn", ""))
PROBE_IMAGES = 256

Values = dict[str, Any]  # by name, for --json


def naive_sums(lab: Lab) -> Values:
    """The first convolution of scale.py's network, divided and undivided, with the same weights on the same images.

    ratio: of the standard deviations of one channel's sums. largest_difference: of all values after a new batch
    normalization in training.
    """
    images, found = lab.dataset.train.images[:PROBE_IMAGES] / 255, []
    for form in (scale.DIVIDED, scale.FACTOR):
        torch.manual_seed(SEED)
        convolution, norm = list(scale.network(form, batch_norm=True, classes=lab.dataset.classes))[:2]
        with torch.no_grad():
            sums = convolution(images)
            found.append((sums[:, 0].std().item(), norm.train()(sums)))
    (right, normalized), (wrong, other) = found
    return {"ratio": wrong / right, "largest_difference": (other - normalized).abs().max().item()}


@torch.no_grad()
def one_channel(model: nn.Sequential, integers: IntegerModel, images: Tensor) -> Values:
    """A channel of the first layer: what its batch normalization learned, and the integers that became of it.

    It is the channel with the largest codes on average. sum: without bias, where its code is largest but not clipped;
    code: there; value: there, in real numbers and steps of the next codes, before rounding.
    """
    layer, convolution, norm, relu = integers.layers[0], model.conv1, model.conv1_bn, model.act1
    assert isinstance(layer, IntegerLayer)
    assert isinstance(convolution, QuantConv2d)
    assert isinstance(norm, BatchNorm)
    assert isinstance(relu, QuantReLU)
    assert relu.quantizer is not None
    to_codes, weight_scale = layer.requantization, convolution.quantized_weight().scale
    assert to_codes is not None
    assert weight_scale is not None
    acc = layer.accumulate(images.numpy().astype(np.int64))
    codes = to_codes.apply(acc)
    n = int(codes.mean((0, 2, 3)).argmax())
    sums, inside = acc[:, n] - layer.bias[n], np.where(codes[:, n] < to_codes.qmax, codes[:, n], -1)
    place = np.unravel_index(int(inside.argmax()), inside.shape)
    joint = PIXEL_SCALE * weight_scale.flatten()
    channel: Values = {
        "channel": n,
        "gain": norm.weight[n].abs().item(),
        "shift": norm.bias[n].item(),
        "mean": norm.running_mean[n].item(),
        "variance": norm.running_var[n].item() + norm.eps,
        "joint_scale": joint[n].item(),
        "next_scale": relu.quantizer(torch.zeros(1)).scale.item(),
        "scale": norm.folded(joint)[0][n].item(),
        "bias_code": int(layer.bias[n]),
        "multiplier": int(to_codes.multiplier[n]),
        "shift_bits": int(to_codes.shift[n]),
        "largest_code": to_codes.qmax,
        "smallest_sum": int(sums.min()),
        "largest_sum": int(sums.max()),
        "sum": int(sums[place]),
        "code": int(codes[:, n][place]),
    }
    bias = channel["shift"] - channel["gain"] * channel["mean"] / channel["variance"] ** 0.5
    return channel | {"bias_before_rounding": bias / channel["scale"], "value": float(normalized(channel, sums[place]))}


def normalized(channel: Values, sums: Any) -> Any:
    """Batch normalization as papers write it, of sums without bias; in steps of the next codes."""
    centred = channel["joint_scale"] * sums - channel["mean"]
    return (channel["gain"] * centred / channel["variance"] ** 0.5 + channel["shift"]) / channel["next_scale"]


def integer_codes(channel: Values, sums: Any) -> Any:
    """The same as integers, of int64 sums without bias: one addition, one multiplication, one shift."""
    m, k = channel["multiplier"], channel["shift_bits"]
    return np.clip(((sums + channel["bias_code"]) * m + (1 << (k - 1))) >> k, 0, channel["largest_code"])


def explain(lab: Lab) -> Explanation:
    """The 2^n layer with and without batch normalization; one channel in integers; a deep network at a few widths."""
    naive = [scale.train(lab, form, "SGD", norm) for norm in (False, True) for form in (scale.DIVIDED, scale.FACTOR)]
    plain_right, plain_wrong, right, wrong = naive
    probe, test = naive_sums(lab), lab.dataset.test
    models = {bits: lab.train(QuantConfig(bits=bits), EPOCHS, network=DEEP) for bits in BITS}
    accuracy = {
        "with": {bits: lab.accuracy(model) for bits, model in models.items()},
        "without": {bits: lab.accuracy(lab.train(QuantConfig(bits=bits), EPOCHS, network=PLAIN)) for bits in BITS},
    }
    model = models[BITS[0]]
    integers = lower(model)
    found = compare_with_integers(torch_predictor(model), integers, test.images, shown=model)
    channel = one_channel(model, integers, test.images)
    c = channel
    factor = c["scale"] / c["next_scale"]
    rows = [
        ["s_x s_w, the value of one step of the sums", f"{c['joint_scale']:.4g}"],
        ["gain, shift", f"{c['gain']:.4g}, {c['shift']:.4g}"],
        ["mean, standard deviation", f"{c['mean']:.4g}, {c['variance'] ** 0.5:.4g}"],
        ["S = s_x s_w gain / deviation", f"{c['scale']:.4g}"],
        ["(shift - gain mean / deviation) / S", f"{c['bias_before_rounding']:.2f}"],
        ["b, rounded: the bias code", f"{c['bias_code']:,}"],
        ["s_y, the step of the next codes", f"{c['next_scale']:.4g}"],
        ["S / s_y", f"{factor:.8g}"],
        ["m / 2^k", f"{c['multiplier']:,} / 2^{c['shift_bits']}"],
    ]
    lowest = BITS[-1]
    gains = {bits: 100 * (accuracy["with"][bits] - accuracy["without"][bits]) for bits in BITS}
    return Explanation(
        numbers={
            "data": lab.data_line,
            "epochs": EPOCHS,
            "network": DEEP.name,
            "naive": {
                "divided": plain_right.test_accuracy,
                "undivided": plain_wrong.test_accuracy,
                "divided_norm": right.test_accuracy,
                "undivided_norm": wrong.test_accuracy,
                **probe,
            },
            "channel": channel,
            "images": len(test.labels),
            "images_with_another_logit": found.logits,
            "hidden_codes_that_differ": found.codes,
            "accuracy": {kind: {str(bits): value for bits, value in one.items()} for kind, one in accuracy.items()},
        },
        tables=[
            Table(
                f"the layer of topic scale (weights times 2^{scale.N}), SGD, {scale.EPOCHS} epochs; {lab.data_line}; "
                "test accuracy",
                ["form", "without norm", "with norm"],
                [
                    ["divided by 2^n", percent(plain_right.test_accuracy[-1]), percent(right.test_accuracy[-1])],
                    ["not divided", percent(plain_wrong.test_accuracy[-1]), percent(wrong.test_accuracy[-1])],
                ],
            ),
            Table(f"channel {c['channel']} of conv1, {BITS[0]} bits", ["what", "value"], rows),
            Table(
                f"test accuracy after {EPOCHS} epochs; six layers, two of them depthwise: {DEEP.name}",
                ["bits", "without batch norm", "with batch norm"],
                [[str(b), percent(accuracy["without"][b]), percent(accuracy["with"][b])] for b in sorted(BITS)],
            ),
        ],
        answer=[
            f"Batch norm hides the missing division. Without the division by 2^{scale.N}, the sums of the first "
            f"convolution vary {probe['ratio']:.4g} times as much (same weights, same images). Batch norm divides them "
            "by their own deviation, so a common factor cancels: after it, no value differs by more than "
            f"{probe['largest_difference']:.2g}, because of the small constant under the root. That is why the wrong "
            f"layer reaches {percent(wrong.test_accuracy[-1])} with batch norm and "
            f"{percent(plain_wrong.test_accuracy[-1])} without.",
            "In the integer network there is no normalization left to compute. In evaluation it is one factor and one "
            f"summand per channel: real value = S (sum + b). For channel {c['channel']} of conv1, S = "
            f"{c['scale']:.4g} and b = {c['bias_code']:,}, rounded from {c['bias_before_rounding']:.2f}. S takes the "
            "place of the layer's scale in the multiplier, S / s_y = m / 2^k, and b is the bias that every layer has.",
            f"A sum of {c['sum']:,} gives ({c['sum']:,} + {c['bias_code']:,}) * {c['multiplier']:,} / "
            f"2^{c['shift_bits']}, rounded: {c['code']}. In real numbers, batch norm gives {c['value']:.3f} steps. "
            "Evaluation and export use the same S and b, so nothing changes on the way: between the trained network "
            f"and its integers a logit differs in {found.logits} of {len(test.labels):,} test images, and "
            f"{found.codes} hidden codes differ.",
            "What it brings: every layer gets inputs of the same spread, from the first step on, and so learns sooner. "
            f"In the deep network, after {EPOCHS} epochs, it is worth {gains[BITS[0]]:.1f} points at {BITS[0]} bits "
            f"and {gains[lowest]:.1f} points at {lowest} bits. In the exported network it costs nothing: multipliers "
            "and biases are there anyway.",
        ],
        look=[
            "qattrain.quant.kernels.normalized_scale: S and b, for training, evaluation and export",
            "qattrain.layers.BatchNorm.folded and qattrain.integer.lowering: where S takes the place of s_x s_w",
            "your own: qattrain train --model 'conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 16 1x1 bn, fc'",
        ],
        paper="Ioffe, Szegedy 2015 (batch normalization); Jacob et al. 2018, section 3.2 (folding)",
        figure=_figure(naive, channel, accuracy, lab.data_line),
    )


def _figure(naive: list[scale.Course], channel: Values, accuracy: dict[str, dict[int, float]], data: str) -> Figure:
    few = min(BITS)
    before, after = (percent(accuracy[kind][few], 1) for kind in ("without", "with"))
    title = f"Batch norm takes a deep {few}-bit network from {before} to {after}\n({data})"
    figure, [[left], [middle], [right]] = panels(title, 3, 1, size=(7, 9.6))
    names = ("divided", "undivided", "divided, with norm", "undivided, with norm")
    for index, (course, name) in enumerate(zip(naive, names, strict=True)):
        percents = [100 * a for a in course.test_accuracy]
        color, marker = COLORS[2 + index % 2], MARKERS[2 + index % 2]
        filling = FILLINGS[1 - index // 2]
        look = {"color": color, "marker": marker, "ls": DASHES[1 - index // 2], "ms": 5, **filling}
        left.plot(range(1, len(percents) + 1), percents, label=name, **look)
    left.set(title=f"It hides a missing division by 2^{scale.N}", xlabel="epoch", ylabel="test accuracy (%)")
    left.set(ylim=(0, 103))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    sums = np.arange(channel["smallest_sum"], channel["largest_sum"] + 1)
    middle.plot(sums, normalized(channel, sums), color=COLORS[3], ls="--", label="gain (x - mean) / deviation + shift")
    middle.plot(sums, integer_codes(channel, sums), color="black", label="((sum + b) m + 2^(k-1)) >> k")
    middle.plot([channel["sum"]], [channel["code"]], "o", color="black", label="the sum worked out in the text")
    left_end = sums[normalized(channel, sums) > -3][0]
    middle.set(xlim=(left_end, sums[-1]), ylim=(-3, channel["largest_code"] + 1))
    middle.set(title=f"Channel {channel['channel']} of conv1, real and in integers")
    middle.set(xlabel="sum of products (codes)", ylabel="steps of the next codes")
    middle.yaxis.set_major_locator(MaxNLocator(integer=True))
    middle.legend(fontsize=9, loc="upper left")
    for variant, kind in enumerate(("with", "without")):
        points = sorted(accuracy[kind].items())
        style = method_style("QAT", variant)
        right.plot([bits for bits, _ in points], [100 * value for _, value in points], label=f"{kind} norm", **style)
    right.set(title=f"A deep network after {counted(EPOCHS, 'epoch')}", xlabel="bits of weights and activations")
    right.set(ylabel="test accuracy (%)", ylim=(0, 103))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_lines(left, 25)
    label_lines(right, 25)
    return figure
