"""The training loop: its schedules are the published ones, every image counts, and it can stop after any step."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qattrain.config import ExperimentConfig
from qattrain.data import load_dataset
from qattrain.data.augment import AUGMENTATIONS
from qattrain.errors import ConfigError, TrainingError
from qattrain.files.compiler import find_compiler
from qattrain.layers.network import build_model
from qattrain.quant import QUANTIZERS, Quantizer
from qattrain.quant.grid import MIN_SCALE
from qattrain.runs.environment import has_fast_bf16
from qattrain.training.loop import STEPS_BETWEEN_CHECKS, EpochResult, Trainer
from qattrain.training.optimization import OPTIMIZERS, SCHEDULES, parameter_groups

SETTLED = {"train.lr": 0.05, "train.batch_size": 32, "train.weight_decay": 1e-4, "train.precision": "fp32"}
FLOAT = {"quant.bits": 32, "data.augment": "none", "train.momentum": 0.0, "train.weight_decay": 0.0}
STEADY = {"train.schedule": "constant", "train.warmup": 0.0}


class Recorder:
    """Remembers the learning rate of every step, and says stop after `stop_at` of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.rates: list[float] = []
        self.stop_at, self.trainer = stop_at, None

    def on_step(self, *_args: object) -> None:
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"] if self.trainer else 0.0)

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.rates) >= self.stop_at

    def run(self, trainer: Trainer) -> EpochResult | None:
        self.trainer, result = trainer, None
        while trainer.epoch < trainer.config.epochs and not self.should_stop():
            result = trainer.train_epoch(self, self.should_stop)
        return result


@pytest.fixture(scope="module")
def make(tiny_config: Callable[..., ExperimentConfig]) -> Callable[..., Trainer]:
    digits = load_dataset("digits", None).train

    def trainer(changes: dict[str, Any] | None = None, *, images: int = 100, weights: int = 0) -> Trainer:
        config = tiny_config(SETTLED | (changes or {}))
        torch.manual_seed(weights)
        model = build_model(config.model, config.quant, 10)
        return Trainer(model, digits.head(images), config.train, config.data.augment, config.seed)

    return trainer


def state(trainer: Trainer) -> dict[str, Any]:
    return {"model": dict(trainer.model.state_dict()), "trainer": trainer.state_dict()}


def through_file(value: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def rates_of(schedule: Callable[[Any], Any], steps: int) -> list[float]:
    """The learning rates of torch's own scheduler around 0.05."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    theirs, rates = schedule(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            theirs.step()
    return rates


@pytest.mark.parametrize(("epochs", "images", "warmup"), [(1, 640, 0.15), (5, 100, 0.15), (3, 333, 0.4), (10, 64, 0.3)])
def test_one_cycle_is_torchs_at_every_step(
    make: Callable[..., Trainer], epochs: int, images: int, warmup: float
) -> None:
    trainer = make(
        {"train.epochs": epochs, "train.warmup": warmup, "model.widths": [1, 1, 1], "quant.bits": 32}, images=images
    )
    total = epochs * math.ceil(images / 32)
    expected = rates_of(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.05, total, pct_start=warmup, anneal_strategy="cos", div_factor=25, final_div_factor=1e4
        ),
        total,
    )
    recorder = Recorder()
    recorder.run(trainer)
    assert recorder.rates == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_cosine_without_warm_up_is_torchs_at_every_step(make: Callable[..., Trainer]) -> None:
    recorder = Recorder()
    recorder.run(make({"train.schedule": "cosine", "train.warmup": 0.0}))
    expected = rates_of(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8), 8)
    assert recorder.rates == pytest.approx(expected, rel=1e-9)


@given(steps=st.integers(1, 500), data=st.data(), warmup=st.floats(0, 0.99))
def test_schedules_stay_between_zero_and_the_peak(steps: int, data: st.DataObject, warmup: float) -> None:
    step = data.draw(st.integers(0, steps - 1))
    for schedule in SCHEDULES.values():
        assert 0 < schedule(step, steps, warmup) <= 1 + 1e-12
    if step + 1 >= warmup * steps:
        assert SCHEDULES["constant"](step, steps, warmup) == 1


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_weight_decay_spares_what_quantizers_learn_but_pacts_clipping_levels(
    make: Callable[..., Trainer], quantizer: str
) -> None:
    model = make({"quant.quantizer": quantizer}).model
    learned = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    if quantizer == "pact":  # whose paper regularizes the clipping level as it does the weights
        assert len(learned) == 3
        learned = set()
    groups = parameter_groups(model, 0.5)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {id(p): 0.0 if id(p) in learned else 0.5 for p in model.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_what_quantizers_learn_has_its_own_share_of_the_learning_rate(make: Callable[..., Trainer]) -> None:
    def moved(share: float) -> dict[str, float]:
        changes = {"train.optimizer": "adamw", "train.lr": 1e-3, "train.scale_lr": share, "train.epochs": 1}
        trainer = make(STEADY | changes, images=32)  # one step: Adam's first one has the length of the learning rate
        trainer.model(trainer.data.images)  # scales come from the first batch
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        Recorder().run(trainer)
        return {name: (p - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()}

    whole, tenth, none = moved(1.0), moved(0.1), moved(0.0)
    for name, distance in whole.items():
        if "quantizer." in name:
            assert tenth[name] == pytest.approx(0.1 * distance, rel=1e-2), name
            assert none[name] == 0, name
        else:
            assert tenth[name] == distance, name


@pytest.mark.parametrize("quantizer", ["lsq", "pact"])
def test_no_step_takes_a_learned_scale_below_the_smallest(make: Callable[..., Trainer], quantizer: str) -> None:
    fast = {"train.optimizer": "adamw", "train.lr": 0.3, "train.scale_lr": 10.0, "quant.quantizer": quantizer}
    trainer = make(fast)
    Recorder().run(trainer)
    learned = [p.detach() for name, p in trainer.model.named_parameters() if name.endswith((".scale", ".alpha"))]
    assert len(learned) > 2
    assert min(float(scale.min()) for scale in learned) == MIN_SCALE


@pytest.mark.parametrize("images", [1, 31, 33, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_training_loss_is_the_mean_over_all_images_partial_batch_included(
    make: Callable[..., Trainer], images: int, smoothing: float
) -> None:
    still = FLOAT | STEADY | {"train.lr": 1e-30, "train.epochs": 1, "train.label_smoothing": smoothing}
    trainer = make(still, images=images)
    recorder = Recorder()
    result = recorder.run(trainer)
    logits = trainer.model(trainer.data.images)
    expected = F.cross_entropy(logits, trainer.data.labels, label_smoothing=smoothing)
    assert len(recorder.rates) == math.ceil(images / 32)
    # And the partial batch is not only counted but learned from.
    learning = make(FLOAT | STEADY | {"train.epochs": 1}, images=images)
    Recorder(len(recorder.rates) - 1).run(learning) if images > 32 else None
    before = learning.model.conv1.weight.detach().clone()
    learning.train_epoch(Recorder(), lambda: False)
    assert not torch.equal(before, learning.model.conv1.weight)
    assert result is not None
    assert result.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_clipping_bounds_the_step(make: Callable[..., Trainer]) -> None:
    def step_length(changes: dict[str, Any]) -> float:
        trainer = make(FLOAT | STEADY | {"train.epochs": 1} | changes, images=32)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        Recorder().run(trainer)
        moved = zip(before, trainer.model.parameters(), strict=True)
        return math.sqrt(sum((a - b).square().sum().item() for a, b in moved))

    assert step_length({}) > 0.05 * 0.02
    assert step_length({"train.grad_clip": 0.01}) == pytest.approx(0.05 * 0.01, rel=1e-3)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_seed_alone_decides_the_tensors(
    make: Callable[..., Trainer], assert_same: Callable[..., None], augment: str
) -> None:
    ends = []
    for seed in (0, 0, 1):
        trainer = make({"data.augment": augment, "seed": seed, "train.epochs": 1})
        torch.rand(seed + 1)  # the global generator is not what decides
        Recorder().run(trainer)
        ends.append(dict(trainer.model.state_dict()))
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["conv1.weight"], ends[2]["conv1.weight"])


RECIPES: dict[str, dict[str, Any]] = {
    "sgd-shift-lsq": {},
    "adamw-affine-affine": {"train.optimizer": "adamw", "data.augment": "affine", "quant.quantizer": "affine"},
    "adamw-shift-pow2": {"train.optimizer": "adamw", "quant.quantizer": "pow2"},
    "sgd-affine-binary": {"data.augment": "affine", "quant.quantizer": "binary"},
    "sgd-none-float": {"data.augment": "none", "quant.bits": 32},
    "sgd-shift-batchnorm": {"model.name": "conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 8 1x1 bn, avgpool, fc 9 bn, fc"},
    "adamw-elastic-dropout": {"train.optimizer": "adamw", "data.augment": "elastic", "model.dropout": 0.3},
}
whole_runs: dict[str, dict[str, Any]] = {}


@settings(max_examples=8)
@given(stop_at=st.integers(1, 8))
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_after_any_step_goes_on_tensor_for_tensor(
    make: Callable[..., Trainer], assert_same: Callable[..., None], recipe: str, stop_at: int
) -> None:
    if recipe not in whole_runs:
        whole = make(RECIPES[recipe])
        Recorder().run(whole)
        whole_runs[recipe] = state(whole)
    first = make(RECIPES[recipe])
    Recorder(stop_at).run(first)
    assert first.epoch * 4 + first.step == stop_at
    stored = through_file(state(first))
    second = make(RECIPES[recipe], weights=99)
    second.model.load_state_dict(stored["model"])
    second.load_state_dict(stored["trainer"])
    Recorder().run(second)
    assert_same(state(second), whole_runs[recipe], ignore=("seconds",))


@pytest.mark.parametrize("bits", [32, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(make: Callable[..., Trainer], bits: int) -> None:
    trainer = make({"quant.bits": bits, "train.lr": 1e30, "train.batch_size": 1})
    recorder = Recorder()
    with pytest.raises(TrainingError) as caught:
        recorder.run(trainer)
    assert len(recorder.rates) <= STEPS_BETWEEN_CHECKS
    assert re.search(r"(nan|inf) at epoch 1, step \d+ of 100,.* 1e\+30.*--lr.*grad_clip", str(caught.value))


def test_the_first_step_with_a_bad_loss_is_named(make: Callable[..., Trainer]) -> None:
    trainer = make(FLOAT | STEADY | {"train.epochs": 1})
    trainer.model.fc2.bias.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1, step 1 of 4"):
        Recorder().run(trainer)


def test_an_unknown_name_is_refused_with_the_allowed_ones(make: Callable[..., Trainer]) -> None:
    tables = {"train.optimizer": OPTIMIZERS, "train.schedule": SCHEDULES, "data.augment": AUGMENTATIONS}
    for key, table in tables.items():
        with pytest.raises(ConfigError) as caught:
            make({key: "nosuch"})
        assert all(text in str(caught.value) for text in (key, "nosuch", *table))


@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this CPU has no bfloat16 arithmetic")
def test_bfloat16_is_the_products_type_in_training_only(make: Callable[..., Trainer]) -> None:
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        trainer = make({"train.precision": precision, "train.epochs": 1})
        seen: set[torch.dtype] = set()
        layer = trainer.model.fc1
        original = layer._product
        layer._product = lambda x, w, original=original, seen=seen: (seen.add(x.dtype), original(x, w))[1]
        Recorder().run(trainer)
        assert seen == {expected}
        seen.clear()
        trainer.model.eval()
        with torch.no_grad():
            logits = trainer.model(trainer.data.images)
        assert seen == {torch.float32}
        assert logits.dtype == torch.float32


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")
@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
@pytest.mark.parametrize("bits", [None, 32])
def test_compiled_and_plain_training_take_the_same_first_steps(
    quantizer: str, bits: int | None, make: Callable[..., Trainer]
) -> None:
    losses = {}
    for compile_it in ("on", "off"):
        trainer = make({"quant.quantizer": quantizer, "quant.bits": bits, "train.compile": compile_it}, images=80)
        trainer.model.train()
        trainer.train_epoch(Recorder(), lambda: True)  # one step
        trainer.train_epoch(Recorder(), lambda: True)
        losses[compile_it] = trainer.losses[:2].clone()
    torch.testing.assert_close(losses["on"], losses["off"], rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")
def test_a_compiled_run_is_the_same_run_when_repeated(make: Callable[..., Trainer]) -> None:
    first, second = (make({"train.compile": "on", "train.epochs": 2}) for _ in range(2))
    assert Recorder().run(first) is not None
    assert Recorder().run(second) is not None
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
