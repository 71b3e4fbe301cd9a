"""The command lines on a page reproduce the run they are shown for."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.commands.options import train_flags
from qattrain.config import ExperimentConfig, PtqConfig, QuantConfig
from qattrain.report.sections import command_lines
from qattrain.runs.checkpoint import load_checkpoint
from qattrain.training import run as experiment
from qattrain.training.ptq import quantize_after_training

CHANGES: list[dict[str, Any]] = [
    {},
    {"quant.bits": 32},
    {"quant.quantizer": "pow2", "quant.bits": 5, "quant.act_bits": 3, "quant.n": 4, "quant.surrogate": "tanh"},
    {"quant.layer_bits": {"conv1": 8, "act2": 32}, "model.widths": (4, 6, 8), "model.ops": "explicit"},
    {"train.lr": 0.0125, "train.optimizer": "adamw", "train.schedule": "cosine", "train.grad_clip": 1.5, "seed": 2**40},
    {
        "data.val_split": 20,
        "data.limit_test": 50,
        "data.augment": "affine",
        "data.flip": True,
        "train.label_smoothing": 0.1,
    },
    {"distill.teacher": "runs/wide", "distill.temperature": 4.0, "model.dropout": 0.25, "train.scale_lr": 0.1},
    {"train.init": "a run with 'quotes' and $HOME", "train.batch_size": 16, "name": "mine"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes) or "defaults")
def test_the_command_line_of_a_run_settles_to_its_configuration(
    changes: dict[str, Any], tiny_config: Callable[..., ExperimentConfig], main: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recorded, _, _ = experiment.resolve(tiny_config(changes), tmp_path)
    (line,) = command_lines(recorded, train_flags())
    asked: list[ExperimentConfig] = []
    monkeypatch.setattr(experiment, "train", lambda config, *_args: asked.append(config))
    with pytest.raises(AttributeError):  # there is no result
        main(*shlex.split(shlex.join(line))[1:])
    settled, _, _ = experiment.resolve(asked[0], tmp_path)
    assert settled == recorded.model_copy(update={"name": None})


@pytest.mark.parametrize("layer_bits", [{}, {"conv1": 8}])
def test_the_command_lines_of_a_quantization_make_it_again(
    layer_bits: dict[str, int], tiny: Callable[..., Any], main: Callable[..., Any], tmp_path: Path,
    assert_same: Callable[..., None],
) -> None:  # fmt: skip
    source = tiny({"quant.bits": 32, "seed": 3}).run_dir / "last.pt"
    quant = QuantConfig(quantizer="affine", bits=3, act_bits=4, layer_bits=layer_bits)
    made, _ = quantize_after_training(source, quant, PtqConfig(), None, tmp_path, tmp_path / "runs")
    for line in command_lines(made.checkpoint.config, train_flags()):
        done = main(*line[1:], "--runs-dir", tmp_path / "again")
        assert done.rc == 0, done
    (again,) = (tmp_path / "again").glob("*ptq*")
    checkpoint = load_checkpoint(again / "last.pt")
    assert_same(checkpoint.model, made.checkpoint.model)
    assert checkpoint.config == made.checkpoint.config
