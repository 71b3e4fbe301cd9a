"""Random chains: every option of the grammar, odd image sizes, every quantizer and width. Deterministic by seed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import Shape, parse_chain
from qattrain.errors import ConfigError
from qattrain.layers import BatchNorm
from qattrain.layers.network import build_model
from qattrain.quant import QUANTIZERS

MOST_MACS = 1_500_000  # of one image, so that hundreds of chains can be tried
STEPS = 3  # of training, so that no scale or statistic is an initial one


@dataclass(frozen=True)
class Case:
    """A network to be built. shape: (C, H, W)."""

    model: ModelConfig
    quant: QuantConfig
    shape: Shape
    classes: int

    def __str__(self) -> str:
        bits = self.quant.model_dump(exclude_defaults=True)
        return f"{self.model.name} on {'x'.join(map(str, self.shape))}, {self.classes} classes, {bits}"


def random_case(seed: int, quantizer: str | None = None) -> Case:
    """The chain of that seed, with a random quantizer unless one is given."""
    rng = np.random.default_rng(seed)
    while True:
        shape = (int(rng.integers(1, 5)), int(rng.integers(5, 34)), int(rng.integers(5, 34)))
        classes, line = int(rng.integers(2, 12)), _line(rng, shape[0])
        try:
            placed = parse_chain(line).place(shape, classes)
        except ConfigError:  # too small an image, or groups that do not fit
            continue
        if sum(layer.macs for layer in placed) <= MOST_MACS:
            return Case(ModelConfig(name=line), _quant(rng, line, quantizer), shape, classes)


def _line(rng: np.random.Generator, channels: int) -> str:
    parts: list[str] = []
    count = int(rng.integers(0, 8))
    dense = int(rng.integers(0, min(count, 2) + 1))
    for _ in range(count - dense):
        kind = rng.choice(["conv", "conv", "dw", "avgpool"] if parts else ["conv", "conv", "dw"])
        if kind == "avgpool":
            parts.append("avgpool")
            continue
        kernel = int(rng.integers(1, 6))
        options = [f"stride {rng.integers(1, 4)}"] if rng.random() < 0.4 else []
        options += [f"pad {rng.integers(0, kernel)}"] if rng.random() < 0.5 else []
        options += ["bn"] if rng.random() < 0.4 else []
        if kind == "conv":
            width = int(rng.integers(1, 13))
            groups = [g for g in range(1, 13) if channels % g == 0 and width % g == 0]
            options += [f"groups {rng.choice(groups)}"] if rng.random() < 0.5 else []
            channels = width
        rng.shuffle(options)
        parts.append(" ".join([kind, *([str(channels)] if kind == "conv" else []), f"{kernel}x{kernel}", *options]))
        if rng.random() < 0.4:
            parts.append(f"pool {rng.integers(2, 4)}")
    if parts and not parts[-1].startswith("avgpool") and rng.random() < 0.4:
        parts.append("avgpool")
    parts += [f"fc {rng.integers(1, 40)}{' bn' if rng.random() < 0.3 else ''}" for _ in range(dense)]
    return ", ".join([*parts, "fc"])


def _quant(rng: np.random.Generator, line: str, quantizer: str | None) -> QuantConfig:
    name = quantizer or str(rng.choice(list(QUANTIZERS)))
    allowed = sorted({*QUANTIZERS[QUANTIZERS[name].weights or name].weight_bits, *([] if name == "ternary" else [1])})
    chain = parse_chain(line)
    others = {layer: int(rng.choice(allowed)) for layer in chain.weight_layers if rng.random() < 0.3}
    others |= {layer: int(rng.integers(1, 9)) for layer in chain.activation_layers if rng.random() < 0.3}
    return QuantConfig(
        quantizer=name, bits=int(rng.choice(allowed)), act_bits=int(rng.integers(1, 9)), layer_bits=others
    )


def trained(case: Case, seed: int = 0) -> nn.Sequential:
    """The network, trained for a few steps on noise, with batch normalizations unlike initial ones; in eval mode."""
    torch.manual_seed(seed)
    net = build_model(case.model, case.quant, case.classes, case.shape)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, -2.0, 2.0)
            nn.init.normal_(module.bias)
    images, labels = noise(case, 32, seed), torch.randint(0, case.classes, (32,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def noise(case: Case, count: int, seed: int = 0) -> torch.Tensor:
    """Images: bytes at random, every other one only of extremes, the first two all 0 and all 255."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *case.shape), dtype=torch.uint8, generator=generator)
    images[::2] = torch.where(images[::2] < 128, 0, 255).to(torch.uint8)
    images[0], images[1] = 0, 255
    return images
