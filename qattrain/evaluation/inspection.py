"""What a network looks like inside: numbers for every layer, the data of every picture. Draws and prints nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from qattrain.config import FLOAT_BITS, bits_by_layer
from qattrain.config.chain import PlacedLayer
from qattrain.data import ImageSet
from qattrain.errors import CheckpointError, ExportError
from qattrain.evaluation.metrics import EVALUATION_BATCH, Confusion, HardImage, confusion, hardest_images
from qattrain.evaluation.networks import ENGINES, Network, Packed, Trained
from qattrain.evaluation.observed import LayerHistogram, LayerPart, Observed, grid_counts, layer_histogram
from qattrain.integer import AverageLayer, IntegerModel
from qattrain.layers.network import Activation, packed_bytes, watched_activations
from qattrain.layers.quantized import WeightLayer
from qattrain.quant import QTensor, Quantizer

INSPECTED_IMAGES = 1000  # on which activations are observed


def observe(network: Network, images: Tensor | None) -> list[Observed]:
    """All weights and activations, in the order of the network. images: uint8 (N, C, H, W); None: weights only."""
    if isinstance(network, Packed):
        return observe_integers(network.model, images)
    return observe_model(network.model, images)


def observe_integers(model: IntegerModel, images: Tensor | None) -> list[Observed]:
    """`observe` for a network of which only the integers are known."""
    traced = [None] * len(model.layers) if images is None else model.trace(images.cpu().numpy())
    found, activations = [], 0
    for layer, codes in zip(model.layers, traced, strict=True):
        name = layer.name
        if not isinstance(layer, AverageLayer):
            weights = (name, "weight", layer.codes.shape, layer.bits, layer.quantizer)
            grid = tuple(code - layer.zero_point for code in layer.grid)
            found.append(Observed(*weights, codes=layer.centered, grid=grid))
            activations += 1
            name = f"act{activations}"
        if layer.requantization is not None:
            bits, shape = layer.requantization.bits, () if codes is None else codes.shape[1:]
            grid = tuple(range(2**bits))
            found.append(Observed(name, "activation", shape, bits, "integer", codes=codes, grid=grid))
    return found


@torch.no_grad()
def observe_model(model: nn.Module, images: Tensor | None) -> list[Observed]:
    """`observe` for a network that torch can run."""
    model.eval()
    with watched_activations(model) as seen:
        if images is not None:
            model(images)
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, WeightLayer):
            pair = layer.weight, layer.quantized_weight()
            found.append(_observed(name, "weight", tuple(layer.weight.shape), layer.weight_quantizer, pair))
        elif name in seen and isinstance(layer, Activation):
            found.append(_observed(name, "activation", tuple(seen[name][0].shape[1:]), layer.quantizer, seen[name]))
        elif isinstance(layer, Activation):
            found.append(_observed(name, "activation", (), layer.quantizer, None))
    return found


def _observed(
    layer: str, kind: str, shape: tuple[int, ...], quantizer: Quantizer | None, pair: tuple[Tensor, QTensor] | None
) -> Observed:
    """pair: the values before quantization and the codes they became."""
    values = None if pair is None else pair[0].contiguous().cpu().numpy()
    if values is not None and not np.isfinite(values).all():
        raise CheckpointError(f"{layer}: its {kind}s are not finite; the network is broken: train it again")
    if quantizer is None:
        return Observed(layer, kind, shape, FLOAT_BITS, None, values)
    seen = Observed(layer, kind, shape, quantizer.bits, quantizer.name, values, grid=tuple(quantizer.grid))
    if pair is None:
        return seen
    x, q = pair
    assert q.scale is not None, layer
    return replace(
        seen,
        codes=q.centered().contiguous().cpu().numpy().astype(np.int64),
        scale=q.scale.double().cpu().numpy(),
        grid=tuple(code - int(q.zero_point) for code in quantizer.grid),
        clipped_share=quantizer.clipped_share(x, q),
        approximates=quantizer.approximates,
    )


def probabilities(network: Network, images: Tensor) -> Tensor:
    """Probability of every class, float64 (N, classes): from torch, or from the integers if only they are known."""
    with ENGINES["integer" if isinstance(network, Packed) else "torch"](network) as predict:
        return torch.cat([predict(batch).double().cpu().softmax(1) for batch in images.split(EVALUATION_BATCH)])


BIAS_BYTES, MULTIPLIER_BYTES, SHIFT_BYTES = 4, 4, 1  # int32, uint32 and uint8, per output channel


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs. output_shape: (C, H, W) after pooling, or (C,). macs: multiply-accumulates for one image.

    total_bytes: of the packed weight codes, and for each output channel a bias (4 bytes) and, except in the last layer,
    a multiplier (4 bytes) and a shift (1 byte); equal ones count each time, although a file may store them once. An
    average has one multiplier and one shift. A float layer: 4 bytes for each weight and each bias; its batch
    normalization counts nothing, because it can be folded into them.
    """

    output_shape: tuple[int, ...]
    weights: int
    total_bytes: int
    macs: int


def integer_costs(model: IntegerModel) -> dict[str, LayerCost]:
    """What every layer costs, by name."""
    costs = {}
    for layer, inputs, outputs in zip(model.layers, model.shapes, model.shapes[1:], strict=False):
        weights, total_bytes = 0, 0
        if not isinstance(layer, AverageLayer):
            weights = layer.codes.size
            total_bytes = packed_bytes(weights, layer.bits) + BIAS_BYTES * len(layer.bias)
        if layer.requantization is not None:
            total_bytes += (MULTIPLIER_BYTES + SHIFT_BYTES) * len(layer.requantization.multiplier)
        shape = outputs[:1] if layer.kind == "linear" else outputs
        costs[layer.name] = LayerCost(shape, weights, total_bytes, layer.macs(inputs))
    return costs


def chain_costs(placed: Sequence[PlacedLayer], bits: Mapping[str, int]) -> dict[str, LayerCost]:
    """The same for a network of which some layers are float. bits: of every layer's weights, by name."""
    costs = {}
    for one in placed:
        layer, weights = one.layer, math.prod(one.weight_shape) if one.weight_shape else 0
        channels = one.outputs[0] if weights else 1
        total_bytes = packed_bytes(weights, bits[layer.name]) + (BIAS_BYTES * channels if weights else 0)
        if bits[layer.name] != FLOAT_BITS and layer.activation is not None:
            total_bytes += (MULTIPLIER_BYTES + SHIFT_BYTES) * channels
        shape = one.outputs[:1] if layer.kind == "fc" else one.outputs
        costs[layer.name] = LayerCost(shape, weights, total_bytes, one.macs)
    return costs


@dataclass(frozen=True)
class LayerReport(LayerPart):
    """Numbers about weights or activations.

    levels: number of possible codes; codes_used: number of codes that occur. entropy_bits: entropy of the codes'
    frequencies, the bits per code of an ideal compression. clipped_share: share of the values outside the grid.
    sqnr_db: signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_hat)^2); None also if there is no noise,
    and for dorefa's weights, which are rescaled. accumulator_bound: the largest magnitude an integer sum of the layer
    can have; accumulator_bits: of the signed integer that holds it. weight_bytes: of the packed codes, 4 per weight if
    float.

    What a layer costs, of weights and averages (which have no weights), as in `LayerCost`: output_shape, weights,
    total_bytes, macs.

    All but weight_bytes and the cost are None if the layer is float, and for activations without images; what needs
    real values is also None if only integers are known.
    """

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
    output_shape: tuple[int, ...] | None = None
    weights: int | None = None
    total_bytes: int | None = None
    macs: int | None = None


def layer_report(seen: Observed, accumulator_bound: int | None = None, cost: LayerCost | None = None) -> LayerReport:
    """Report on what was observed. accumulator_bound, cost: of a layer with weights or of an average, if known."""
    on_grid = grid_counts(seen)
    count = None if on_grid is None else on_grid[on_grid > 0]
    scale_min, scale_max = seen.scale_range or (None, None)
    return LayerReport(
        *seen.part(),
        scale_min=scale_min,
        scale_max=scale_max,
        levels=None if seen.bits == FLOAT_BITS else len(seen.grid),
        codes_used=None if count is None else len(count),
        entropy_bits=None if count is None else entropy_bits(count),
        clipped_share=seen.clipped_share,
        sqnr_db=sqnr_db(seen),
        accumulator_bound=accumulator_bound,
        accumulator_bits=None if accumulator_bound is None else accumulator_bound.bit_length() + 1,
        weight_bytes=packed_bytes(math.prod(seen.shape), seen.bits) if seen.kind == "weight" else None,
        output_shape=cost.output_shape if cost else None,
        weights=cost.weights or None if cost else None,
        total_bytes=cost.total_bytes if cost else None,
        macs=cost.macs if cost else None,
    )


def entropy_bits(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Shannon entropy of the frequencies in bits: 0 if only one code occurs, b if all 2^b are equally frequent."""
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log2(share)).sum()))


def sqnr_db(seen: Observed) -> float | None:
    """Signal-to-quantization-noise ratio in dB; None if it is unknown or infinite, or if there is no signal."""
    if seen.values is None or seen.codes is None or seen.scale is None or not seen.approximates:
        return None
    x = seen.values.astype(np.float64)
    signal, noise = float((x**2).sum()), float(((x - seen.codes * seen.scale) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that is shown of one network.

    layers, histograms: in the order of the network, one each for weights and for activations (histograms of
    activations only if there were images). filters: the first layer if it is a convolution, values and codes as
    (D, C, K, J), else None. notes: what is left out, and why. images: number of test images; confusion, hardest (the
    worst first) and accuracy (a fraction) are of these, and None or empty if there are none.
    """

    title: str
    layers: list[LayerReport]
    histograms: list[LayerHistogram]
    filters: Observed | None
    notes: list[str]
    images: int = 0
    confusion: Confusion | None = None
    hardest: list[HardImage] = field(default_factory=list)
    accuracy: float | None = None

    @property
    def totals(self) -> dict[str, int]:
        """The sums over all layers: weights, weight_bytes, total_bytes, macs (multiply-accumulates for one image)."""
        keys = ("weights", "weight_bytes", "total_bytes", "macs")
        return {key: sum(getattr(layer, key) or 0 for layer in self.layers) for key in keys}


@torch.no_grad()
def inspect_network(
    network: Network, test: ImageSet | None, title: str = "", logits: Tensor | None = None
) -> Inspection:
    """Inspect `network`, on the CPU.

    test: images for everything that depends on data; activations are observed on the first 1,000. None: weights only.
    title: of the pictures; default: model and dataset. logits: of `test`, float64 (N, classes), if already known.
    """
    facts = network.facts
    layers = observe(network, None if test is None else test.images[:INSPECTED_IMAGES])
    bounds, costs = _bounds_and_costs(network)
    notes = []
    if isinstance(network, Packed):
        notes.append(
            "a packed file holds only integers: float weights, activations before quantization, scales, clipped "
            "shares and signal-to-noise ratios are not in it"
        )
    if test is None:
        notes.append(f"no images of {facts.dataset}: activations, confusions and hardest images are left out")
    inspection = Inspection(
        title=title or f"{facts.name} on {facts.dataset}",
        layers=[layer_report(layer, bounds.get(layer.layer), costs.get(layer.layer)) for layer in layers],
        histograms=[layer_histogram(layer) for layer in layers if layer.values is not None or layer.codes is not None],
        filters=layers[0] if len(layers[0].shape) == 4 and layers[0].kind == "weight" else None,
        notes=notes,
    )
    if test is None:
        return inspection
    found = probabilities(network, test.images) if logits is None else logits.softmax(1)
    return replace(
        inspection,
        images=len(test.labels),
        confusion=confusion(found, test.labels, facts.class_names),
        hardest=hardest_images(found, test, facts.class_names),
        accuracy=(found.argmax(1) == test.labels).double().mean().item(),
    )


def _bounds_and_costs(network: Network) -> tuple[dict[str, int], dict[str, LayerCost]]:
    """Of every layer by name: the accumulator bound, {} without an integer form, and what it costs."""
    try:
        model = network.integers()
    except ExportError:  # a float layer, or sums beyond int32: the layers can still be inspected
        assert isinstance(network, Trained)
        config, classes = network.checkpoint.config, len(network.checkpoint.class_names)
        bits = bits_by_layer(config.quant, config.model.chain)
        return {}, chain_costs(config.model.chain.place(network.input_shape, classes), bits)
    return {layer.name: layer.accumulator_bound for layer in model.layers}, integer_costs(model)
