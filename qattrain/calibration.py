"""Post-training quantization: fix every scale of an already trained float network from what it does on some images.

Nothing is trained. Weights get the range of their tensor, activations that of what the float network computes there. At
8 bits that is enough; at fewer, rounding errors of a size the network never met add up, and accuracy collapses.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS, WEIGHT_LAYERS
from qattrain.layers import QuantReLU
from qattrain.model import LeNet
from qattrain.quant import Quantizer, dequantize

PERCENTILE = 99.9
MSE_LARGEST_PERCENT = 150

# Each takes the quantizer, the values it will see (any shape), and sets the quantizer's range.
Calibration = Callable[[Quantizer, Tensor], None]


def _extremes(quantizer: Quantizer, values: Tensor) -> tuple[Tensor, Tensor]:
    dims = quantizer.shared_dims(values)
    keep = bool(quantizer.shape)
    return values.amin(dims, keepdim=keep), values.amax(dims, keepdim=keep)


def minmax(quantizer: Quantizer, values: Tensor) -> None:
    """The whole range: outliers decide. Source: Jacob et al. 2018, section 3.1."""
    quantizer.set_range(*_extremes(quantizer, values))


def percentile(quantizer: Quantizer, values: Tensor) -> None:
    """The central 99.9 % of the values, clipping what lies outside. Source: Wu et al. 2020, section 3.3."""
    low, high = np.percentile(
        values.numpy(), [100 - PERCENTILE, PERCENTILE], axis=tuple(quantizer.shared_dims(values)), keepdims=True
    )
    quantizer.set_range(torch.from_numpy(low).view(quantizer.shape), torch.from_numpy(high).view(quantizer.shape))


def mse(quantizer: Quantizer, values: Tensor) -> None:
    """Of all whole percents of the range, up to 150 %, the one with the smallest squared error.

    More than all of it can be best where scales are powers of two. Source: Nagel et al. 2021, "A White Paper on Neural
    Network Quantization", section 3.1.
    """
    low, high = _extremes(quantizer, values)
    dims, keep = quantizer.shared_dims(values), bool(quantizer.shape)
    best_error = torch.full(quantizer.shape, torch.inf)
    best_share = torch.ones(quantizer.shape)
    for percentage in range(MSE_LARGEST_PERCENT, 0, -1):
        share = torch.full(quantizer.shape, percentage / 100)
        quantizer.set_range(low * share, high * share)
        error = (dequantize(quantizer(values)) - values).square().mean(dims, keepdim=keep)
        best_share = torch.where(error < best_error, share, best_share)
        best_error = torch.minimum(error, best_error)
    quantizer.set_range(low * best_share, high * best_share)


CALIBRATIONS: dict[str, Calibration] = {"minmax": minmax, "percentile": percentile, "mse": mse}


@torch.no_grad()
def calibrate(model: LeNet, float_model: LeNet, images: Tensor, calibrate_one: Calibration) -> None:
    """Set all scales of `model`, which has the weights of `float_model`. images: uint8 (N, 1, 28, 28), N >= 1."""
    model.eval()
    seen = _activations(float_model.eval(), images)
    for name in WEIGHT_LAYERS:
        layer = getattr(model, name)
        if layer.weight_quantizer is not None:
            calibrate_one(layer.weight_quantizer, layer.weight.contiguous())
    for name in ACTIVATION_LAYERS:
        quantizer = getattr(model, name).quantizer
        if quantizer is not None:
            calibrate_one(quantizer, seen[name])


def _activations(model: LeNet, images: Tensor) -> dict[str, Tensor]:
    """What each ReLU of the float network returns for `images`."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in ACTIVATION_LAYERS:
        layer: QuantReLU = getattr(model, name)

        def keep(_module: object, _inputs: object, output: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = output[0].contiguous()

        handles.append(layer.register_forward_hook(keep))
    model(images)
    for handle in handles:
        handle.remove()
    return seen
