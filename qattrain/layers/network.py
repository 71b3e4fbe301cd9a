"""Networks from a chain of layers: how their weights are initialized, how many bits each layer has, how they are built.

A network is an `nn.Sequential` with named layers: `pixels`, then for each product its layer (conv1), its batch
normalization and pooling if it has them (conv1_bn, conv1_pool), and its ReLU (act1). A pooling without batch
normalization is part of its convolution, which takes the maximum of the sums.

Source of the default, LeNet: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", in the
two-conv/two-FC form with ReLU and max-pooling that became the usual MNIST example (20-50-500).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qattrain.config import ModelConfig, QuantConfig, bits_by_layer
from qattrain.config.chain import MNIST_SHAPE, PlacedLayer, Shape
from qattrain.errors import ConfigError, pick
from qattrain.layers.batchnorm import BatchNorm
from qattrain.layers.quantized import (
    PixelInput,
    QuantAvgPool2d,
    QuantConv2d,
    QuantLinear,
    QuantReLU,
    WeightLayer,
)
from qattrain.quant import QUANTIZERS, QTensor, weight_quantizer_name


def kaiming(module: nn.Module) -> None:
    """Weights uniform with variance 2 / fan_in, biases 0. For `net.apply`.

    Source: He et al. 2015, "Delving Deep into Rectifiers".
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier(module: nn.Module) -> None:
    """Weights uniform with variance 2 / (fan_in + fan_out), biases 0. For `net.apply`.

    Source: Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


INITIALIZERS: dict[str, Callable[[nn.Module], None]] = {"kaiming": kaiming, "xavier": xavier}


@dataclass(frozen=True)
class LayerPlan:
    """How every layer is quantized: the settings with their bits settled, and what follows from them.

    weight_quantizer: the one the weights use, or several joined by "+". layer_bits: by the layer's name.
    """

    quant: QuantConfig
    weight_quantizer: str
    layer_bits: dict[str, int]


def plan_layers(model: ModelConfig, quant: QuantConfig) -> LayerPlan:
    """Settle the bits of all layers from the quantizer's defaults and the exemptions given by name.

    Raises ConfigError if a quantizer does not allow the bits asked for, or if there is no layer of that name.
    """
    bits = quant.bits if quant.bits is not None else pick(QUANTIZERS, quant.quantizer, "quantizer").default_bits
    act_bits = quant.act_bits if quant.act_bits is not None else bits
    settled = quant.model_copy(update={"bits": bits, "act_bits": act_bits})
    chain = model.chain
    layer_bits = bits_by_layer(settled, chain)
    weight_quantizer_name(quant.quantizer, bits)
    runs = [weight_quantizer_name(quant.quantizer, layer_bits[layer]) for layer in chain.weight_layers]
    return LayerPlan(settled, "+".join(dict.fromkeys(runs)), layer_bits)


def build_model(
    model: ModelConfig, quant: QuantConfig, classes: int, input_shape: Shape = MNIST_SHAPE
) -> nn.Sequential:
    """A freshly initialized network (random numbers from torch's global generator): uint8 (N, C, H, W) -> (N, classes).

    input_shape: (C, H, W) of its images. The last layer has one weight scale, so that its integer sums rank the classes
    as the logits do. Raises ConfigError, also if the images are too small for the chain.
    """
    initialize = pick(INITIALIZERS, model.init, "model.init =")
    plan = plan_layers(model, quant)
    if quant.n is not None and "pow2" not in plan.weight_quantizer:
        raise ConfigError(
            f"quant.n = {quant.n} with {plan.weight_quantizer} weights: only pow2 at 2 to 8 bits has an n"
        )
    modules: OrderedDict[str, nn.Module] = OrderedDict(pixels=PixelInput())
    for placed in model.chain.place(input_shape, classes):
        if placed.layer.kind == "fc" and "flatten" not in modules:
            modules["flatten"] = nn.Flatten()
        if placed.layer.activation is None and model.dropout > 0:
            modules["dropout"] = nn.Dropout(model.dropout)
        modules.update(_modules(placed, plan, model.ops))
    net = nn.Sequential(modules)
    net.apply(initialize)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _modules(placed: PlacedLayer, plan: LayerPlan, ops: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of one layer, with their names."""
    layer, quant, bits = placed.layer, plan.quant, plan.layer_bits
    common: dict[str, Any] = {"quantizer": quant.quantizer, "surrogate": quant.surrogate}
    if layer.kind == "avg":
        yield layer.name, QuantAvgPool2d(bits[layer.name], **common)
        return
    is_pow2 = weight_quantizer_name(quant.quantizer, bits[layer.name]) == "pow2"
    # Every layer gets codes from the one before it: none needs an input quantizer of its own (act_bits 32).
    options = common | {"bits": bits[layer.name], "act_bits": 32, "ops": ops, "bn": layer.bn}
    options["fraction_bits"] = quant.n if is_pow2 else None
    if layer.kind == "fc":
        outputs, inputs = placed.weight_shape
        yield layer.name, QuantLinear(inputs, outputs, per_channel=layer.activation is not None, **options)
    else:
        groups = placed.inputs[0] // placed.weight_shape[1]
        geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": groups}
        pool = 1 if layer.bn else layer.pool
        outputs = placed.weight_shape[0]
        yield layer.name, QuantConv2d(placed.inputs[0], outputs, layer.kernel, pool=pool, **geometry, **options)
    if layer.bn:
        yield f"{layer.name}_bn", BatchNorm(outputs)
        if layer.pool > 1:
            yield f"{layer.name}_pool", nn.MaxPool2d(layer.pool)
    if layer.activation is not None:
        yield layer.activation, QuantReLU(bits[layer.activation], **common)


Activation = QuantReLU | QuantAvgPool2d


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """All layers with weights, by name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}


def activation_layers(model: nn.Module) -> dict[str, Activation]:
    """All layers that give activation codes, by name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Activation)}


@contextmanager
def watched_activations(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, QTensor]]]:
    """Within it, every call of `model` fills the dict: name of the activation -> (values it quantizes, its output)."""
    seen: dict[str, tuple[Tensor, QTensor]] = {}

    def keep(name: str) -> Callable[[Any, Any, QTensor], None]:
        return lambda module, inputs, output: seen.update({name: (module.values(inputs[0]), output)})

    handles = [module.register_forward_hook(keep(name)) for name, module in activation_layers(model).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def packed_bytes(weights: int, bits: int) -> int:
    """Bytes of so many codes without gaps between them."""
    return math.ceil(weights * bits / 8)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weight codes, packed without gaps layer by layer; 4 per weight at 32 bits. No biases, no scales."""
    return sum(packed_bytes(layer.weight.numel(), layer.bits) for layer in weight_layers(model).values())


def copy_weights(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Weights and biases of a state dict into `model`; its quantizers keep their own state. source: named in errors.

    Raises ConfigError if the shapes differ.
    """
    own = model.state_dict()
    taken = {key: tensor for key, tensor in weights.items() if "quantizer." not in key}
    for key, tensor in taken.items():
        if key not in own or own[key].shape != tensor.shape:
            mine = tuple(own[key].shape) if key in own else None
            raise ConfigError(
                f"--init {source}: its {key} has shape {tuple(tensor.shape)}, this model's {mine}; "
                "choose the same --model and dataset"
            )
    missing = [key for key in own if "quantizer." not in key and key not in taken]
    if missing:
        raise ConfigError(f"--init {source}: it has no {missing[0]}; choose the same --model and dataset")
    model.load_state_dict(own | taken)
