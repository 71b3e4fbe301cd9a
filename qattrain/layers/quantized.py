"""Quantized layers: torch's own layers, multiplying integer codes.

`QuantConv2d` and `QuantLinear` subclass `nn.Conv2d` and `nn.Linear` and take all their arguments. `QuantReLU` is a
ReLU that returns codes. A layer takes a `QTensor` (codes from the layer before it) or, as a drop-in replacement in any
other model, a plain tensor, which it quantizes first.

One multiplication: with x_hat = s_x (q_x - z_x) and w_hat = s_w (q_w - z_w),

    y = pool( sum (q_x - z_x)(q_w - z_w) ) + b_q,  times s_x s_w[c],     b_q = clip(round(b / (s_x s_w)), +-(2^22 - 1))

The sum is over integers; max-pooling can come before the scale because scales are positive; the bias is on the same
grid. In evaluation all sums are exact: float32 holds integers up to 2^24, and a layer whose sums could come near that
uses float64. In training they may be rounded (`compute_dtype` bfloat16).
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.quant import QTensor, Quantizer, activation_quantizer, functional, kernels, native, weight_quantizer

# Below this, integers that differ in float32 still differ after a multiplication by a common factor; the integers
# themselves are exact to twice as many.
DISTINCT_FLOAT32 = 2**23

Ops = Literal["torch", "explicit"]


class _QuantLayer(nn.Module, ABC):
    """What convolutions and fully connected layers share: quantizers, bias on the grid, exact sums in evaluation."""

    weight: Tensor
    bias: Any  # nn.Parameter or None: torch's two base classes declare it differently
    compute_dtype: torch.dtype | None  # of the product while training; None: that of the weights
    pool: int = 1

    def _setup(
        self,
        bits: int,
        act_bits: int | None,
        quantizer: str,
        surrogate: str,
        fraction_bits: int | None,
        per_channel: bool,
        signed_input: bool,
        ops: Ops,
    ) -> None:
        shape = (self.weight.shape[0], *(1,) * (self.weight.dim() - 1)) if per_channel else ()
        self.bits, self.ops, self.compute_dtype = bits, ops, None
        if ops not in ("torch", "explicit"):
            raise ConfigError(f"ops {ops!r}: allowed: torch, explicit")
        self.weight_quantizer = weight_quantizer(quantizer, bits, shape, surrogate, fraction_bits)
        input_bits = bits if act_bits is None else act_bits
        self.input_quantizer = activation_quantizer(quantizer, input_bits, surrogate, signed=signed_input)

    def quantized_weight(self) -> QTensor:
        """The weights as codes and scale; scale None at 32 bits."""
        return self.weight_quantizer(self.weight) if self.weight_quantizer else QTensor(self.weight, None)

    @abstractmethod
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The sums over codes, without bias."""

    def forward(self, x: QTensor | Tensor) -> Tensor:
        if isinstance(x, QTensor):
            return self._multiply(x)
        y = self._multiply(self.input_quantizer(x) if self.input_quantizer else QTensor(x, None))
        return y if self.training else y.to(self.weight.dtype)  # other modules may not take float64

    def _multiply(self, x: QTensor) -> Tensor:
        w = self.quantized_weight()
        scale, on_grid = joint_scale(x.scale, w.scale), x.scale is not None and w.scale is not None
        codes_x, codes_w = x.centered(), w.centered()
        dtype = self._dtype(codes_x, codes_w, scale if on_grid else None)
        acc, pool = self._product(codes_x.to(dtype), codes_w.to(dtype)), self.pool
        if pool > 1 and not native.is_compiled():  # compiled, pooling and what follows are one pass
            acc, pool = F.max_pool2d(acc, pool), 1
        trailing = self.weight.dim() - 2  # dimensions after the channel
        y: Tensor = functional.Rescale.apply(acc, self.bias, scale, on_grid, trailing, pool)
        return y

    def _dtype(self, x: Tensor, w: Tensor, scale: Tensor | None) -> torch.dtype:
        if self.training:
            return self.compute_dtype or self.weight.dtype
        if self.weight_quantizer is None or self.weight.dtype == torch.float64:
            return self.weight.dtype
        if x.is_cuda and w.dim() == 4:
            return torch.float64  # cuDNN may pick a Winograd or FFT algorithm, inexact in float32
        if x.numel() == 0:
            return self.weight.dtype
        bound = w.abs().flatten(1).sum(1).max() * x.abs().max()
        if self.bias is not None and scale is not None:
            bound = bound + kernels.bias_codes(self.bias, scale).abs().max()
        return torch.float64 if bool(bound >= DISTINCT_FLOAT32) else torch.float32


def joint_scale(x: Tensor | None, w: Tensor | None) -> Tensor | None:
    """s_x * s_w as (C,), or (1,) for one scale; None where neither is quantized. Raises ConfigError for several s_x."""
    if x is not None and x.numel() > 1:
        raise ConfigError(
            f"the input has {x.numel()} scales; a layer takes one: its sums run over the input's channels"
        )
    scales = [scale.flatten() for scale in (x, w) if scale is not None]
    if not scales:
        return None
    return scales[0] if len(scales) == 1 else scales[0] * scales[1]


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """`nn.Conv2d` on integer codes: (N, C, H, W) or QTensor of it -> (N, D, H', W'), real values.

    Takes all arguments of `nn.Conv2d` (stride, padding, dilation, groups, bias, padding_mode), and by name:
    bits: of the weights, 1..8, or 32 for float. act_bits: of a plain tensor's codes (as `bits` if None).
    quantizer, surrogate: keys of QUANTIZERS and SURROGATES. fraction_bits: pow2's n. per_channel: one weight scale per
    output channel, or one in all. signed_input: whether plain tensors have negative values. pool: kernel and stride of
    a max-pooling applied to the accumulators. ops: torch's convolution or this project's own (`functional.Conv2d`).
    Raises ConfigError for unknown names, and with ops="explicit" for groups, dilation and padding modes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 4,
        act_bits: int | None = None,
        quantizer: str = "lsq",
        surrogate: str = "clipped",
        fraction_bits: int | None = None,
        per_channel: bool = True,
        signed_input: bool = True,
        pool: int = 1,
        ops: Ops = "torch",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        if ops == "explicit":
            _refuse("groups", self.groups, 1)
            _refuse("dilation", self.dilation, (1, 1))
            _refuse("padding_mode", self.padding_mode, "zeros")
            if isinstance(self.padding, str):
                raise ConfigError(f"padding={self.padding!r} with ops='explicit': give numbers, or use ops='torch'")
        self.pool = pool
        self._setup(bits, act_bits, quantizer, surrogate, fraction_bits, per_channel, signed_input, ops)
        self.to(device=device, dtype=dtype)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.ops == "explicit":
            batch = x if x.dim() == 4 else x.unsqueeze(0)
            y = functional.conv2d(batch, weight, None, self.stride, self.padding)  # type: ignore[arg-type]
            return y if x.dim() == 4 else y.squeeze(0)
        acc: Tensor = self._conv_forward(x, weight, None)
        return acc


class QuantLinear(_QuantLayer, nn.Linear):
    """`nn.Linear` on integer codes: (N, in) or QTensor of it -> (N, out), real values.

    Takes all arguments of `nn.Linear`; the others are as in `QuantConv2d`. Raises ConfigError.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 4,
        act_bits: int | None = None,
        quantizer: str = "lsq",
        surrogate: str = "clipped",
        fraction_bits: int | None = None,
        per_channel: bool = True,
        signed_input: bool = True,
        ops: Ops = "torch",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._setup(bits, act_bits, quantizer, surrogate, fraction_bits, per_channel, signed_input, ops)
        self.to(device=device, dtype=dtype)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight) if self.ops == "explicit" else F.linear(x, weight)


class QuantReLU(nn.Module):
    """max(x, 0) as unsigned codes: Tensor (N, ...) -> QTensor with one scale; at 32 bits the real values.

    bits: 1..8, or 32. quantizer, surrogate: keys of QUANTIZERS and SURROGATES. In evaluation the rounding is done in
    float64, so that a value one float32 ulp below a half is not rounded up.
    """

    def __init__(self, bits: int = 4, quantizer: str = "lsq", surrogate: str = "clipped") -> None:
        super().__init__()
        self.bits = bits
        self.quantizer = activation_quantizer(quantizer, bits, surrogate, rectify=True)

    def forward(self, x: Tensor) -> QTensor:
        if self.quantizer is None:
            return QTensor(F.relu(x), None)
        if self.training:
            training_codes: QTensor = self.quantizer(x)
            return training_codes
        codes, scale, zero_point = self.quantizer(x.double())
        return QTensor(codes.to(x.dtype), scale, zero_point)


def _refuse(name: str, value: object, allowed: object) -> None:
    if value != allowed:
        raise ConfigError(f"{name}={value!r} with ops='explicit': allowed: {allowed!r}; use ops='torch' for others")


def set_compute_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Make every quantized layer of `model` multiply in `dtype` in training (None: in the dtype of its weights)."""
    for module in model.modules():
        if isinstance(module, _QuantLayer):
            module.compute_dtype = dtype
        if isinstance(module, Quantizer):
            module.codes_dtype = dtype
