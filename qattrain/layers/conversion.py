"""quantize_model() turns a float `nn.Sequential` into the same network of quantized layers, with the same weights."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from qattrain.config import AVERAGE_BITS, FLOAT_BITS
from qattrain.errors import ConfigError
from qattrain.layers.batchnorm import BatchNorm
from qattrain.layers.quantized import PixelInput, QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU

KEPT = (nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
PIXELS = "pixels"  # name of the first layer
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
ALLOWED = "Conv2d, Linear, ReLU, BatchNorm2d, MaxPool2d, AdaptiveAvgPool2d(1), Flatten, Dropout"


def quantize_model(
    net: nn.Sequential,
    bits: int = 4,
    act_bits: int | None = None,
    quantizer: str = "lsq",
    surrogate: str = "clipped",
) -> nn.Sequential:
    """A quantized copy of a float `net`, ready to be trained on uint8 images and to be lowered; `net` stays as it is.

    Conv2d, Linear, BatchNorm2d, BatchNorm1d, ReLU and AdaptiveAvgPool2d(1) become our layers, in nested Sequentials
    too; MaxPool2d, Flatten, Dropout and Identity are copied. Names stay, so a state dict of `net` can be loaded into
    the result, unless a layer before a batch normalization has a bias, which is moved into its running mean; only
    `pixels`, a PixelInput, comes first. It gives the network pixels / 256: train `net` on that.
    bits: of the weights; act_bits: of the activations (as `bits` if None; averages have 8). quantizer, surrogate: keys
    of QUANTIZERS and SURROGATES. Raises ConfigError, naming the module, for any other.
    """
    act_bits = bits if act_bits is None else act_bits
    common: dict[str, Any] = {"quantizer": quantizer, "surrogate": surrogate}
    weights = common | {"bits": bits, "act_bits": FLOAT_BITS}  # every layer gets codes: none has an input quantizer
    flat = list(leaves(net))
    if not flat:
        raise ConfigError(f"quantize_model: {type(net).__name__} has no layers; allowed: an nn.Sequential of {ALLOWED}")
    if PIXELS in net._modules:
        raise ConfigError(f"quantize_model: a layer is called {PIXELS!r}, the name of the PixelInput; rename it")
    last = max((i for i, (_, module) in enumerate(flat) if isinstance(module, nn.Linear)), default=-1)
    new: dict[str, nn.Module] = {}
    shared: dict[int, nn.Module] = {}  # a layer with weights that is used in several places stays one layer
    for i, (path, module) in enumerate(flat):
        if id(module) in shared:
            new[path] = shared[id(module)]
            continue
        has_norm = i + 1 < len(flat) and isinstance(flat[i + 1][1], NORMS)
        norm: dict[str, Any] = {"bn": True, "bias": False} if has_norm else {}
        before = flat[i - 1][1] if i else None
        if type(module) is nn.Conv2d:
            new[path] = QuantConv2d.from_float(module, **weights, **norm)
        elif type(module) is nn.Linear:
            new[path] = QuantLinear.from_float(module, **weights, **norm, per_channel=i != last)
        elif isinstance(module, NORMS) and isinstance(before, nn.Conv2d | nn.Linear):
            new[path] = BatchNorm.from_float(module, before.bias)
        elif type(module) is nn.ReLU:
            new[path] = QuantReLU(act_bits, **common)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            new[path] = QuantAvgPool2d(FLOAT_BITS if act_bits == FLOAT_BITS else AVERAGE_BITS, **common)
        elif type(module) in KEPT:
            new[path] = copy.deepcopy(module)
        else:
            where = "; it must come directly after Conv2d or Linear" if isinstance(module, NORMS) else ""
            raise ConfigError(f"quantize_model: '{path}' is a {module}; allowed: {ALLOWED}{where}")
        if any(True for _ in module.parameters()):
            shared[id(module)] = new[path]
    result = _rebuilt(net, new, "")
    layers = [(PIXELS, PixelInput()), *_children(result)]
    device = next((p.device for p in net.parameters()), "cpu")
    return nn.Sequential(OrderedDict(layers)).to(device).train(net.training)


def runs_in_order(net: nn.Module) -> bool:
    """Whether it is an nn.Sequential, and no subclass that computes something else than its layers in turn."""
    return isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward


def leaves(net: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module that is no nn.Sequential, in the order in which they run, with its path such as `2.conv`."""
    for name, module in _children(net) if runs_in_order(net) else ():
        if runs_in_order(module):
            yield from leaves(module, f"{path}{name}.")
        else:
            yield f"{path}{name}", module


def _rebuilt(net: nn.Module, new: dict[str, nn.Module], path: str) -> nn.Sequential:
    children = [
        (name, _rebuilt(m, new, f"{path}{name}.") if runs_in_order(m) else new[f"{path}{name}"])
        for name, m in _children(net)
    ]
    return nn.Sequential(OrderedDict(children))


def _children(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(net._modules.items())  # type: ignore[arg-type]  # named_children leaves out repeated modules
