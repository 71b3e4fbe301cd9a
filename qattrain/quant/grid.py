"""The grid: real numbers to integer codes and back, `q = clip(round(x / s + z), qmin, qmax)`, `x_hat = (q - z) * s`.

Pure functions without gradients; `functional.py` has the differentiable forms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from qattrain.errors import ConfigError

SUMS = "; sums of branches have no integer form: networks are chains"
MIN_SCALE = 2.0**-20  # of every scale, so that multipliers stay finite and gradients bounded


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor as integer codes: the real value is `(codes - zero_point) * scale`.

    codes: integers in a floating dtype, so that they can carry gradients and feed fast matrix products; pixels are
        uint8.
    scale: broadcasts against codes (a scalar, or one number per channel); None means that nothing was quantized and
        the codes are the real values. To autograd it is a constant: a learned scale gets its gradient through the
        codes (see `functional.LearnedStep`).
    zero_point: the code of the real value 0.

    This is what flows between layers. It is no tuple and no Tensor. Torch functions that make sense on codes work on
    it (`CODE_FUNCTIONS`, so nn.MaxPool2d, nn.Flatten and nn.Dropout take it); every other one, indexing, iteration and
    arithmetic raise ConfigError.
    """

    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | int = 0

    def centered(self) -> Tensor:
        """`codes - zero_point`: what a layer multiplies."""
        return self.codes if isinstance(self.zero_point, int) and self.zero_point == 0 else self.codes - self.zero_point

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def size(self, dim: int | None = None) -> Any:
        return self.codes.size() if dim is None else self.codes.size(dim)

    def dim(self) -> int:
        return self.codes.dim()

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "QTensor":
        """The codes in another shape, as `view` and `reshape`. Raises ConfigError if there is a scale per channel."""
        return self._reshaped(self.codes.flatten(start_dim, end_dim), "flatten")

    def view(self, *shape: Any) -> "QTensor":
        return self._reshaped(self.codes.reshape(*shape), "view")  # codes are channels-last, which view refuses

    def reshape(self, *shape: Any) -> "QTensor":
        return self._reshaped(self.codes.reshape(*shape), "reshape")

    def _reshaped(self, codes: Tensor, what: str) -> "QTensor":
        if self.scale is not None and self.scale.numel() > 1:
            raise ConfigError(
                f"cannot {what} a QTensor with {self.scale.numel()} scales; only one scale can be kept: "
                "put a QuantReLU before it"
            )
        return replace(self, codes=codes)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in CODE_FUNCTIONS or not args or not isinstance(args[0], QTensor):
            refuse_on_codes(name)
        return CODE_FUNCTIONS[name](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"QTensor has no {name}")
        refuse_on_codes(name)


def refuse_on_codes(name: str) -> NoReturn:
    """Raises ConfigError: what was tried on a QTensor, and what to do instead."""
    allowed = ", ".join(function for function in CODE_FUNCTIONS if not function.startswith("_"))
    raise ConfigError(
        f"{name} does not work on the codes of a QTensor; allowed: {allowed}; for real values use "
        f"qattrain.quant.dequantize(q), for a ReLU QuantReLU{SUMS if 'add' in name else ''}"
    )


def _refused_operator(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object) -> NoReturn:
        refuse_on_codes(name)

    return refuse


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
for _name in (
    *("getitem", "setitem", "iter", "len", "contains", "neg", "abs", "bool", "float", "int", "array"),
    *("lt", "le", "gt", "ge", "and", "or", "xor", "invert", "round"),
    *(side + operator for operator in _OPERATORS for side in ("", "r", "i")),
):
    setattr(QTensor, f"__{_name}__", _refused_operator(f"__{_name}__"))


def _max_pooled(
    q: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> QTensor:
    """`F.max_pool2d` of the codes: scales are positive, so the largest code is the largest value."""
    if padding not in (0, (0, 0), [0, 0]) or ceil_mode or return_indices:
        raise ConfigError(
            f"max_pool2d on codes with padding={padding}, ceil_mode={ceil_mode}, return_indices={return_indices}: "
            "allowed: padding=0, ceil_mode=False, return_indices=False"
        )
    return replace(q, codes=F.max_pool2d(_floating(q.codes), kernel_size, stride, padding, dilation))


def _average_pooled(
    q: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,  # noqa: ARG001 without padding it has no effect
    divisor_override: int | None = None,
) -> QTensor:
    """Sums of codes over each window, exact, with the scale divided by the number of pixels."""
    if padding not in (0, (0, 0), [0, 0]) or ceil_mode or divisor_override:
        raise ConfigError(
            f"avg_pool2d on codes with padding={padding}, ceil_mode={ceil_mode}, divisor_override={divisor_override}: "
            "allowed: padding=0, ceil_mode=False, no divisor_override"
        )
    sums = F.avg_pool2d(widened(q.codes), kernel_size, stride, divisor_override=1)
    sides = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,)
    return _summed(q, sums, sides[0] * sides[-1])


def _averaged(q: QTensor, output_size: Any) -> QTensor:
    """`F.adaptive_avg_pool2d` to one pixel: the sum of codes over the map, with the scale divided by its pixels."""
    if output_size not in (1, (1, 1), [1, 1]):
        raise ConfigError(f"adaptive_avg_pool2d on codes with output_size={output_size}: allowed: 1")
    return _summed(q, widened(q.codes).sum((-2, -1), keepdim=True), q.codes.shape[-2] * q.codes.shape[-1])


def _summed(q: QTensor, sums: Tensor, pixels: int) -> QTensor:
    if q.scale is None:
        return QTensor(sums / pixels, None)
    return QTensor(sums, q.scale / pixels, q.zero_point * pixels)


def _dropped_out(q: QTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> QTensor:  # noqa: ARG001
    return replace(q, codes=F.dropout(_floating(q.codes), p, training))


def _floating(codes: Tensor) -> Tensor:
    """Pixels are uint8, for which torch has neither max-pooling nor dropout."""
    return codes if codes.is_floating_point() else codes.float()


CODE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max_pool2d": _max_pooled,
    "_max_pool2d": _max_pooled,
    "avg_pool2d": _average_pooled,
    "adaptive_avg_pool2d": _averaged,
    "dropout": _dropped_out,
    "flatten": QTensor.flatten,
    "view": QTensor.view,
    "reshape": QTensor.reshape,
    "size": QTensor.size,
}


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
