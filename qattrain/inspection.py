"""What a network's grids look like from inside: a report per layer of weights and of activations."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS, FLOAT_BITS, WEIGHT_LAYERS
from qattrain.integer import IntegerModel
from qattrain.model import LeNet
from qattrain.networks import Network, Packed
from qattrain.quant import QTensor, Quantizer

INSPECTED_IMAGES = 1000


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    levels: codes there are; codes_used: different ones that occur. clipped_share: of the values, those outside the
    grid. accumulator_bound: no integer sum of the layer is larger in magnitude. All None where the layer is float, and
    for activations where no images were at hand; scales and clipped shares also where only integers are known.
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
    clipped_share: float | None = None
    accumulator_bound: int | None = None


def inspect_network(network: Network, images: Tensor | None) -> list[LayerReport]:
    """Reports in the order of the network. images: uint8 (N, 1, 28, 28), for the activations; None: weights only."""
    if isinstance(network, Packed):
        return inspect_integers(network.model, images)
    bounds = {layer.name: layer.accumulator_bound for layer in network.integers().layers} if network.quantized else {}
    reports = inspect_model(network.model, images)
    return [replace(report, accumulator_bound=bounds.get(report.layer)) for report in reports]


def inspect_integers(model: IntegerModel, images: Tensor | None) -> list[LayerReport]:
    """The same from the integers alone. images: as in `inspect_network`."""
    traced = [None] * len(model.layers) if images is None else model.trace(images[:INSPECTED_IMAGES].cpu().numpy())
    reports = []
    for number, (layer, codes) in enumerate(zip(model.layers, traced, strict=True), start=1):
        reports.append(
            LayerReport(
                layer.name,
                "weight",
                layer.codes.shape,
                layer.bits,
                layer.quantizer,
                levels=2**layer.bits,
                codes_used=len(np.unique(layer.codes)),
                accumulator_bound=layer.accumulator_bound,
            )
        )
        if layer.requantization is not None:
            bits, shape = layer.requantization.bits, () if codes is None else codes.shape[1:]
            used = None if codes is None else len(np.unique(codes))
            report = LayerReport(f"act{number}", "activation", shape, bits, "integer", levels=2**bits, codes_used=used)
            reports.append(report)
    return reports


@torch.no_grad()
def inspect_model(model: LeNet, images: Tensor | None) -> list[LayerReport]:
    """Reports in the order of the network. images: uint8 (N, 1, 28, 28), for the activations; None: weights only."""
    model.eval()
    seen: dict[str, tuple[Tensor, QTensor]] = {}
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _module, inputs, output, name=name: seen.update({name: (inputs[0].relu(), output)})
        )
        for name in ACTIVATION_LAYERS
    ]
    if images is not None:
        model(images[:INSPECTED_IMAGES])
    for handle in handles:
        handle.remove()
    reports = []
    for name in [layer for layer, _ in model.named_children()]:
        module = getattr(model, name)
        if name in WEIGHT_LAYERS:
            codes = module.quantized_weight()
            reports.append(_report(name, "weight", module.weight_quantizer, module.weight, codes, module.weight.shape))
        else:
            x, codes = seen[name] if images is not None else (None, None)
            shape = x.shape[1:] if x is not None else ()
            reports.append(_report(name, "activation", module.quantizer, x, codes, shape))
    return reports


def _report(
    name: str, kind: str, quantizer: Quantizer | None, x: Tensor | None, q: QTensor | None, shape: tuple[int, ...]
) -> LayerReport:
    if quantizer is None:
        return LayerReport(name, kind, tuple(shape), FLOAT_BITS, None)
    quantizer_name = type(quantizer).__name__.removesuffix("Quantizer").lower()
    if x is None or q is None or q.scale is None:
        return LayerReport(name, kind, tuple(shape), quantizer.bits, quantizer_name, levels=quantizer.levels)
    return LayerReport(
        name,
        kind,
        tuple(shape),
        quantizer.bits,
        quantizer_name,
        scale_min=q.scale.min().item(),
        scale_max=q.scale.max().item(),
        levels=quantizer.levels,
        codes_used=len(torch.unique(q.codes)),
        clipped_share=quantizer.clipped_share(x, q),
    )
