"""lower() turns a trained network into an IntegerModel. The only file of this package that needs torch.

M = s_x s_w[c] / s_y in float64,  m = round(M 2^k) < 2^31 with k the largest in 1..62
"""

import math

import numpy as np
import torch

from qattrain.config import WEIGHT_LAYERS
from qattrain.errors import ExportError
from qattrain.integer import INT32_MAX, IntegerLayer, IntegerModel, Requantization
from qattrain.layers.network import INPUT_SCALE, LeNet
from qattrain.layers.quantized import joint_scale
from qattrain.quant.kernels import bias_codes

FOLLOWING = {"conv1": "act1", "conv2": "act2", "fc1": "act3"}  # the activation after each hidden layer


def multiplier_and_shift(factor: float) -> tuple[int, int]:
    """(m, k) with m / 2^k nearest to `factor` > 0, 0 <= m < 2^31, 1 <= k <= 62; m = 0 below 2^-62.

    A power of two of at least 1 becomes (2 factor, 1), an exact shift. Raises ExportError from 2^30 up.
    """
    if factor < 2.0**-62:
        return 0, 62
    if factor >= 2.0**30:
        raise ExportError(f"multiplier {factor:g}: its scales are too far apart; allowed: below 2^30; train it again")
    mantissa, exponent = math.frexp(factor)
    if mantissa == 0.5 and factor >= 1:
        return int(2 * factor), 1
    shift = min(31 - exponent, 62)
    multiplier = math.floor(math.ldexp(factor, shift) + 0.5)
    return (multiplier, shift) if multiplier < 2**31 else (multiplier // 2, shift - 1)


@torch.no_grad()
def lower(model: LeNet) -> IntegerModel:
    """The integers of `model`, on the CPU.

    Raises ExportError naming the layer if it is float, or if an accumulator could leave int32.
    """
    model.eval()
    layers, x_scale, x_max = [], torch.tensor(INPUT_SCALE), 255
    logit_scale = 1.0
    for name in WEIGHT_LAYERS:
        module = getattr(model, name)
        weight = module.quantized_weight()
        if weight.scale is None:
            raise ExportError(f"{name} has 32 bits: a float layer has no integer form; train it with 1 to 8 bits")
        joint = joint_scale(x_scale.to(weight.scale), weight.scale)
        assert joint is not None
        scales = x_scale.double().cpu() * weight.scale.double().flatten().cpu()  # (C,) or (1,)
        requantization = None
        if name in FOLLOWING:
            activation = getattr(model, FOLLOWING[name])
            if activation.quantizer is None:
                raise ExportError(f"{FOLLOWING[name]} has 32 bits: it has no integer form; train it with 1 to 8 bits")
            y_scale = activation.quantizer(torch.zeros(1, device=module.weight.device)).scale.cpu()
            pairs = [multiplier_and_shift(factor) for factor in (scales / y_scale.double()).tolist()]
            pairs = pairs * (len(module.weight) // len(pairs))
            multipliers, shifts = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
            requantization = Requantization(multipliers, shifts, activation.bits)
        else:
            logit_scale = scales.item()
        layer = IntegerLayer(
            name,
            "conv" if module.weight.dim() == 4 else "linear",
            _integers(weight.codes),
            module.bits,
            module.weight_quantizer.name,
            module.weight_quantizer.qmin,
            int(weight.zero_point),
            _integers(bias_codes(module.bias, joint)),
            x_max,
            requantization,
        )
        if layer.accumulator_bound > INT32_MAX:
            raise ExportError(f"{name}: an accumulator could reach {layer.accumulator_bound}, beyond int32")
        layers.append(layer)
        if requantization is not None:
            x_scale, x_max = y_scale, requantization.qmax
    return IntegerModel(tuple(layers), logit_scale)


def _integers(codes: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return codes.contiguous().cpu().numpy().astype(np.int64)
