"""Every training contender really trains: what stands still would be fast."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qattrain.benchmark.rounds import Contender, Ready, Workload, synthetic_images
from qattrain.benchmark.training import COMPARED_QUANTIZERS, EAGER, TRAINING
from qattrain.files import compiler as compiling
from qattrain.quant import QUANTIZERS

NAMED = {contender.name: contender for contender in TRAINING}


def built(contender: Contender, images: int, rounds: int) -> Ready:
    if contender.name.startswith("brevitas"):
        pytest.importorskip("brevitas")
    if contender.name.split("-")[0] in (*QUANTIZERS, "float") and not contender.name.endswith(EAGER):
        compiling.find_compiler() or pytest.skip("no C compiler on this machine")
    data = synthetic_images(images)
    ready = contender.build(Workload(data, data, rounds, "fp32", ExitStack()))
    assert tuple(ready) == contender.batches
    return ready[contender.batches[0]]


@pytest.mark.parametrize("contender", TRAINING, ids=lambda contender: contender.name)
def test_an_epoch_moves_every_weight_and_takes_time(contender: Contender) -> None:
    ready = built(contender, images=128, rounds=1)
    assert ready.model is not None
    weights = {name: p for name, p in ready.model.named_parameters() if name.endswith("weight")}
    assert len(weights) == 4
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    assert 0 < ready.measure() < 1e6
    for name, weight in weights.items():
        assert bool(weight.isfinite().all())
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("name", ["example", "plain", "float-eager", "lsq-w4a4-eager"])
def test_the_loss_falls(name: str) -> None:
    data = synthetic_images(128)
    ready = built(NAMED[name], images=128, rounds=12)
    model: Any = ready.model
    real = data.images.float() / 255
    inputs = {"example": (real - 0.1307) / 0.3081, "plain": real}.get(name, data.images)

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(inputs), data.labels))

    ready.measure()
    before = loss()
    for _ in range(11):
        ready.measure()
    assert loss() < before


def test_every_compared_quantizer_and_every_width_is_there_compiled_and_eager() -> None:
    for name in COMPARED_QUANTIZERS:
        for bits in {8, 4, 2, 1} & set(QUANTIZERS[name].weight_bits):
            assert {f"{name}-w{bits}a{bits}", f"{name}-w{bits}a{bits}{EAGER}"} <= set(NAMED)
    assert {f"lsq-w{bits}a{bits}" for bits in range(1, 9)} <= set(NAMED)
    assert len(NAMED) == len(TRAINING)
