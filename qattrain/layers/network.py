"""LeNet, two convolutions and two fully connected layers, built from quantized layers; its presets and initializers.

    uint8 image -> conv1 5x5, pool 2 -> act1 -> conv2 5x5, pool 2 -> act2 -> fc1 -> act3 -> fc2 -> logits

Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", in the two-conv/two-FC form with
ReLU and max-pooling that became the usual MNIST example (20-50-500).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.config import ACTIVATION_LAYERS, WEIGHT_LAYERS, ModelConfig, QuantConfig, bits_by_layer
from qattrain.errors import ConfigError, pick
from qattrain.layers.quantized import QuantConv2d, QuantLinear, QuantReLU
from qattrain.quant import QUANTIZERS, QTensor, weight_quantizer_name

PRESETS: dict[str, tuple[int, int, int]] = {  # channels of conv1, channels of conv2, features of fc1
    "lenet": (20, 50, 500),
    "lenet-small": (16, 24, 32),
    "lenet-nano": (8, 16, 32),
}

INPUT_SCALE = 2.0**-8  # of the uint8 image


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


def plan_layers(quant: QuantConfig) -> LayerPlan:
    """Settle the bits of all seven layers from the quantizer's defaults and the exemptions given by name.

    Raises ConfigError if a quantizer does not allow the bits asked for.
    """
    bits = quant.bits if quant.bits is not None else pick(QUANTIZERS, quant.quantizer, "quantizer").default_bits
    act_bits = quant.act_bits if quant.act_bits is not None else bits
    settled = quant.model_copy(update={"bits": bits, "act_bits": act_bits})
    layer_bits = bits_by_layer(settled)
    weight_quantizer_name(quant.quantizer, bits)
    runs = [weight_quantizer_name(quant.quantizer, layer_bits[layer]) for layer in WEIGHT_LAYERS]
    return LayerPlan(settled, "+".join(dict.fromkeys(runs)), layer_bits)


class LeNet(nn.Module):
    """The network. uint8 images (N, 1, 28, 28) -> logits (N, classes), real values.

    widths: channels of conv1 and conv2, features of fc1. classes: 2 or more. plan: of all layers. dropout: share
    of fc1's outputs set to 0 in a training step (Srivastava et al. 2014, "Dropout").
    The last layer has one weight scale, so that its integer sums rank the classes as the logits do.
    """

    input_scale: Tensor

    def __init__(
        self, widths: tuple[int, int, int], classes: int, plan: LayerPlan, ops: str = "torch", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        quant, bits = plan.quant, plan.layer_bits
        common = {"quantizer": quant.quantizer, "surrogate": quant.surrogate}
        # Every layer gets codes from the one before it: none needs an input quantizer of its own (act_bits 32).
        weights: dict[str, Any] = common | {"act_bits": 32, "ops": ops}

        def own(layer: str) -> dict[str, Any]:
            is_pow2 = weight_quantizer_name(quant.quantizer, bits[layer]) == "pow2"
            return weights | {"bits": bits[layer], "fraction_bits": quant.n if is_pow2 else None}

        c1, c2, features = widths
        self.conv1 = QuantConv2d(1, c1, 5, pool=2, **own("conv1"))
        self.act1 = QuantReLU(bits["act1"], **common)
        self.conv2 = QuantConv2d(c1, c2, 5, pool=2, **own("conv2"))
        self.act2 = QuantReLU(bits["act2"], **common)
        self.fc1 = QuantLinear(c2 * 4 * 4, features, **own("fc1"))
        self.act3 = QuantReLU(bits["act3"], **common)
        self.fc2 = QuantLinear(features, classes, per_channel=False, **own("fc2"))
        self.register_buffer("input_scale", torch.tensor(INPUT_SCALE), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, 28, 28), images.shape
        # With one channel both memory formats describe the same bytes; from here on it stays channels-last.
        pixels = images.reshape(len(images), 28, 28, 1).permute(0, 3, 1, 2)
        x = QTensor(pixels, self.input_scale)
        x = self.act1(self.conv1(x))  # (N, c1, 12, 12)
        x = self.act2(self.conv2(x))  # (N, c2, 4, 4)
        x = self.act3(self.fc1(x.flatten(1)))  # (N, features)
        if self.dropout > 0:
            x = x._replace(codes=F.dropout(x.codes, self.dropout, self.training))
        logits: Tensor = self.fc2(x)
        return logits  # (N, classes)


@contextmanager
def watched_activations(model: LeNet) -> Iterator[dict[str, tuple[Tensor, QTensor]]]:
    """Within it, every call of `model` fills the dict: name of the activation -> (input of its ReLU, its output)."""
    seen: dict[str, tuple[Tensor, QTensor]] = {}

    def keep(name: str) -> Callable[[Any, Any, QTensor], None]:
        return lambda _module, inputs, output: seen.update({name: (inputs[0], output)})

    handles = [getattr(model, name).register_forward_hook(keep(name)) for name in ACTIVATION_LAYERS]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def weight_bytes(model: LeNet) -> int:
    """Bytes of all weight codes, packed without gaps layer by layer; 4 per weight at 32 bits. No biases, no scales."""
    layers = [getattr(model, name) for name in WEIGHT_LAYERS]
    return sum(math.ceil(layer.weight.numel() * layer.bits / 8) for layer in layers)


def build_model(model: ModelConfig, quant: QuantConfig, classes: int) -> LeNet:
    """A freshly initialized LeNet (random numbers from torch's global generator). Raises ConfigError."""
    widths = pick(PRESETS, model.name, "model", "; free widths: --set model.widths=[a,b,c]")
    initialize = pick(INITIALIZERS, model.init, "model.init =")
    plan = plan_layers(quant)
    if quant.n is not None and "pow2" not in plan.weight_quantizer:
        raise ConfigError(
            f"quant.n = {quant.n} with {plan.weight_quantizer} weights: only pow2 at 2 to 8 bits has an n"
        )
    net = LeNet(model.widths or widths, classes, plan, model.ops, model.dropout)
    net.apply(initialize)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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
    model.load_state_dict(own | taken)
