"""Learning-rate schedules, optimizers and their defaults, and which parameters decay and learn at which rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qattrain.config import TrainConfig
from qattrain.errors import pick
from qattrain.layers import BatchNorm
from qattrain.layers.network import LayerPlan
from qattrain.quant import Quantizer

SMALL_SET = 10_000  # training images below which `auto` takes the smaller batch
AUTO_BATCH, AUTO_BATCH_SMALL = 128, 32

Schedule = Callable[[int, int, float], float]  # (step from 0, steps of the run, warm-up share) -> factor on the rate


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Cosine from 1/25 up to 1 over the warm-up, then cosine down to 1/250,000 at the last step.

    Source: Smith, Topin 2018, "Super-Convergence"; equal to `torch.optim.lr_scheduler.OneCycleLR` at every step.
    """
    peak, last = warmup * steps - 1, steps - 1
    if peak > 0 and step <= peak:
        return _cosine(1 / 25, 1.0, step / peak)
    return _cosine(1.0, 1 / 250_000, (step - peak) / (last - peak))


def cosine(step: int, steps: int, warmup: float) -> float:
    """Linear up to 1 over the warm-up, times cosine from 1 to 0 over the run.

    Source: Loshchilov, Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
    """
    return constant(step, steps, warmup) * _cosine(1.0, 0.0, step / steps)


def constant(step: int, steps: int, warmup: float) -> float:
    """1, after a linear warm-up."""
    return min(1.0, (step + 1) / max(warmup * steps, 1.0))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Schedule] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


def sgd(groups: list[dict[str, Any]], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum."""
    momentum = config.momentum
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)


def adamw(groups: list[dict[str, Any]], lr: float, config: TrainConfig) -> torch.optim.Optimizer:  # noqa: ARG001
    """AdamW. Source: Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization"."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


@dataclass(frozen=True)
class OptimizerChoice:
    """How to build an optimizer, what it keeps for each parameter after its first step, and its defaults for `auto`."""

    build: Callable[[list[dict[str, Any]], float, TrainConfig], torch.optim.Optimizer]
    keeps: tuple[str, ...]  # tensors of the parameter's shape; "step" counts its steps
    lr: float
    one_bit_lr: float  # if any weights have one bit: otherwise SGD flips too many signs, AdamW too few
    weight_decay: float


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "sgd": OptimizerChoice(sgd, ("momentum_buffer",), lr=0.05, one_bit_lr=0.04, weight_decay=1e-4),
    "adamw": OptimizerChoice(adamw, ("step", "exp_avg", "exp_avg_sq"), lr=2e-3, one_bit_lr=4e-3, weight_decay=1e-2),
}


def settle_training(config: TrainConfig, plan: LayerPlan, images: int) -> TrainConfig:
    """`config` with every `auto` batch size, learning rate and weight decay settled. Raises ConfigError.

    images: number of training images. The learning rate differs if any weights have one bit.
    """
    optimizer = pick(OPTIMIZERS, config.optimizer, "train.optimizer =")
    settled = {
        "batch_size": AUTO_BATCH if images >= SMALL_SET else AUTO_BATCH_SMALL,
        "lr": optimizer.one_bit_lr if "binary" in plan.weight_quantizer else optimizer.lr,
        "weight_decay": optimizer.weight_decay,
    }
    return config.model_copy(update={key: value for key, value in settled.items() if getattr(config, key) == "auto"})


def check_state(state: dict[int, Any], optimizer: torch.optim.Optimizer, keeps: tuple[str, ...], began: bool) -> None:
    """Raises ValueError unless `state`, of a state dict, is what such an optimizer keeps; torch does not look.

    keeps: as in OPTIMIZERS. began: whether it has taken a step.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if optimizer.param_groups[0].get("momentum") == 0:  # then SGD keeps nothing
        keeps = ()
    expected = range(len(parameters)) if began and keeps else ()
    if not isinstance(state, dict) or set(state) != set(expected):
        raise ValueError(f"the optimizer's state is not that of {len(expected)} parameters")
    for number in expected:
        kept, like = state[number], parameters[number]
        if not isinstance(kept, dict) or set(kept) != set(keeps):
            raise ValueError(f"the optimizer's state of parameter {number} is not {', '.join(keeps)}")
        for name, tensor in kept.items():
            shape = () if name == "step" else like.shape
            dtype = torch.float32 if name == "step" else like.dtype
            if not isinstance(tensor, torch.Tensor) or (tensor.shape, tensor.dtype) != (shape, dtype):
                raise ValueError(f"{name} of parameter {number} is no {dtype} tensor of shape {tuple(shape)}")
            signed = name in ("momentum_buffer", "exp_avg")
            if not bool(torch.isfinite(tensor).all()) or (not signed and bool((tensor < 0).any())):
                raise ValueError(f"{name} of parameter {number} has values that cannot be")


def parameter_groups(model: nn.Module, weight_decay: float, scale_lr: float = 1.0) -> list[dict[str, Any]]:
    """Weights and biases; what quantizers learn, to which weight decay applies only if `Quantizer.decays`; and gains
    and shifts of batch normalizations, to which it does not apply.

    share: fraction of the learning rate; for the quantizers' parameters it is `scale_lr`.
    """
    kinds: dict[int, tuple[bool, bool]] = {}  # of a parameter: (weight decay applies, it is a quantizer's)
    for module in model.modules():
        if isinstance(module, Quantizer | BatchNorm):
            is_quantizer = isinstance(module, Quantizer)
            kind = isinstance(module, Quantizer) and module.decays, is_quantizer
            kinds |= {id(p): kind for p in module.parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if kinds.get(id(p), (True, False)) == (decays, is_quantizer)],
            "weight_decay": weight_decay if decays else 0.0,
            "share": scale_lr if is_quantizer else 1.0,
        }
        for decays, is_quantizer in ((True, False), (True, True), (False, True), (False, False))
    ]
    return [group for group in groups if group["params"]]
