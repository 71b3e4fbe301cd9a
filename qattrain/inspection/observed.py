"""One look at a network: what every layer holds before quantization, and after."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS, FLOAT_BITS, WEIGHT_LAYERS
from qattrain.engines import ENGINES
from qattrain.evaluation import EVALUATION_BATCH
from qattrain.integer import IntegerModel
from qattrain.model import LeNet
from qattrain.networks import Network, Packed
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
    name = type(quantizer).__name__.removesuffix("Quantizer").lower()
    grid = range(quantizer.qmin, quantizer.qmax + 1, quantizer.step)
    if pair is None:
        return Observed(layer, kind, shape, quantizer.bits, name, grid=tuple(grid))
    x, q = pair
    assert q.scale is not None, layer
    zero_point = int(q.zero_point)
    return Observed(
        layer,
        kind,
        shape,
        quantizer.bits,
        name,
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
