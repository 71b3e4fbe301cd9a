"""What a network takes on a core under QEMU, as exported C. Importing this needs no torch, calling it does.

Flash and time depend on the weights: where sums and multipliers are small enough, the C is shorter or faster. So an
untrained network gives an estimate, and only a trained one the real figures.
"""

import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qattrain.config import ModelConfig, QuantConfig
from qattrain.experiments.candidates import Budget, Costs
from qattrain.experiments.sweep import Images

if TYPE_CHECKING:
    from torch import nn

    from qattrain.integer import IntegerModel

LAYOUT = "packed"  # of the C that is measured: the smallest
CALIBRATION_IMAGES = 64  # of noise, from which a network that nobody trained gets its scales


def untrained(budget: Budget, images: Images, model: str, quant: QuantConfig, costs: Costs) -> Costs:
    """The costs with those of a chain on the budget's core, with random weights. Raises ExportError."""
    import torch

    from qattrain.integer.lowering import lower
    from qattrain.layers.network import build_model

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build_model(ModelConfig(name=model), quant, images.classes, images.shape).train()
        _spread(network)
        network(torch.randint(0, 256, (CALIBRATION_IMAGES, *images.shape), dtype=torch.uint8))
        return replace(costs, **_measured(budget, lower(network.eval(), images.shape)))


def _spread(network: "nn.Module") -> None:
    """Make the channels of an untrained network differ as those of a trained one do, roughly."""
    import torch

    for name, numbers in network.named_parameters():
        if "quantizer" in name:  # a scale, which follows from the first batch
            continue
        each = torch.randn(len(numbers), *[1] * (numbers.dim() - 1))
        if numbers.dim() > 1:
            numbers.add_(numbers.square().mean().sqrt() * each)
        elif name.endswith("bias"):
            numbers.add_(each)
        else:  # of a batch normalization
            numbers.mul_(each.exp())


def trained(budget: Budget, checkpoint: Path) -> dict[str, Any]:
    """flash_bytes and milliseconds of a trained network. Raises CheckpointError if it is broken, ExportError."""
    from qattrain.evaluation.networks import load_network

    return _measured(budget, load_network(checkpoint).integers(), always=True)


def _measured(budget: Budget, integers: "IntegerModel", always: bool = False) -> dict[str, Any]:
    """flash_bytes and, if the budget has a time, milliseconds of an integer network on the budget's core.

    No time is measured of what needs too much flash already, unless it is asked for: always. It is infinite if the
    machine has too little memory.
    """
    import numpy as np

    from qattrain.export.c_compile import footprint
    from qattrain.export.c_devices import DEVICES, broken, fits_machine, measure_device
    from qattrain.export.c_export import c_sources

    assert budget.core is not None
    device, files = DEVICES[budget.core], c_sources(integers, LAYOUT)
    try:
        needs = footprint(files, device.target)
    except (OSError, subprocess.SubprocessError) as error:
        raise broken(error, device) from None
    found: dict[str, Any] = {"flash_bytes": needs.flash_bytes, "milliseconds": None}
    is_small = budget.flash_bytes is None or needs.flash_bytes <= budget.flash_bytes
    if budget.milliseconds is not None and not fits_machine(needs, integers.input_shape, device):
        found["milliseconds"] = math.inf
    elif budget.milliseconds is not None and (is_small or always):
        noise = np.random.default_rng(0).integers(0, 256, (1, *integers.input_shape)).astype(np.uint8)
        cycles = measure_device(files, integers, noise, budget.core).profile.cycles_low
        found["milliseconds"] = cycles / budget.mhz / 1000
    return found
