"""The grid: real numbers to integer codes and back, `q = clip(round(x / s + z), qmin, qmax)`, `x_hat = (q - z) * s`.

Pure functions without gradients; `functional.py` has the differentiable forms.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qattrain.errors import ConfigError

MIN_SCALE = 2.0**-20  # of every scale, so that multipliers stay finite and gradients bounded


class QTensor(NamedTuple):
    """A tensor as integer codes: the real value is `(codes - zero_point) * scale`.

    codes: integers in a floating dtype, so that they can carry gradients and feed fast matrix products.
    scale: broadcasts against codes (a scalar, or one number per channel); None means that nothing was quantized and
        the codes are the real values. To autograd it is a constant: a learned scale gets its gradient through the
        codes (see `functional.LearnedStep`).
    zero_point: the code of the real value 0.
    """

    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | int = 0

    def centered(self) -> Tensor:
        """`codes - zero_point`: what a layer multiplies."""
        return self.codes if isinstance(self.zero_point, int) and self.zero_point == 0 else self.codes - self.zero_point

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "QTensor":
        """Flatten the codes, so that `nn.Flatten` takes a QTensor with a scalar scale. Raises ConfigError otherwise."""
        if self.scale is not None and self.scale.numel() > 1:
            raise ConfigError(f"cannot flatten a QTensor with {self.scale.numel()} scales; only one scale can be kept")
        return QTensor(self.codes.flatten(start_dim, end_dim), self.scale, self.zero_point)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code: -2^(b-1) .. 2^(b-1) - 1 signed, 0 .. 2^b - 1 unsigned. bits: 1..8."""
    if not 1 <= bits <= 8:
        raise ConfigError(f"{bits} bits: a grid has 1 to 8 bits")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def odd_codes(bits: int) -> range:
    """The 2^b odd numbers evenly around 0: 1 - 2^b, 3 - 2^b .. 2^b - 1."""
    return range(1 - 2**bits, 2**bits, 2)


def widened(x: Tensor) -> Tensor:
    """x in float32 or wider: codes are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def round_half_up(v: Tensor) -> Tensor:
    """The one rounding of this project, `floor(v + 0.5)`: 2.5 -> 3, -2.5 -> -2. Same shape and dtype."""
    return (v + 0.5).floor_()


def nearest_power_of_two(x: Tensor) -> Tensor:
    """The power of two nearest to x > 0 in the logarithm, exact: `exp2(round(log2(x)))` need not be one."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent, 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa < math.sqrt(0.5)).to(exponent.dtype))


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> QTensor:
    """x (any shape) onto the grid, in float32 or wider: `q = clip(round(x / s + z), qmin, qmax)`.

    scale: broadcasts against x; held at 2^-20 or above.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", eq. 1.
    """
    scale = scale.clamp_min(MIN_SCALE)
    return QTensor(round_half_up(widened(x) / scale + zero_point).clamp(qmin, qmax), scale, zero_point)


def dequantize(q: QTensor) -> Tensor:
    """The real values `(codes - zero_point) * scale` of a QTensor; differentiable with respect to the codes."""
    return q.centered() if q.scale is None else q.centered() * q.scale
