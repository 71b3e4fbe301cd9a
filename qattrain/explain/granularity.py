"""Granularity: one weight scale for a whole layer or one for each output channel, after training and in training."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from qattrain.config import FLOAT_BITS, ModelConfig, QuantConfig
from qattrain.evaluation.inspection import MULTIPLIER_BYTES, SHIFT_BYTES
from qattrain.explain.lab import DEEP, MODEL, Explanation, Lab, Prepare, Table, panels
from qattrain.layers import BatchNorm
from qattrain.layers.network import weight_layers
from qattrain.quant import dequantize, weight_quantizer
from qattrain.report.console import percent
from qattrain.report.drawing import COLORS, LOOKS, method_style

BITS, ACT_BITS = (4, 3, 2), 8  # activations at 8 bits, so that weights alone make the difference
EPOCHS = 6
QUANTIZER = QuantConfig().quantizer
NETWORKS: dict[str, ModelConfig] = {"lenet-nano": MODEL, "depthwise": DEEP}
DEEPEST = "depthwise"


def share_scales(model: nn.Sequential) -> None:
    """Give every layer a single weight scale, as `per_channel=False` does."""
    for layer in weight_layers(model).values():
        layer.weight_quantizer = weight_quantizer(QUANTIZER, layer.bits, ())


GRANULARITIES: dict[str, Prepare | None] = {"layer": share_scales, "channel": None}


@torch.no_grad()
def channel_ranges(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """By layer: the largest |w| of every output channel, as it is and with a batch normalization folded into it.

    Both as a share of the layer's largest. The last layer is left out: it always has one scale.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    found = {}
    for name, layer in list(weight_layers(model).items())[:-1]:
        ranges = layer.weight.abs().flatten(1).amax(1).double()
        norm = norms.get(f"{name}_bn")
        factor = norm.folded(None)[0] if norm is not None else torch.ones_like(ranges)
        found[name] = {"plain": _shares(ranges), "folded": _shares(ranges * factor)}
    return found


def _shares(ranges: Tensor) -> list[float]:
    shares: list[float] = (ranges / ranges.max()).tolist()
    return shares


@torch.no_grad()
def noise_ratios(model: nn.Module) -> dict[str, float]:
    """By layer, the signal-to-quantization-noise ratio of its weights in dB; the last layer is left out."""
    found = {}
    for name, layer in list(weight_layers(model).items())[:-1]:
        weight = layer.weight.double()
        noise = (weight - dequantize(layer.quantized_weight()).double()).square().sum()
        found[name] = 10 * math.log10((weight.square().sum() / noise).item())
    return found


def measure(lab: Lab, network: ModelConfig) -> dict[str, Any]:
    """Ranges of the float network's channels; by granularity and bits: ratios by layer, accuracy of PTQ and of QAT."""
    float_model = lab.train(QuantConfig(bits=FLOAT_BITS), EPOCHS, network=network)
    found: dict[str, Any] = {"float": lab.accuracy(float_model), "ranges": channel_ranges(float_model)}
    for name, prepare in GRANULARITIES.items():
        found[name] = {}
        for bits in BITS:
            quant = QuantConfig(quantizer=QUANTIZER, bits=bits, act_bits=ACT_BITS)
            rounded = lab.quantized_after_training(float_model, quant, network, prepare)
            trained = lab.train(quant, EPOCHS, network=network, prepare=prepare)
            found[name][bits] = {
                "sqnr_db": noise_ratios(rounded),
                "ptq": lab.accuracy(rounded),
                "qat": lab.accuracy(trained),
            }
    return found


def explain(lab: Lab) -> Explanation:
    """Two networks, one of them with depthwise layers, with both granularities at a few widths."""
    found = {name: measure(lab, network) for name, network in NETWORKS.items()}
    deep, high = found[DEEPEST], BITS[0]
    depthwise = [name for name in deep["ranges"] if name.startswith("dw")]
    narrowest = {kind: min(min(deep["ranges"][name][kind]) for name in depthwise) for kind in ("plain", "folded")}
    gains = _gains(found, high)
    others = [gain for (_, layer), gain in gains.items() if not layer.startswith("dw")]
    of_depthwise = [gain for (_, layer), gain in gains.items() if layer.startswith("dw")]
    channels = sum(len(ranges["plain"]) for ranges in deep["ranges"].values())
    extra = (channels - len(deep["ranges"])) * (MULTIPLIER_BYTES + SHIFT_BYTES)
    change = {
        method: {b: 100 * (deep["channel"][b][method] - deep["layer"][b][method]) for b in BITS}
        for method in ("ptq", "qat")
    }
    best = max(change["ptq"], key=lambda bits: change["ptq"][bits])
    ratio_rows = [
        [
            network,
            layer,
            *(_both(f"{one[kind][bits]['sqnr_db'][layer]:.1f}" for kind in GRANULARITIES) for bits in sorted(BITS)),
        ]
        for network, one in found.items()
        for layer in one["ranges"]
    ]
    accuracy_rows = [
        [
            network,
            method.upper(),
            *(_both(percent(one[kind][b][method], 1) for kind in GRANULARITIES) for b in sorted(BITS)),
        ]
        for network, one in found.items()
        for method in ("ptq", "qat")
    ]
    columns = [f"{bits} bits" for bits in sorted(BITS)]
    return Explanation(
        numbers={
            "data": lab.data_line,
            "epochs": EPOCHS,
            "networks": {name: network.name for name, network in NETWORKS.items()},
            **{
                name: one | {kind: {str(b): values for b, values in one[kind].items()} for kind in GRANULARITIES}
                for name, one in found.items()
            },
            "bytes_of_more_scales": extra,
        },
        tables=[
            Table(
                "signal-to-noise ratio of the rounded weights in dB: one scale per layer -> one per channel",
                ["network", "layer", *columns],
                ratio_rows,
                ("layer",),
            ),
            Table(
                f"test accuracy: one scale per layer -> one per channel; activations at {ACT_BITS} bits; "
                f"{lab.data_line}; float: "
                + ", ".join(f"{name} {percent(one['float'])}" for name, one in found.items()),
                ["network", "method", *columns],
                accuracy_rows,
                ("method",),
            ),
        ],
        answer=[
            "A grid must reach the largest weight it serves. With one scale per layer, the channel with the largest "
            "weight decides for all others. In the depthwise layers, where a channel has only 9 weights of its own, "
            f"the narrowest channel uses {percent(narrowest['plain'], 0)} of the range. If batch norm were folded into "
            f"the weights, as many tools do, it would use {percent(narrowest['folded'], 0)}; ours goes into the "
            "multiplier and leaves the weights as they are.",
            f"One scale per channel makes the rounding error of {high}-bit weights smaller by {min(others):.1f} to "
            f"{max(others):.1f} dB, in depthwise layers by {min(of_depthwise):.1f} to {max(of_depthwise):.1f} dB. "
            "6 dB is as much as one more bit.",
            f"After training (PTQ), the depthwise network gains most at {best} bits: {change['ptq'][best]:.1f} points "
            f"({percent(deep['layer'][best]['ptq'], 1)} to {percent(deep['channel'][best]['ptq'], 1)}). In training "
            "(QAT) the weights adapt to the grid they have, and the difference is "
            + ", ".join(f"{change['qat'][b]:+.1f} points at {b} bits" for b in BITS)
            + f" (one test image is {100 / len(lab.dataset.test.labels):.1f} points).",
            "The integers stay as simple: a channel's scale is in its multiplier. In the depthwise network, a "
            f"multiplier and a shift for each channel instead of each layer take {extra} bytes more. Our layers have "
            "them, except the last: its sums are the logits, and classes can only be compared on one scale.",
        ],
        look=[
            "qattrain.layers.QuantConv2d: per_channel=False gives one scale per layer",
            "qattrain.quant.quantizers.Quantizer: shape, of the scale; shared_dims, the weights that share it",
            "qattrain inspect RUN: the smallest and the largest scale of every layer of your own run",
        ],
        paper="Krishnamoorthi 2018, section 3.1 (per layer, per channel); Nagel et al. 2019 (ranges of channels)",
        figure=_figure(found, lab.data_line),
    )


def _both(texts: Iterable[str]) -> str:
    """One scale per layer, then one per channel: `20.2 -> 23.5`."""
    return " -> ".join(texts)


def _gains(found: dict[str, Any], bits: int) -> dict[tuple[str, str], float]:
    """(network, layer) -> dB that a scale per channel gains."""
    return {
        (network, layer): one["channel"][bits]["sqnr_db"][layer] - db
        for network, one in found.items()
        for layer, db in one["layer"][bits]["sqnr_db"].items()
    }


def _figure(found: dict[str, Any], data: str) -> Figure:
    gains_db = [gain for bits in BITS for gain in _gains(found, bits).values()]
    title = (
        f"A scale per channel adds {min(gains_db):.1f} to {max(gains_db):.1f} dB to the weights' signal-to-noise ratio"
    )
    title += f"\n({data})"
    figure, grid = panels(title, 2, 2, size=(9.4, 7))
    ranges, gains = grid[0]
    for kind, shift, color, label in (
        ("plain", -0.16, COLORS[2], "as they are"),
        ("folded", 0.16, COLORS[3], "with batch norm folded into them"),
    ):
        xs, ys = [], []  # a short line for every channel, with gaps between them
        for place, layer in enumerate(found[DEEPEST]["ranges"].values()):
            for share in layer[kind]:
                xs += [place + shift - 0.12, place + shift + 0.12, math.nan]
                ys += [100 * share, 100 * share, math.nan]
        ranges.plot(xs, ys, color=color, lw=1.2, label=label)
    ranges.set_xticks(range(len(found[DEEPEST]["ranges"])), list(found[DEEPEST]["ranges"]))
    ranges.set(title="depthwise: the range each channel uses", xlabel="layer", ylim=(0, 105))
    ranges.set(ylabel="largest |w| (% of the layer's)")
    ranges.legend(fontsize=8, loc="lower center", ncols=2)
    _draw_gains(gains, found)
    for axes, (network, one) in zip(grid[1], found.items(), strict=True):
        for method in ("QAT", "PTQ"):
            for variant, kind in enumerate(("channel", "layer")):
                percents = [100 * one[kind][bits][method.lower()] for bits in sorted(BITS)]
                style = method_style(method, variant)
                axes.plot(sorted(BITS), percents, label=f"{method}, per {kind}", **style)
        axes.axhline(100 * one["float"], color=LOOKS["float"].color, ls=":", label="float")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=network, xlabel="bits of the weights", ylabel="test accuracy (%)", ylim=(0, 103))
    names = grid[1, 0].get_legend_handles_labels()
    figure.legend(
        *names,
        loc="outside lower center",
        ncols=len(names[1]),
        fontsize=9,
        title="below: scales per channel or per layer",
    )
    return figure


def _draw_gains(axes: Axes, found: dict[str, Any]) -> None:
    for index, bits in enumerate(sorted(BITS)):
        gains = _gains(found, bits)
        places = [place + 0.27 * (index - 1) for place in range(len(gains))]
        axes.bar(places, list(gains.values()), 0.25, label=f"{bits} bits", color=COLORS[2 + index])
    names = [f"{layer}\n({network})" if layer == "conv1" else layer for network, layer in gains]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(title="What a scale per channel gains", xlabel="layer", ylabel="signal to noise (dB)")
    axes.legend(fontsize=8)
