"""The net as a user of Brevitas writes it: 4-bit weights and activations, every layer quantized, and the image.

Source: https://xilinx.github.io/brevitas/getting_started, the low-precision LeNet. To Brevitas' advantage pooling comes
before the activation, as in our net, and biases stay float. Its image quantizer learns a scale, so that gradients
must reach the image; how fast it is without one is measured too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.benchmark.contender import CLASSES, SEED, Ready, Workload
from qattrain.benchmark.ordinary import nesterov, resident_loop, train_step
from qattrain.errors import ConfigError
from qattrain.model import PRESETS

BITS = 4
IMAGE_BITS = 8


def brevitas_training(workload: Workload, tuned: bool, quantized_image: bool) -> dict[int, Ready]:
    """The plain loop on Brevitas' layers. tuned: with our memory format and our precision.

    Raises ConfigError where Brevitas is not installed.
    """
    torch.manual_seed(SEED)
    model = _net(quantized_image)
    optimizer = nesterov(model)
    bf16 = tuned and workload.precision == "bf16"
    if tuned:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(images: Tensor, labels: Tensor) -> None:
        if tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            train_step(model, optimizer, images, labels)

    return resident_loop(model, workload.training, step)


def _net(quantized_image: bool) -> nn.Module:
    try:
        import brevitas.nn as qnn
        from brevitas.inject.enum import ScalingImplType
        from brevitas.quant import Int8WeightPerChannelFloat
    except ImportError as error:
        raise ConfigError(
            f"brevitas: package {error.name or error} cannot be imported; it comes with: pip install 'qattrain[bench]'"
        ) from None
    weights: dict[str, Any] = {
        "weight_bit_width": BITS,
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
    }
    c1, c2, features = PRESETS["lenet"]

    class BrevitasLeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = qnn.QuantIdentity(bit_width=IMAGE_BITS) if quantized_image else nn.Identity()
            self.conv1 = qnn.QuantConv2d(1, c1, 5, bias=True, **weights)
            self.act1 = qnn.QuantReLU(bit_width=BITS)
            self.conv2 = qnn.QuantConv2d(c1, c2, 5, bias=True, **weights)
            self.act2 = qnn.QuantReLU(bit_width=BITS)
            self.fc1 = qnn.QuantLinear(c2 * 4 * 4, features, bias=True, **weights)
            self.act3 = qnn.QuantReLU(bit_width=BITS)
            self.fc2 = qnn.QuantLinear(features, CLASSES, bias=True, **weights)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act1(F.max_pool2d(self.conv1(self.image(x)), 2))
            x = self.act2(F.max_pool2d(self.conv2(x), 2))
            logits: Tensor = self.fc2(self.act3(self.fc1(x.flatten(1))))
            return logits

    return BrevitasLeNet()
