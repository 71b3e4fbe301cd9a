"""lower() turns a trained network into an IntegerModel. The only file of this package that needs torch.

M = s_x s_w[c] / s_y in float64,  m = round(M 2^k) < 2^31 with k the largest in 1..62

With a batch normalization, its S takes the place of s_x s_w. An average over n pixels has M = s_x / (n s_y), and its m
is rounded up.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from qattrain.config.chain import MNIST_SHAPE, Shape
from qattrain.errors import ConfigError, ExportError
from qattrain.integer import INT32_MAX, AverageLayer, IntegerLayer, IntegerModel, Requantization
from qattrain.layers import BatchNorm, PixelInput, QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU
from qattrain.layers.conversion import leaves, runs_in_order
from qattrain.layers.quantized import PIXEL_SCALE, joint_scale
from qattrain.quant import Quantizer
from qattrain.quant.base import InitializedQuantizer
from qattrain.quant.kernels import bias_codes

PIXEL_MAX = 255
OWN_NAME = re.compile(r"(conv|dw|fc|avg)\d+")  # as in a chain
IGNORED = (nn.Dropout, nn.Identity)  # nothing in evaluation
TAKEN = "PixelInput, QuantConv2d, QuantLinear, BatchNorm, QuantReLU, QuantAvgPool2d, MaxPool2d, Flatten, Dropout"


def multiplier_and_shift(factor: float, up: bool = False) -> tuple[int, int]:
    """(m, k) with m / 2^k nearest to `factor` > 0, 0 <= m < 2^31, 1 <= k <= 62; m = 0 below 2^-62.

    A power of two of at least 1 becomes (2 factor, 1), an exact shift. up: m is rounded up instead of to the nearest.
    Raises ExportError from 2^30 up.
    """
    if factor < 2.0**-62:
        return 0, 62
    if factor >= 2.0**30:
        raise ExportError(f"multiplier {factor:g}: its scales are too far apart; allowed: below 2^30; train it again")
    mantissa, exponent = math.frexp(factor)
    if mantissa == 0.5 and factor >= 1:
        return int(2 * factor), 1
    shift = min(31 - exponent, 62)
    exact = math.ldexp(factor, shift)
    multiplier = math.ceil(exact) if up else math.floor(exact + 0.5)
    return (multiplier, shift) if multiplier < 2**31 else (multiplier // 2, shift - 1)


@torch.no_grad()
def lower(net: nn.Module, input_shape: Shape = MNIST_SHAPE) -> IntegerModel:
    """The integers of a trained network, on the CPU; `net` is put into evaluation mode.

    net: an nn.Sequential of PixelInput, then layers of ours; nn.MaxPool2d with stride = kernel after a convolution,
    nn.Flatten before the first QuantLinear, nn.Dropout anywhere. An nn.BatchNorm2d directly after QuantConv2d is
    converted. input_shape: (C, H, W) of its images. The last layer must be a QuantLinear with per_channel=False.
    Raises ExportError, naming the module, for anything else, for float layers, and where sums could leave int32.
    """
    if not runs_in_order(net):
        raise ExportError(
            f"{type(net).__name__} is no nn.Sequential, or has a forward of its own: only chains of layers have an "
            "integer form"
        )
    net.eval()
    builder = _Builder(input_shape)
    for path, module in leaves(net):
        builder.path = f"'{path}' ({type(module).__name__})"
        builder.take(module, path)
    return builder.finished()


@dataclass
class _Open:
    """A product whose activation has not come yet. scales: float64 (C,) or (1,), of its sums, bias included."""

    path: str
    module: QuantConv2d | QuantLinear
    layer: IntegerLayer
    joint: Tensor  # s_x s_w, float32
    scales: Tensor
    is_normalized: bool = False


@dataclass
class _Builder:
    """Takes a network module by module. scale, largest: of the codes that the next layer gets; None before pixels."""

    input_shape: Shape
    path: str = ""
    layers: list[IntegerLayer | AverageLayer] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the modules, as the layers
    open: _Open | None = None
    scale: Tensor | None = None
    largest: int = PIXEL_MAX
    shape: Shape = (0, 0, 0)
    is_flat: bool = False
    unknown: ExportError | None = None  # a scale; raised at the end, because what cannot be lowered at all comes first

    def fail(self, problem: str) -> ExportError:
        return ExportError(f"{self.path}: {problem}")

    def take(self, module: nn.Module, name: str) -> None:
        """Raises ExportError if `module` cannot stand here."""
        if isinstance(module, IGNORED):
            return
        if self.scale is None and not isinstance(module, PixelInput):
            raise self.fail("a network starts with PixelInput(), which gives the codes of uint8 images")
        match module:
            case PixelInput():
                self._take_pixels()
            case QuantConv2d() | QuantLinear():
                self._take_product(module, name)
            case BatchNorm() | nn.BatchNorm2d() | nn.BatchNorm1d():
                self._take_norm(module)
            case nn.MaxPool2d():
                self._take_pool(module)
            case QuantReLU():
                self._take_relu(module)
            case QuantAvgPool2d():
                self._take_average(module, name)
            case nn.Flatten():
                self._take_flatten(module)
            case _:
                instead = {nn.ReLU: "; use QuantReLU", nn.AdaptiveAvgPool2d: "; use QuantAvgPool2d"}
                raise self.fail(f"it has no integer form; allowed: {TAKEN}{instead.get(type(module), '')}")

    def _take_pixels(self) -> None:
        if self.scale is not None:
            raise self.fail("pixels come first, and only once")
        self.scale, self.shape = torch.tensor(PIXEL_SCALE), self.input_shape

    def _take_flatten(self, module: nn.Flatten) -> None:
        if (module.start_dim, module.end_dim) not in ((1, -1), (1, 3)):
            raise self.fail(f"start_dim={module.start_dim}, end_dim={module.end_dim}; allowed: 1 and -1")
        if self.open is not None:
            raise self.fail("put it after the QuantReLU")
        self.is_flat = True

    def _take_product(self, module: QuantConv2d | QuantLinear, name: str) -> None:
        if self.open is not None:
            raise self.fail(
                "it gets real values and would quantize them with a quantizer of its own; put a QuantReLU before it"
            )
        kind = "linear" if isinstance(module, QuantLinear) else "conv"
        if (kind == "linear") != self.is_flat:
            raise self.fail("it needs a map of pixels, not flattened" if self.is_flat else "put nn.Flatten before it")
        weight = module.quantized_weight()
        if weight.scale is None or module.weight_quantizer is None:
            raise self.fail("32 bits: a float layer has no integer form; train it with 1 to 8 bits")
        assert self.scale is not None
        joint = joint_scale(self.scale.to(weight.scale), weight.scale)
        assert joint is not None
        self._require_positive(joint, "the scale of its sums")
        scales = self.scale.double().cpu() * weight.scale.double().flatten().cpu()  # (C,) or (1,)
        bias = torch.zeros(len(module.weight)) if module.bias is None else bias_codes(module.bias, joint)
        layer = IntegerLayer(
            "",
            kind,  # type: ignore[arg-type]
            _integers(weight.codes),
            module.bits,
            module.weight_quantizer.name,
            module.weight_quantizer.qmin,
            int(weight.zero_point),
            _integers(bias),
            self.largest,
            None,
        )
        if isinstance(module, QuantConv2d):
            stride, padding = self._geometry(module)
            layer = replace(layer, stride=stride, padding=padding, groups=module.groups, pool=module.pool)
        self.open = _Open(self.path, module, layer, joint, scales)
        self.names.append(name)

    def _geometry(self, conv: QuantConv2d) -> tuple[tuple[int, int], tuple[int, int]]:
        if conv.dilation != (1, 1) or conv.padding_mode != "zeros":
            raise self.fail(f"dilation={conv.dilation}, padding_mode={conv.padding_mode!r}; allowed: 1 and 'zeros'")
        padding = conv.padding
        if isinstance(padding, str):
            if padding == "same" and any(side % 2 == 0 for side in conv.kernel_size):
                raise self.fail("padding='same' with an even kernel pads two sides differently; give numbers")
            padding = tuple(side // 2 if padding == "same" else 0 for side in conv.kernel_size)
        (down, right), (rows, columns) = conv.stride, padding
        return (down, right), (rows, columns)

    def _take_norm(self, module: BatchNorm | nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        if self.open is None or self.open.layer.pool > 1 or self.open.is_normalized:
            raise self.fail("batch normalization comes directly after QuantConv2d or QuantLinear")
        is_ours = isinstance(module, BatchNorm)
        if is_ours != self.open.module.bn:
            wanted = "bn=True" if is_ours else "bn=False, or use qattrain's BatchNorm here"
            raise self.fail(f"it would not get what it takes; give the layer before it {wanted}")
        bias = None
        if not isinstance(module, BatchNorm):
            if self.open.module.bias is not None:
                bias = self.open.module.bias
            try:
                module = BatchNorm.from_float(module, bias)
            except ConfigError as error:
                raise self.fail(str(error)) from None
        scales, codes = module.folded(self.open.joint)
        self._require_positive(scales, "the scale of its outputs")
        self.open.scales, self.open.is_normalized = scales.cpu(), True
        self.open.layer = replace(self.open.layer, bias=_integers(codes))

    def _take_pool(self, module: nn.MaxPool2d) -> None:
        side = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
        plain = (module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices)
        squares = (side, (side, side))
        if module.kernel_size not in squares or plain[0] not in squares or plain[1:] not in _PLAIN_POOLS:
            raise self.fail(f"{module}; allowed: a square kernel, stride = kernel, no padding, dilation or ceil_mode")
        if self.open is not None:
            self._require_conv(self.open.layer)
            self.open.layer = replace(self.open.layer, pool=self.open.layer.pool * side)
            return
        before = self.layers[-1] if self.layers else None
        if before is None or self.is_flat:
            raise self.fail("max-pooling comes after a convolution")
        self._require_conv(before)
        assert isinstance(before, IntegerLayer)
        self.layers[-1] = replace(before, pool=before.pool * side)
        self.shape = (self.shape[0], self.shape[1] // side, self.shape[2] // side)
        if min(self.shape) < 1:
            raise self.fail("its windows are larger than the map")

    def _require_conv(self, layer: IntegerLayer | AverageLayer) -> None:
        if layer.kind != "conv":
            raise self.fail("max-pooling comes after a convolution")

    def _take_relu(self, module: QuantReLU) -> None:
        if self.open is None:
            raise self.fail("a QuantReLU comes after QuantConv2d or QuantLinear")
        scale = self._scale_of(module.quantizer)
        pairs = [multiplier_and_shift(factor) for factor in (self.open.scales / scale.double()).tolist()]
        pairs = pairs * (len(self.open.module.weight) // len(pairs))
        multipliers, shifts = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
        requantization = Requantization(multipliers, shifts, module.bits)
        self._close(replace(self.open.layer, requantization=requantization))
        self.scale, self.largest, self.open = scale, requantization.qmax, None

    def _take_average(self, module: QuantAvgPool2d, name: str) -> None:
        if self.open is not None or self.is_flat:
            raise self.fail("an average comes after a QuantReLU, before nn.Flatten")
        assert self.scale is not None
        scale, pixels = self._scale_of(module.quantizer), self.shape[1] * self.shape[2]
        factor = self.scale.double().item() / pixels / scale.double().item()
        multiplier, shift = (np.array([number], np.int64) for number in multiplier_and_shift(factor, up=True))
        requantization = Requantization(multiplier, shift, module.bits)
        self.names.append(name)
        self._close(AverageLayer("", pixels, self.largest, requantization))
        self.scale, self.largest = scale, requantization.qmax

    def _scale_of(self, quantizer: Quantizer | None) -> Tensor:
        if quantizer is None:
            raise self.fail("32 bits: it has no integer form; train it with 1 to 8 bits")
        if isinstance(quantizer, InitializedQuantizer) and not bool(quantizer.initialized):
            self.unknown = self.unknown or self.fail(
                "its scale is not known yet; train the network, or run it on some images, first"
            )
            return torch.tensor(1.0)
        device = next((p.device for p in (*quantizer.parameters(), *quantizer.buffers())), torch.device("cpu"))
        scale: Tensor = quantizer(torch.zeros(1, device=device)).scale
        self._require_positive(scale, "its scale")
        return scale.cpu()

    def _require_positive(self, scale: Tensor, what: str) -> None:
        """Raises ExportError for a scale that is not a positive number."""
        wrong = scale[~((scale > 0) & torch.isfinite(scale))]
        if len(wrong):
            raise self.fail(f"{what} is {float(wrong[0]):g}; allowed: positive numbers; train it again")

    def _close(self, layer: IntegerLayer | AverageLayer) -> None:
        """Adds a layer that is complete; errors name the product, not the module that completed it."""
        self.path = self.path if self.open is None else self.open.path
        try:
            self.shape = replace(layer, name="it").output_shape(self.shape)
        except ValueError as error:
            raise self.fail(f"it does not fit images of {'x'.join(map(str, self.input_shape))}: {error}") from None
        if layer.accumulator_bound > INT32_MAX:
            raise self.fail(f"an accumulator could reach {layer.accumulator_bound}, beyond int32")
        self.layers.append(layer)

    def finished(self) -> IntegerModel:
        """Raises ExportError if the network does not end in logits."""
        if self.open is None or self.open.layer.kind != "linear":
            raise ExportError("the network does not end in a QuantLinear, whose sums are the logits")
        if self.open.is_normalized:
            raise self.fail("no batch normalization after the last layer: its sums are the logits")
        if len(self.open.scales) > 1:
            raise self.fail("the last layer needs one scale, so that its sums rank the classes: per_channel=False")
        self._close(self.open.layer)
        if self.unknown is not None:
            raise self.unknown
        own = all(OWN_NAME.fullmatch(name) for name in self.names) and len(set(self.names)) == len(self.names)
        names = self.names if own else _counted(self.layers)
        layers = tuple(replace(layer, name=name) for layer, name in zip(self.layers, names, strict=True))
        return IntegerModel(layers, self.open.scales.item(), self.input_shape)


_PLAIN_POOLS = [(padding, dilation, False, False) for padding in (0, (0, 0)) for dilation in (1, (1, 1))]


def _counted(layers: list[IntegerLayer | AverageLayer]) -> list[str]:
    """Names by kind: conv1, conv2, fc1, avg1."""
    names: Counter[str] = Counter()
    result = []
    for layer in layers:
        kind = {"conv": "conv", "linear": "fc", "average": "avg"}[layer.kind]
        names[kind] += 1
        result.append(f"{kind}{names[kind]}")
    return result


def _integers(codes: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return codes.contiguous().cpu().numpy().astype(np.int64)
