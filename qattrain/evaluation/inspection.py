"""A network looked at from inside: numbers for every layer, and the data of every picture. Draws and prints nothing."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS, FLOAT_BITS, WEIGHT_LAYERS
from qattrain.data import ImageSet
from qattrain.errors import ExportError
from qattrain.evaluation.metrics import EVALUATION_BATCH, Confusion, HardImage, confusion, hardest_images
from qattrain.evaluation.networks import ENGINES, Network, Packed
from qattrain.integer import IntegerModel
from qattrain.layers.network import LeNet
from qattrain.quant import QTensor, Quantizer

INSPECTED_IMAGES = 1000  # on which activations are observed


@dataclass(frozen=True, eq=False)
class Observed:
    """One layer's weights, or its activations on all images looked at.

    kind: "weight" or "activation". shape: of the weights, or of one image's activations; () if unknown.
    values: before quantization, float; None if only integers are known, and for activations without images.
    codes: int64, zero point subtracted; None if float, and for activations without images.
    scale: of the codes, broadcasts against them; None if float or unknown.
    grid: all codes there are, ascending, zero point subtracted; () if float or not yet set.
    clipped_share: of the values, those outside the grid; None where unknown, or where the design clips nothing.
    approximates: whether scale times code is meant to be near the value.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    quantizer: str | None
    values: NDArray[Any] | None = None
    codes: NDArray[np.int64] | None = None
    scale: NDArray[np.float64] | None = None
    grid: tuple[int, ...] = ()
    clipped_share: float | None = None
    approximates: bool = True


def observe(network: Network, images: Tensor | None) -> list[Observed]:
    """All layers in the order of the network. images: uint8 (N, 1, 28, 28), or None: weights only."""
    if isinstance(network, Packed):
        return observe_integers(network.model, images)
    return observe_model(network.model, images)


def observe_integers(model: IntegerModel, images: Tensor | None) -> list[Observed]:
    """The same from the integers alone."""
    traced = [None] * len(model.layers) if images is None else model.trace(images.cpu().numpy())
    found = []
    for number, (layer, codes) in enumerate(zip(model.layers, traced, strict=True), start=1):
        grid = tuple(code - layer.zero_point for code in layer.grid)
        found.append(
            Observed(
                layer.name,
                "weight",
                layer.codes.shape,
                layer.bits,
                layer.quantizer,
                codes=layer.centered,
                grid=grid,
            )
        )
        if layer.requantization is not None:
            bits, shape = layer.requantization.bits, () if codes is None else codes.shape[1:]
            grid = tuple(range(2**bits))
            found.append(Observed(f"act{number}", "activation", shape, bits, "integer", codes=codes, grid=grid))
    return found


@torch.no_grad()
def observe_model(model: LeNet, images: Tensor | None) -> list[Observed]:
    """All layers of a network that torch can run."""
    model.eval()
    seen: dict[str, tuple[Tensor, QTensor]] = {}
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _module, inputs, output, name=name: seen.update({name: (inputs[0].relu(), output)})
        )
        for name in ACTIVATION_LAYERS
    ]
    if images is not None:
        model(images)
    for handle in handles:
        handle.remove()
    found = []
    for name in [layer for layer, _ in model.named_children()]:
        module = getattr(model, name)
        if name in WEIGHT_LAYERS:
            pair = (module.weight, module.quantized_weight())
            found.append(_observed(name, tuple(module.weight.shape), module.weight_quantizer, pair))
        else:
            shape = tuple(seen[name][0].shape[1:]) if name in seen else ()
            found.append(_observed(name, shape, module.quantizer, seen.get(name)))
    return found


def _observed(
    layer: str, shape: tuple[int, ...], quantizer: Quantizer | None, pair: tuple[Tensor, QTensor] | None
) -> Observed:
    kind = "weight" if layer in WEIGHT_LAYERS else "activation"
    values = None if pair is None else pair[0].contiguous().cpu().numpy()
    if quantizer is None:
        return Observed(layer, kind, shape, FLOAT_BITS, None, values)
    grid = range(quantizer.qmin, quantizer.qmax + 1, quantizer.step)
    if pair is None:
        return Observed(layer, kind, shape, quantizer.bits, quantizer.name, grid=tuple(grid))
    x, q = pair
    assert q.scale is not None, layer
    zero_point = int(q.zero_point)
    return Observed(
        layer,
        kind,
        shape,
        quantizer.bits,
        quantizer.name,
        values,
        q.centered().contiguous().cpu().numpy().astype(np.int64),
        q.scale.double().cpu().numpy(),
        tuple(code - zero_point for code in grid),
        quantizer.clipped_share(x, q),
        quantizer.approximates,
    )


def probabilities(network: Network, images: Tensor) -> Tensor:
    """Of every class, float64 (N, classes), by torch, or by the integers where nothing else is known."""
    with ENGINES["integer" if isinstance(network, Packed) else "torch"](network) as predict:
        return torch.cat([predict(batch).double().cpu().softmax(1) for batch in torch.split(images, EVALUATION_BATCH)])


@dataclass(frozen=True)
class LayerReport:
    """One layer's weights or activations.

    levels: codes there are; codes_used: different ones that occur. entropy_bits: of the codes' frequencies, what an
    ideal code would need for each. clipped_share: of the values, those outside the grid. sqnr_db: signal-to-
    quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_hat)^2); None also where nothing was lost,
    and for dorefa's weights, which are rescaled.
    accumulator_bound: no integer sum of the layer is larger in magnitude; accumulator_bits: of the signed integer that
    holds it. weight_bytes: of the packed codes, 4 a weight if float.

    All of these but weight_bytes are None where the layer is float, and for activations where no images were at hand;
    what needs real values also where only integers are known.
    """

    layer: str
    kind: str  # weight or activation
    shape: tuple[int, ...]  # of the weights, or of one image's activations, () if unknown
    bits: int
    quantizer: str | None
    scale_min: float | None = None
    scale_max: float | None = None
    levels: int | None = None
    codes_used: int | None = None
    entropy_bits: float | None = None
    clipped_share: float | None = None
    sqnr_db: float | None = None
    accumulator_bound: int | None = None
    accumulator_bits: int | None = None
    weight_bytes: int | None = None


def layer_report(seen: Observed, accumulator_bound: int | None = None) -> LayerReport:
    """The report of what was observed. accumulator_bound: of a weight layer, if known."""
    count = None if seen.codes is None else np.unique(seen.codes, return_counts=True)[1]
    return LayerReport(
        seen.layer,
        seen.kind,
        seen.shape,
        seen.bits,
        seen.quantizer,
        scale_min=None if seen.scale is None else float(seen.scale.min()),
        scale_max=None if seen.scale is None else float(seen.scale.max()),
        levels=None if seen.bits == FLOAT_BITS else len(seen.grid),
        codes_used=None if count is None else len(count),
        entropy_bits=None if count is None else entropy_bits(count),
        clipped_share=seen.clipped_share,
        sqnr_db=sqnr_db(seen),
        accumulator_bound=accumulator_bound,
        accumulator_bits=None if accumulator_bound is None else accumulator_bound.bit_length() + 1,
        weight_bytes=math.ceil(math.prod(seen.shape) * seen.bits / 8) if seen.kind == "weight" else None,
    )


def entropy_bits(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Shannon's entropy of the frequencies, in bits: 0 where all are one code, b where all 2^b are equally frequent."""
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log2(share)).sum()))


def sqnr_db(seen: Observed) -> float | None:
    """Signal-to-quantization-noise ratio in dB; None where it is unknown, or infinite, or of nothing."""
    if seen.values is None or seen.codes is None or seen.scale is None or not seen.approximates:
        return None
    x = seen.values.astype(np.float64)
    signal, noise = float((x**2).sum()), float(((x - seen.codes * seen.scale) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


BINS = 96


@dataclass(frozen=True, eq=False)
class LayerHistogram:
    """One layer's weights or activations, before and after, on one axis.

    unit: of the axis: "steps" (value / scale: where each channel has a scale of its own, only so do they share a
        grid), "value" (real values), or "codes" (only integers are known).
    edges: (bins + 1,) of the equal bins, before: (bins,) how many values fall into each; empty if unknown.
    grid: all points of the grid on this axis, after: how many values lie on each; empty if the layer is float.
    clip: values below and above these are cut off, half a step outside the grid; None where nothing is.
    total: how many values there are. scale_range: smallest and largest scale, None if unknown.
    """

    layer: str
    kind: str
    bits: int
    quantizer: str | None
    unit: str
    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    grid: NDArray[np.float64]
    after: NDArray[np.int64]
    clip: tuple[float, float] | None
    total: int
    scale_range: tuple[float, float] | None

    @property
    def step(self) -> float:
        """Distance of neighbouring grid points on this axis; 1 without a grid."""
        return float(np.diff(self.grid).min()) if len(self.grid) > 1 else 1.0


def layer_histogram(seen: Observed) -> LayerHistogram:
    """The histogram of a layer of which values or codes are known. Weights in steps, activations in real values."""
    assert seen.values is not None or seen.codes is not None, seen.layer
    unit, per_step = "value", 1.0
    x = None if seen.values is None else seen.values.astype(np.float64)
    if seen.scale is None and seen.codes is not None:
        unit = "codes"
    elif seen.scale is not None and seen.kind == "weight":
        unit = "steps"
        x = None if x is None else x / seen.scale
    elif seen.scale is not None:
        per_step = float(seen.scale.reshape(-1)[0])
    grid = np.array(seen.grid, np.float64) * per_step
    after = np.array([(seen.codes == code).sum() for code in seen.grid], np.int64) if seen.codes is not None else None
    before, edges = (np.zeros(0, np.int64), np.zeros(0)) if x is None else np.histogram(x, bins=BINS)
    clips = seen.clipped_share is not None and seen.codes is not None
    return LayerHistogram(
        seen.layer,
        seen.kind,
        seen.bits,
        seen.quantizer,
        unit,
        edges,
        before.astype(np.int64),
        grid,
        np.zeros(0, np.int64) if after is None else after,
        (float(grid[0] - per_step / 2), float(grid[-1] + per_step / 2)) if clips else None,
        int((x if x is not None else seen.codes).size),  # type: ignore[union-attr]
        None if seen.scale is None else (float(seen.scale.min()), float(seen.scale.max())),
    )


@dataclass(frozen=True, eq=False)
class Filters:
    """The first layer's kernels. values: float (C, 5, 5), None if only integers are known. codes: int64 (C, 5, 5),
    zero point subtracted, None if the layer is float."""

    bits: int
    values: NDArray[Any] | None
    codes: NDArray[np.int64] | None


def first_layer_filters(seen: Observed) -> Filters:
    """Of the observed first layer, whose weights are (C, 1, 5, 5)."""
    assert seen.layer == "conv1", seen.layer
    return Filters(
        seen.bits,
        None if seen.values is None else seen.values[:, 0],
        None if seen.codes is None else seen.codes[:, 0],
    )


__all__ = [
    "INSPECTED_IMAGES",
    "Confusion",
    "Filters",
    "HardImage",
    "Inspection",
    "LayerHistogram",
    "LayerReport",
    "Observed",
    "inspect_network",
    "layer_histogram",
    "layer_report",
    "observe",
]


@dataclass(frozen=True, eq=False)
class Inspection:
    """All there is to see of one network.

    layers, histograms: in the order of the network, one each for weights and for activations (histograms of
    activations only where images were at hand). confusion: None without images. hardest: the worst first, empty without
    images. accuracy: fraction of the `images` test images, None if there were none. notes: what is left out, and why.
    """

    title: str
    layers: list[LayerReport]
    histograms: list[LayerHistogram]
    filters: Filters
    confusion: Confusion | None
    hardest: list[HardImage]
    accuracy: float | None
    images: int
    notes: list[str]


@torch.no_grad()
def inspect_network(
    network: Network, test: ImageSet | None, title: str = "", logits: Tensor | None = None
) -> Inspection:
    """Look at `network`, on the CPU.

    test: images for everything that depends on data; activations are those of the first 1,000. None: weights only.
    title: what pictures call the network; its model and dataset if left out. logits: float64 (N, classes), of `test`,
    if they are known already.
    """
    facts = network.facts
    layers = observe(network, None if test is None else test.images[:INSPECTED_IMAGES])
    bounds = _bounds(network)
    notes = []
    if isinstance(network, Packed):
        notes.append(
            "a packed file holds only integers: float weights, activations before quantization, scales, clipped "
            "shares and signal-to-noise ratios are not in it"
        )
    if test is None:
        notes.append(f"no images of {facts.dataset}: activations, confusions and hardest images are left out")
    if logits is not None:
        found: Tensor | None = logits.softmax(1)
    else:
        found = None if test is None else probabilities(network, test.images)
    return Inspection(
        title=title or f"{facts.name} on {facts.dataset}",
        layers=[layer_report(layer, bounds.get(layer.layer)) for layer in layers],
        histograms=[layer_histogram(layer) for layer in layers if layer.values is not None or layer.codes is not None],
        filters=first_layer_filters(layers[0]),
        confusion=None if found is None or test is None else confusion(found, test.labels, facts.class_names),
        hardest=[] if found is None or test is None else hardest_images(found, test, facts.class_names),
        accuracy=None if found is None or test is None else (found.argmax(1) == test.labels).double().mean().item(),
        images=0 if test is None else len(test.labels),
        notes=notes,
    )


def _bounds(network: Network) -> dict[str, int]:
    """The accumulator bound of every layer that computes on integers; none where a layer is float."""
    try:
        return {layer.name: layer.accumulator_bound for layer in network.integers().layers} if network.quantized else {}
    except ExportError:  # sums beyond int32: the layers can be looked at all the same
        return {}
