"""A run, from settings to folder: resumed runs equal uninterrupted ones, and what was decided is recorded."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from qattrain.config import parse_config
from qattrain.data import load_dataset, split_validation
from qattrain.errors import CheckpointError, ConfigError, DataError, QattrainError, TrainingError
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.evaluation.metrics import evaluate
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint, restore_model
from qattrain.training import run as experiment
from qattrain.training.optimization import OPTIMIZERS
from qattrain.training.session import RunResult

Tiny = Callable[..., RunResult]
MEASURED = ("seconds", "epoch_seconds", "images_per_second")  # by the clock: differs between equal runs


@pytest.fixture
def resume(tmp_path: Path, silent_display: Any) -> Callable[..., RunResult]:
    def resume_run(
        result: RunResult, asked: Any = None, *, display: Any = None, stop_after: int | None = None
    ) -> RunResult:
        shown = display or silent_display()
        return experiment.resume(str(result.run_dir), tmp_path, tmp_path / "runs", shown, asked or {}, stop_after)

    return resume_run


def saved(result: RunResult, name: str = runs.LAST_FILE) -> dict[str, Any]:
    checkpoint = load_checkpoint(result.run_dir / name)
    return {"model": checkpoint.model, "trainer": checkpoint.trainer, "history": checkpoint.history}


@pytest.mark.parametrize("quantizer", ["lsq", "affine"])
def test_a_run_stopped_after_an_epoch_goes_on_exactly(
    tiny: Tiny, resume: Tiny, assert_same: Callable[..., None], quantizer: str
) -> None:
    settings = {"train.epochs": 3, "quant.quantizer": quantizer, "data.val_split": 30}
    whole = tiny(settings)
    part = tiny(settings, stop_after=1)
    assert (len(part.checkpoint.history), part.checkpoint.finished) == (1, False)
    part = resume(part, stop_after=2)
    assert len(part.checkpoint.history) == 2
    torch.rand(7)
    part = resume(part)
    assert part.checkpoint.finished
    for name in (runs.LAST_FILE, runs.BEST_FILE):
        assert_same(saved(whole, name), saved(part, name), ignore=MEASURED)


@pytest.mark.parametrize("interrupt_at", [1, 6, 7, 8, 13])
def test_a_run_stopped_by_ctrl_c_in_mid_epoch_goes_on_exactly(
    tiny: Tiny, resume: Tiny, silent_display: Any, assert_same: Callable[..., None], interrupt_at: int
) -> None:
    whole = tiny()
    display = silent_display(interrupt_at)
    part = tiny(display=display)
    assert part.interrupted
    assert display.steps == interrupt_at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    part = resume(part)
    assert not part.interrupted
    assert_same(saved(whole), saved(part), ignore=MEASURED)


def test_a_second_ctrl_c_interrupts_at_once(tiny: Tiny, silent_display: Any) -> None:
    class Twice(silent_display):
        def on_step(self, *args: object) -> None:
            super().on_step(*args)
            self.interrupt_at = self.steps + 1
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny(display=Twice(1))


def test_a_run_killed_before_its_first_epoch_ended_can_be_resumed(
    tiny: Tiny, silent_display: Any, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    class Killed(silent_display):
        def on_step(self, *_args: object) -> None:
            raise SystemExit  # nothing of ours runs after kill -9 either

    with pytest.raises(SystemExit):
        tiny(display=Killed())
    (run_dir,) = (tmp_path / "runs").iterdir()
    part = experiment.resume(run_dir.name, tmp_path, tmp_path / "runs", silent_display(), {}, None)
    assert_same(saved(tiny()), saved(part), ignore=MEASURED)


def test_a_finished_run_is_returned_untouched(tiny: Tiny, resume: Tiny, silent_display: Any) -> None:
    result = tiny()
    before = {path: path.read_bytes() for path in result.run_dir.iterdir()}
    display = silent_display()
    again = resume(result, display=display)
    assert display.steps == 0
    assert again.checkpoint.finished
    assert {path: path.read_bytes() for path in result.run_dir.iterdir()} == before


def test_a_run_killed_between_its_last_checkpoint_and_its_metrics_gets_them_on_resume(tiny: Tiny, resume: Tiny) -> None:
    result = tiny()
    metrics = result.run_dir / runs.METRICS_FILE
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines(keepends=True)[0])  # as it was while last.pt was already written
    resume(result)
    assert metrics.read_text() == whole


KEPT = {"train.epochs": 9, "train.threads": 2, "train.lr": 0.5, "train.precision": "x", "seed": 1}


@pytest.mark.parametrize(("key", "value"), KEPT.items())
def test_a_resumed_run_keeps_what_it_was_started_with(tiny: Tiny, resume: Tiny, key: str, value: object) -> None:
    result = tiny(stop_after=1)
    path = tuple(key.split("."))
    with pytest.raises(ConfigError, match=re.escape(f"{key} = {value!r}")):
        resume(result, {path: value})
    recorded: Any = result.checkpoint.config.model_dump()
    for part in path:
        recorded = recorded[part]
    with pytest.raises(ConfigError, match="--stop-after 1"):
        resume(result, {path: recorded}, stop_after=1)
    assert resume(result, {path: recorded}).checkpoint.finished


def test_init_takes_weights_and_leaves_scales_to_the_first_batch(tiny: Tiny) -> None:
    source = tiny({"quant.bits": 32})
    still = {"train.lr": 1e-30, "train.epochs": 1, "train.init": str(source.run_dir), "train.weight_decay": 0.0}
    own = tiny(still).checkpoint.model
    for name, tensor in source.checkpoint.model.items():
        assert torch.equal(own[name], tensor), name
    assert all(bool(tensor) for name, tensor in own.items() if name.endswith("initialized") and "input" not in name)


def test_init_from_other_shapes_or_from_nothing_is_refused_and_leaves_no_folder(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny({"quant.bits": 32, "train.epochs": 1})
    with pytest.raises(ConfigError, match=r"conv1\.weight has shape \(8, 1, 5, 5\)"):
        tiny({"train.init": str(source.run_dir), "model.widths": [4, 16, 32]})
    with pytest.raises(CheckpointError, match="nosuch"):
        tiny({"train.init": "nosuch"})
    assert list((tmp_path / "runs").iterdir()) == [source.run_dir]


def test_held_out_images_are_disjoint_and_choose_the_best_epoch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([10, 40, 40, 20])  # correct ones of the 60 held out: the second epoch is the first best

    def judged(predict: Any, data: Any) -> Any:
        result = evaluate(predict, data)
        return dataclasses.replace(result, correct=next(scripted)) if len(data.labels) == 60 else result

    monkeypatch.setattr("qattrain.training.session.evaluate", judged)
    result = tiny({"data.val_split": 60, "train.epochs": 4})
    best = load_checkpoint(result.run_dir / runs.BEST_FILE)
    assert (len(best.history), len(result.checkpoint.history)) == (2, 4)
    outcome = evaluate_checkpoint(result.run_dir / runs.BEST_FILE, tmp_path)
    assert outcome.evaluation.accuracy == best.history[-1]["test_accuracy"]
    train, held_out = split_validation(load_dataset("digits", tmp_path).train.head(200), 60, 0)
    rows = {image.numpy().tobytes() for image in train.images}
    assert len(train.labels) == 140
    assert not any(image.numpy().tobytes() in rows for image in held_out.images)


def test_what_was_auto_is_settled_and_recorded(tiny: Tiny, tiny_config: Any, tmp_path: Path) -> None:
    run_dir = tiny({"train.epochs": 1}).run_dir
    record = json.loads((run_dir / runs.CONFIG_FILE).read_text())
    assert parse_config(record["config"], "run") == load_checkpoint(run_dir / runs.LAST_FILE).config
    config = record["config"]
    assert (config["train"]["batch_size"], config["train"]["lr"], config["quant"]["bits"]) == (32, 0.05, 4)
    assert '"auto"' not in json.dumps(config)
    assert record["environment"]["packages"]["torch"] == torch.__version__
    for one_bit in ({"quant.bits": 1}, {"quant.quantizer": "binary"}, {"quant.layer_bits": {"fc1": 1}}):
        settled, _, _ = experiment.resolve(tiny_config(one_bit), tmp_path)
        assert settled.train.lr == OPTIMIZERS["sgd"].one_bit_lr < OPTIMIZERS["sgd"].lr, one_bit
    settled, _, _ = experiment.resolve(tiny_config({"quant.layer_bits": {"act1": 1}}), tmp_path)
    assert settled.train.lr == 0.05
    settled, _, _ = experiment.resolve(tiny_config({"train.lr": 0.3, "train.batch_size": 7}), tmp_path)
    assert (settled.train.lr, settled.train.batch_size) == (0.3, 7)


WRONG: dict[str, tuple[dict[str, Any], type[QattrainError], str]] = {
    "model": ({"model.name": "alexnet"}, ConfigError, "lenet-nano"),
    "initializer": ({"model.init": "zeros"}, ConfigError, "kaiming"),
    "quantizer": ({"quant.quantizer": "xnor"}, ConfigError, "lsq"),
    "surrogate": ({"quant.surrogate": "sigmoid"}, ConfigError, "clipped"),
    "dataset": ({"data.dataset": "cifar11"}, ConfigError, "digits"),
    "augmentation": ({"data.augment": "flip"}, ConfigError, "shift"),
    "optimizer": ({"train.optimizer": "lion"}, ConfigError, "sgd"),
    "schedule": ({"train.schedule": "step"}, ConfigError, "cosine"),
    "device": ({"train.device": "abacus"}, ConfigError, "cpu"),
    "exponent": ({"quant.n": 4}, ConfigError, "pow2"),
    "ternary bits": ({"quant.quantizer": "ternary", "quant.bits": 3}, ConfigError, "2"),
    "validation": ({"data.val_split": 200}, ConfigError, "199"),
    "post-training": ({"ptq": {}}, ConfigError, "qattrain ptq"),
    "data": ({"data.dataset": "mnist"}, DataError, "MNIST"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_run_that_cannot_start_says_why_and_leaves_no_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    settings, error, allowed = WRONG[case]
    monkeypatch.setattr("qattrain.data.mnist.first_answer", lambda *_args: None)
    with pytest.raises(error) as caught:
        tiny(settings)
    assert "\n" not in str(caught.value)
    assert allowed in str(caught.value)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_run_whose_first_files_cannot_be_written_leaves_no_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(TrainingError, match="No space left on device"):
        tiny()
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("batch", [16, 200])
def test_a_diverged_run_keeps_a_last_checkpoint_that_is_good(tiny: Tiny, tmp_path: Path, batch: int) -> None:
    with pytest.raises(TrainingError, match="last good checkpoint"):
        tiny({"train.lr": 1e30, "train.batch_size": batch, "train.epochs": 3})
    (run_dir,) = (tmp_path / "runs").iterdir()
    checkpoint = load_checkpoint(run_dir / runs.LAST_FILE)
    for name, tensor in restore_model(checkpoint, "x").state_dict().items():
        assert bool(torch.isfinite(tensor).all()), name
    assert all(record["test_loss"] < float("inf") for record in checkpoint.history)


def test_metrics_agree_with_the_checkpoint_and_with_what_was_shown(tiny: Tiny, silent_display: Any) -> None:
    display = silent_display()
    result = tiny(display=display)
    assert len((result.run_dir / runs.METRICS_FILE).read_text().splitlines()) == 2
    lines = runs.read_metrics(result.run_dir)
    assert lines == display.records == load_checkpoint(result.run_dir / runs.LAST_FILE).history
    assert [line["epoch"] for line in lines] == [1, 2]
    assert display.steps == 14


def test_resume_takes_a_run_and_no_other_file_of_it(tiny: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tiny({"data.val_split": 40, "train.epochs": 2}, stop_after=1).run_dir
    before = (run_dir / "metrics.jsonl").read_bytes(), (run_dir / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"last\.pt only"):
        experiment.resume(str(run_dir / "best.pt"), tmp_path, tmp_path, Any, {}, None)  # type: ignore[arg-type]
    assert before == ((run_dir / "metrics.jsonl").read_bytes(), (run_dir / "last.pt").read_bytes())


def test_auto_beside_resume_asks_for_nothing(tiny: Callable[..., Any], tmp_path: Path, silent_display: Any) -> None:
    run_dir = tiny({"train.epochs": 2}, stop_after=1).run_dir
    asked = {("data", "dataset"): "auto", ("train", "lr"): "auto"}
    result = experiment.resume(str(run_dir), tmp_path, tmp_path, silent_display(), asked, None)
    assert result.checkpoint.finished
