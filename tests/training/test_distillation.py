"""Distillation: the loss is Hinton's, the teacher is only asked, once, and a resumed run has the same one."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qattrain.config import DistillConfig
from qattrain.data import Dataset
from qattrain.errors import CheckpointError, ConfigError
from qattrain.files.kept import sealed
from qattrain.report.display import describe
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint, restore_model, save_checkpoint
from qattrain.training import run as experiment
from qattrain.training.distillation import ANSWERS_FOLDER, Teacher, distilled
from qattrain.training.session import RunResult

Tiny = Callable[..., RunResult]
MEASURED = ("seconds", "epoch_seconds", "images_per_second")
FLOAT = {"quant.bits": 32, "train.epochs": 1, "model.widths": [3, 4, 5], "model.dropout": 0.5}  # other widths will do


def dataset_of(class_names: tuple[str, ...], side: int = 28) -> Dataset:
    """A dataset of which only the classes and the image size are used."""
    return Dataset("x", class_names, Mock(), Mock(), (1, side, side))


@pytest.fixture
def source(tiny: Tiny) -> RunResult:
    return tiny(FLOAT)


@pytest.fixture
def teacher(source: RunResult, tiny_config: Any) -> Teacher:
    path = source.run_dir / runs.LAST_FILE
    student = tiny_config({"train.precision": "fp32", "train.device": "cpu"})
    return Teacher(source.checkpoint, path, student, dataset_of(source.checkpoint.class_names))


def noise(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)


def everything(result: RunResult) -> dict[str, Any]:
    checkpoint = load_checkpoint(result.run_dir / runs.LAST_FILE)
    return {"model": checkpoint.model, "trainer": checkpoint.trainer, "history": checkpoint.history}


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.9), (2.0, 0.0), (2.0, 1.0)])
def test_the_loss_and_its_gradient_are_those_of_the_definition(temperature: float, weight: float) -> None:
    labels, logits, answers = torch.arange(6), torch.randn(6, 10, requires_grad=True), torch.randn(6, 10)
    loss = distilled(
        F.cross_entropy(logits, labels), logits, answers, DistillConfig(temperature=temperature, weight=weight)
    )
    (gradient,) = torch.autograd.grad(loss, logits)

    wide = logits.detach().double().requires_grad_()
    p, q = (answers.double() / temperature).softmax(1), (wide / temperature).softmax(1)
    soft = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    expected = (1 - weight) * F.cross_entropy(wide, labels) + weight * soft
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, wide)[0], rtol=1e-4, atol=1e-6)


def test_the_teacher_answers_what_evaluation_sees_and_never_changes(
    teacher: Teacher, source: RunResult, tiny: Tiny
) -> None:
    images = noise()
    expected = restore_model(source.checkpoint, "").eval()(images)
    assert torch.equal(teacher.answer(images, 0, slice(0, 6), 6), expected)
    before = (source.run_dir / runs.LAST_FILE).read_bytes()
    taught, alone = tiny({"distill.teacher": str(source.run_dir)}), tiny()
    assert (source.run_dir / runs.LAST_FILE).read_bytes() == before
    assert not torch.equal(taught.checkpoint.model["fc2.weight"], alone.checkpoint.model["fc2.weight"])
    assert taught.checkpoint.model.keys() == alone.checkpoint.model.keys()
    said = describe(taught.run_dir, taught.checkpoint, 200, 360)
    assert f"distilled from {source.run_dir} (T 2, weight 0.7)" in said
    assert "distilled" not in describe(alone.run_dir, alone.checkpoint, 200, 360)


def test_a_student_learns_from_the_teacher_alone_where_labels_count_nothing(source: RunResult, tiny: Tiny) -> None:
    shown = {"distill.teacher": str(source.run_dir), "distill.weight": 1.0, "train.epochs": 6, "quant.bits": 8}
    student = tiny(shown).checkpoint.history
    assert student[-1]["train_loss"] < 0.5 * student[0]["train_loss"]


def test_a_teacher_asked_once_is_not_asked_again_for_the_same_images(
    source: RunResult, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, assert_same: Callable[..., None]
) -> None:
    settings = {"distill.teacher": source.run_dir.name, "train.epochs": 2}
    first = tiny(settings)
    other_seed = tiny(settings | {"seed": 1})
    kept = sorted((source.run_dir / ANSWERS_FOLDER).rglob("*.npy"))
    assert len(kept) == 4  # two epochs of two seeds
    asked = Mock(side_effect=AssertionError("asked again"))
    with monkeypatch.context() as silenced:
        silenced.setattr(nn.Sequential, "requires_grad_", lambda model, _: setattr(model, "forward", asked) or model)
        assert_same(everything(first), everything(tiny(settings)), ignore=MEASURED)
        assert_same(everything(other_seed), everything(tiny(settings | {"seed": 1})), ignore=MEASURED)
        tiny(settings | {"quant.bits": 2, "model.widths": [2, 3, 4]})
        for changes in ({"seed": 2}, {"data.augment": "none"}, {"train.batch_size": 50}, {"data.val_split": 10}):
            with pytest.raises(AssertionError, match="asked again"):
                tiny(settings | changes)
    kept[0].write_bytes(b"no array")
    assert_same(everything(first), everything(tiny(settings)), ignore=MEASURED)


def test_damaged_answers_are_asked_for_again(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise()

    def ask() -> torch.Tensor:
        teacher.epoch = None  # as in another run
        return teacher.answer(images, 0, slice(0, 6), 6).clone()

    expected = ask()
    (kept,) = teacher.folder.glob("*.npy")
    intact = kept.read_bytes()
    asked: list[int] = []
    original = teacher.model.forward
    monkeypatch.setattr(teacher.model, "forward", lambda seen: (asked.append(len(seen)), original(seen))[1])
    assert torch.equal(ask(), expected)
    assert not asked
    rng = random.Random(3)
    header_bits, bits = range(8 * 128), range(8 * 128, 8 * len(intact))
    damaged = [intact[: rng.randrange(len(intact))] for _ in range(9)] + [b"", intact[:-40], intact + b"x", bytes(99)]
    for bit in [*rng.sample(header_bits, 20), *rng.sample(bits, 20)]:
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    for content in damaged:
        kept.write_bytes(content)
        assert torch.equal(ask(), expected)
    assert len(asked) == len(damaged)
    assert kept.read_bytes() == intact
    for crafted in (b"no array", np.lib.format.magic(1, 0) + b"\xff\xff{"):  # sealed by another program
        kept.write_bytes(sealed(crafted))
        assert torch.equal(ask(), expected)
    kept.unlink()
    os.mkfifo(kept)
    assert torch.equal(ask(), expected)


def test_answers_that_cannot_be_kept_are_asked_for_every_time(source: RunResult, tiny: Tiny) -> None:
    (source.run_dir / ANSWERS_FOLDER).write_text("in the way")
    assert tiny({"distill.teacher": source.run_dir.name}).checkpoint.finished


def test_a_distilled_run_goes_on_exactly_and_only_with_its_teacher(
    source: RunResult, tiny: Tiny, silent_display: Any, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    def resume_run(result: RunResult) -> RunResult:
        return experiment.resume(str(result.run_dir), tmp_path, tmp_path / "runs", silent_display(), {}, None)

    settings = {"distill.teacher": source.run_dir.name}  # by name: looked up beside the run
    part = tiny(settings, display=silent_display(interrupt_at=2))
    file = source.run_dir / runs.LAST_FILE
    original = file.read_bytes()
    source.checkpoint.model["fc2.bias"] += 1
    save_checkpoint(file, source.checkpoint)
    with pytest.raises(CheckpointError, match="it was trained with another teacher"):
        resume_run(part)
    file.unlink()
    with pytest.raises(CheckpointError, match=re.escape(source.run_dir.name)):
        resume_run(part)
    file.write_bytes(original)
    whole = resume_run(part)
    (names,) = {tuple(path.name for path in folder.iterdir()) for folder in (source.run_dir / ANSWERS_FOLDER).iterdir()}
    assert names == ("epoch-2.npy",)  # of the first epoch nobody knows all
    assert_same(everything(tiny(settings)), everything(whole), ignore=MEASURED)


def test_a_teacher_that_is_none_is_refused_and_leaves_no_folder(source: RunResult, tiny: Tiny, tmp_path: Path) -> None:
    quantized = tiny({"quant.bits": 2, "train.epochs": 1})
    partly = tiny(FLOAT | {"quant.layer_bits": {"act2": 3}})
    before = sorted((tmp_path / "runs").iterdir())
    for run, bits in ((quantized, 2), (partly, 3)):
        with pytest.raises(ConfigError, match=rf"is quantized \({bits} bits\).*--bits 32"):
            tiny({"distill.teacher": run.run_dir.name})
    with pytest.raises(CheckpointError, match="nosuch"):
        tiny({"distill.teacher": "nosuch"})
    with pytest.raises(ConfigError, match="other classes"):
        Teacher(source.checkpoint, source.run_dir / runs.LAST_FILE, source.checkpoint.config, dataset_of(("a", "b")))
    path = source.run_dir / runs.LAST_FILE
    with pytest.raises(ConfigError, match="other image sizes"):
        Teacher(source.checkpoint, path, source.checkpoint.config, dataset_of(source.checkpoint.class_names, 32))
    assert sorted((tmp_path / "runs").iterdir()) == before


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("temperature", -1.0), ("weight", 1.5)])
def test_impossible_temperatures_and_weights_are_refused(tiny_config: Any, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = {value}"):
        tiny_config({f"distill.{key}": value})
