"""Quantized layers: torch's own layers, multiplying integer codes.

`PixelInput` gives the codes of an image. `QuantConv2d` and `QuantLinear` subclass `nn.Conv2d` and `nn.Linear` and take
all their arguments; with `bn`, `batchnorm.BatchNorm` normalizes their sums. `QuantReLU` is a ReLU that returns codes,
`QuantAvgPool2d` an average that does. A layer takes a `QTensor` (codes from the layer before it) or, as a drop-in
replacement in any other model, a plain tensor, which it quantizes first.

One multiplication: with x_hat = s_x (q_x - z_x) and w_hat = s_w (q_w - z_w),

    y = pool( sum (q_x - z_x)(q_w - z_w) ) + b_q,  times s_x s_w[c],     b_q = clip(round(b / (s_x s_w)), +-(2^22 - 1))

The sum is over integers; max-pooling can come before the scale because scales are positive; the bias is on the same
grid. In evaluation all sums are exact: float32 holds integers up to 2^24, and a layer whose sums could come near that
uses float64. In training they may be rounded (`compute_dtype` bfloat16).
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.quant import (
    QTensor,
    Quantizer,
    activation_quantizer,
    dequantize,
    functional,
    kernels,
    native,
    weight_quantizer,
)
from qattrain.quant.grid import widened

# Below this, integers that differ in float32 still differ after a multiplication by a common factor; the integers
# themselves are exact to twice as many.
DISTINCT_FLOAT32 = 2**23
PIXEL_SCALE = 2.0**-8  # of the uint8 image

Ops = Literal["torch", "explicit"]
Layer = TypeVar("Layer", bound="WeightLayer")


class WeightLayer(nn.Module, ABC):
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
        bn: bool,
    ) -> None:
        if bn and self.bias is not None:
            raise ConfigError("bn=True with bias=True: a BatchNorm has the bias; leave bias out, or give bias=False")
        self.bn = bn
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Raises ConfigError for a bias that this layer does not have, and its BatchNorm would not know of."""
        if self.bn and f"{prefix}bias" in state_dict:
            raise ConfigError(
                f"{prefix}bias: a layer with bn=True has no bias, so it would be lost; load the weights into the float "
                "network and use quantize_model, which moves it into the batch normalization"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    @abstractmethod
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The sums over codes, without bias."""

    def forward(self, x: QTensor | Tensor) -> Any:
        """Real values, a Tensor; with `bn` the sums, a QTensor."""
        if isinstance(x, QTensor):
            return self._multiply(x)
        y = self._multiply(self.input_quantizer(x) if self.input_quantizer else QTensor(x, None))
        if self.training or isinstance(y, QTensor):
            return y
        return y.to(self.weight.dtype)  # other modules may not take float64

    def _multiply(self, x: QTensor) -> Tensor | QTensor:
        w = self.quantized_weight()
        scale, on_grid = joint_scale(x.scale, w.scale), x.scale is not None and w.scale is not None
        codes_x, codes_w = x.centered(), w.centered()
        dtype = self._dtype(codes_x, codes_w, scale if on_grid else None)
        acc, pool = self._product(codes_x.to(dtype), codes_w.to(dtype)), self.pool
        if self.bn:
            channels = (-1, *(1,) * (self.weight.dim() - 2))
            if scale is None or on_grid:
                return QTensor(acc, None if scale is None else scale.view(channels))
            return QTensor(acc * scale.view(channels), None)  # one operand is float: there is no grid
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


class QuantConv2d(WeightLayer, nn.Conv2d):
    """`nn.Conv2d` on integer codes: (N, C, H, W) or QTensor of it -> (N, D, H', W'), real values.

    Takes all arguments of `nn.Conv2d` (stride, padding, dilation, groups, bias, padding_mode), and by name:
    bits: of the weights, 1..8, or 32 for float. act_bits: of a plain tensor's codes (as `bits` if None).
    quantizer, surrogate: keys of QUANTIZERS and SURROGATES. fraction_bits: pow2's n. per_channel: one weight scale per
    output channel, or one in all. signed_input: whether plain tensors have negative values. pool: kernel and stride of
    a max-pooling applied to the accumulators. ops: torch's convolution or this project's own (`functional.Conv2d`).
    bn: a `BatchNorm` comes next, so there is no bias, and the sums are returned instead of real values.
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
        bias: bool | None = None,
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
        bn: bool = False,
    ) -> None:
        bias = not bn if bias is None else bias
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        if bn and pool > 1:
            raise ConfigError(f"bn=True with pool={pool}: statistics precede pooling; use nn.MaxPool2d after BatchNorm")
        if ops == "explicit":
            _refuse("groups", self.groups, 1)
            _refuse("dilation", self.dilation, (1, 1))
            _refuse("padding_mode", self.padding_mode, "zeros")
            if isinstance(self.padding, str):
                raise ConfigError(f"padding={self.padding!r} with ops='explicit': give numbers, or use ops='torch'")
        self.pool = pool
        self._setup(bits, act_bits, quantizer, surrogate, fraction_bits, per_channel, signed_input, ops, bn)
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_float(cls, conv: nn.Conv2d, **options: Any) -> "QuantConv2d":
        """A layer with the arguments and the weights of `conv`, copied; options as in the constructor."""
        own: dict[str, Any] = {
            name: getattr(conv, name)
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        }
        own |= {"padding_mode": conv.padding_mode, "bias": conv.bias is not None}
        return _with_weights(cls(**(own | options)), conv)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.ops == "explicit":
            batch = x if x.dim() == 4 else x.unsqueeze(0)
            y = functional.conv2d(batch, weight, None, self.stride, self.padding)  # type: ignore[arg-type]
            return y if x.dim() == 4 else y.squeeze(0)
        acc: Tensor = self._conv_forward(x, weight, None)
        return acc


class QuantLinear(WeightLayer, nn.Linear):
    """`nn.Linear` on integer codes: (N, in) or QTensor of it -> (N, out), real values.

    Takes all arguments of `nn.Linear`; the others are as in `QuantConv2d`. Raises ConfigError.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | None = None,
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
        bn: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, not bn if bias is None else bias, device, dtype)
        self._setup(bits, act_bits, quantizer, surrogate, fraction_bits, per_channel, signed_input, ops, bn)
        self.to(device=device, dtype=dtype)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight) if self.ops == "explicit" else F.linear(x, weight)

    @classmethod
    def from_float(cls, linear: nn.Linear, **options: Any) -> "QuantLinear":
        """A layer with the weights of `linear`, copied; options as in the constructor."""
        options = {"bias": linear.bias is not None} | options
        return _with_weights(cls(linear.in_features, linear.out_features, **options), linear)


def _with_weights(layer: Layer, source: nn.Conv2d | nn.Linear) -> Layer:
    """`layer` with the weight and bias of `source`, and on its device. A bias with `bn` is left to `BatchNorm`."""
    layer.to(device=source.weight.device, dtype=source.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(source.weight)
        if layer.bias is not None and source.bias is not None:
            layer.bias.copy_(source.bias)
    layer.train(source.training)
    return layer


class PixelInput(nn.Module):
    """Raw pixels as codes: uint8 (N, C, H, W) -> QTensor with scale 2^-8, so that real values are in [0, 1)."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(PIXEL_SCALE), persistent=False)

    def forward(self, images: Tensor) -> QTensor:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ConfigError(
                f"PixelInput: {images.dtype} of shape {tuple(images.shape)}; allowed: torch.uint8 (N, C, H, W), pixels "
                "0..255 as they are, not normalized"
            )
        n, channels, height, width = images.shape
        if channels == 1:  # both memory formats describe the same bytes: from here on it is channels-last
            return QTensor(images.reshape(n, height, width, 1).permute(0, 3, 1, 2), self.scale)
        return QTensor(images.contiguous(memory_format=torch.channels_last), self.scale)


class QuantReLU(nn.Module):
    """max(x, 0) as unsigned codes: Tensor (N, ...) -> QTensor with one scale; at 32 bits the real values.

    bits: 1..8, or 32. quantizer, surrogate: keys of QUANTIZERS and SURROGATES. In evaluation the rounding is done in
    float64, so that a value one float32 ulp below a half is not rounded up.
    """

    def __init__(self, bits: int = 4, quantizer: str = "lsq", surrogate: str = "clipped") -> None:
        super().__init__()
        self.bits = bits
        self.quantizer = activation_quantizer(quantizer, bits, surrogate, rectify=True)

    def forward(self, x: Tensor | QTensor) -> QTensor:
        x = dequantize(x) if isinstance(x, QTensor) else x
        return QTensor(F.relu(x), None) if self.quantizer is None else _coded(self.quantizer, x)

    def values(self, x: Tensor | QTensor) -> Tensor:
        """What is quantized: max(x, 0)."""
        return F.relu(dequantize(x) if isinstance(x, QTensor) else x)


class QuantAvgPool2d(nn.Module):
    """The average over the whole map as unsigned codes: QTensor or Tensor (N, C, H, W) -> QTensor (N, C, 1, 1).

    The values must not be negative, as after a QuantReLU. bits: 1..8, or 32; quantizer, surrogate: as in QuantReLU.
    The average of b-bit codes needs more than b bits, hence a scale of its own and 8 bits by default.
    """

    def __init__(self, bits: int = 8, quantizer: str = "lsq", surrogate: str = "clipped") -> None:
        super().__init__()
        self.bits = bits
        self.quantizer = activation_quantizer(quantizer, bits, surrogate)

    def forward(self, x: Tensor | QTensor) -> QTensor:
        means = self.values(x)
        return QTensor(means, None) if self.quantizer is None else _coded(self.quantizer, means)

    def values(self, x: Tensor | QTensor) -> Tensor:
        """What is quantized: the averages; in evaluation of codes in float64, from an exact sum."""
        q = x if isinstance(x, QTensor) else QTensor(x, None)
        codes = widened(q.centered()) if self.training or q.scale is None else q.centered().double()
        means = codes.sum((2, 3), keepdim=True) / (codes.shape[2] * codes.shape[3])
        return means if q.scale is None else means * q.scale


def _coded(quantizer: Quantizer, x: Tensor) -> QTensor:
    if quantizer.training:
        training_codes: QTensor = quantizer(x)
        return training_codes
    q: QTensor = quantizer(x.double())
    return replace(q, codes=q.codes.to(x.dtype))


def _refuse(name: str, value: object, allowed: object) -> None:
    if value != allowed:
        raise ConfigError(f"{name}={value!r} with ops='explicit': allowed: {allowed!r}; use ops='torch' for others")


def set_compute_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Make every quantized layer of `model` multiply in `dtype` in training (None: in the dtype of its weights)."""
    for module in model.modules():
        if isinstance(module, WeightLayer):
            module.compute_dtype = dtype
        if isinstance(module, Quantizer):
            module.codes_dtype = dtype
