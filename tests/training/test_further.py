"""A finished run: `--resume` leaves it alone, `--init` takes it further as a new run, with its scales if they fit."""

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qattrain.config import PtqConfig, QuantConfig
from qattrain.errors import CheckpointError, ConfigError
from qattrain.quant import QUANTIZERS
from qattrain.report.display import describe
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint, save_checkpoint
from qattrain.training import run as experiment
from qattrain.training.ptq import quantize_after_training
from qattrain.training.run import grid_differences
from qattrain.training.session import RunResult

Tiny = Callable[..., RunResult]
STILL = {"train.lr": 1e-30, "train.weight_decay": 0.0, "train.epochs": 1, "data.augment": "none"}  # nothing moves
SMALL = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "200", "--epochs", "2", "--threads", "1")
MEASURED = ("seconds", "epoch_seconds", "images_per_second")


@pytest.fixture
def begun(tmp_path: Path, tiny_config: Any, silent_display: Any) -> Callable[..., tuple[dict[str, Tensor], str]]:
    """The state of a new run before its first step, and the line that says what it starts from."""

    class Killed(silent_display):
        def on_step(self, *_args: object) -> None:
            raise SystemExit

    def begin(settings: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
        said: list[str] = []
        config = tiny_config(settings | {"name": "begun"})
        shutil.rmtree(tmp_path / "runs" / "begun", ignore_errors=True)
        # The checkpoint of epoch 0 is written before the first step.
        with pytest.raises(SystemExit):
            experiment.train(config, tmp_path, tmp_path / "runs", Killed(), None, said.append)
        (line,) = said
        return load_checkpoint(tmp_path / "runs" / "begun" / runs.LAST_FILE).model, line

    return begin


def seen(folder: Path) -> dict[str, Any]:
    """Everything of a folder that a command could touch: names, contents, times."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.is_file() and path.read_bytes())
        for path in paths
    }


def test_resuming_a_finished_run_touches_nothing_of_it_and_says_how_to_take_it_further(
    main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = main("train", *SMALL, "--bits", 4, "--val-split", 30, "--json")
    run_dir = Path(json.loads(trained.stdout)["run_dir"])
    (run_dir / "tensorboard").mkdir()
    (run_dir / "tensorboard" / "events").write_text("scalars")
    before = seen(run_dir)
    for asked in ((), SMALL, ("--bits", 4), ("--stop-after", 1), ("--json",), ()):
        again = main("train", "--resume", run_dir.name, *asked)
        assert again.rc == 0, again
        assert "already finished" in again.stdout + again.stderr
    assert seen(run_dir) == before
    more = main("train", "--resume", run_dir.name, "--epochs", 9).error
    assert seen(run_dir) == before
    for text, epochs in ((again.stdout + again.stderr, "5"), (more, "7")):
        match = re.search(r"as a new run: +qattrain (.*)", text)
        assert match is not None, text
        line = shlex.split(match[1])
        assert line[-4:] == ["--epochs", epochs, "--lr", "0.005"]
    taken = main(*line, "--epochs", 1)
    assert taken.rc == 0, taken
    assert f"starts from the weights and scales of {run_dir}" in taken.stderr
    assert f"started from {run_dir}" in taken.stderr
    assert (tmp_path / "runs" / "lenet-nano-w4a4-lsq-init-digits-s0" / runs.LAST_FILE).exists()
    assert seen(run_dir) == before


def test_a_resumed_quantization_is_finished_and_names_no_training(tiny: Tiny, main: Callable[..., Any]) -> None:
    source = tiny({"quant.bits": 32, "train.epochs": 1}).run_dir
    quant = QuantConfig(quantizer="affine", bits=8)
    made, _ = quantize_after_training(source / runs.LAST_FILE, quant, PtqConfig(), None, source, source.parent)
    again = main("train", "--resume", made.run_dir)
    assert again.rc == 0
    assert "as a new run" not in again.stdout + again.stderr


CHAIN = "conv 6 5x5 stride 2 bn, dw 3x3 bn, pool 2, conv 8 1x1, avgpool, fc"
GRIDS: list[dict[str, Any]] = [
    *({"quant.quantizer": quantizer} for quantizer in QUANTIZERS),
    {"quant.bits": 1},
    {"quant.bits": 2, "quant.layer_bits": {"conv1": 8, "act2": 32}},
    {"quant.quantizer": "pow2", "quant.n": 5},
    {"model.name": CHAIN},
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_from_the_same_grids_a_run_starts_with_all_that_the_other_had_learned(
    tiny: Tiny, begun: Callable[..., Any], assert_same: Callable[..., None], grid: dict[str, Any]
) -> None:
    source = tiny(grid | {"name": "source"})
    state, line = begun(grid | {"train.init": "source"})
    assert_same(state, source.checkpoint.model)
    assert line == "starts from the weights and scales of source"
    # What only the backward pass uses makes no other grid.
    state, line = begun(grid | {"train.init": "source", "quant.surrogate": "identity", "seed": 5})
    assert_same(state, source.checkpoint.model)


@pytest.mark.parametrize("grid", [{}, {"quant.quantizer": "pact"}, {"quant.bits": 1}, {"quant.quantizer": "ternary"}])
def test_an_epoch_in_which_nothing_moves_ends_where_the_other_run_did(tiny: Tiny, grid: dict[str, Any]) -> None:
    source = tiny(grid | {"name": "source"})
    result = tiny(grid | STILL | {"train.init": "source", "seed": 3})
    for name, tensor in source.checkpoint.model.items():
        assert torch.allclose(result.checkpoint.model[name], tensor, rtol=1e-6, atol=0), name
    one, other = source.checkpoint.history[-1], result.checkpoint.history[-1]
    assert one["test_accuracy"] == other["test_accuracy"]
    assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-6)


def test_the_scales_of_a_quantization_after_training_are_kept_too(
    tiny: Tiny, begun: Callable[..., Any], tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    source = tiny({"quant.bits": 32, "name": "float"})
    quant = QuantConfig(quantizer="lsq", bits=3)
    path = source.run_dir / runs.LAST_FILE
    made, _ = quantize_after_training(path, quant, PtqConfig(), "ptq", tmp_path, tmp_path / "runs")
    state, line = begun({"quant.bits": 3, "train.init": "ptq"})
    assert line == "starts from the weights and scales of ptq"
    assert_same(state, made.checkpoint.model)


OTHER_GRIDS: list[tuple[dict[str, Any], str]] = [
    ({"quant.bits": 2}, "bits 4 -> 2, act_bits 4 -> 2"),
    ({"quant.bits": 4, "quant.act_bits": 8}, "act_bits 4 -> 8"),
    ({"quant.quantizer": "affine"}, "quantizer lsq -> affine"),
    ({"quant.layer_bits": {"conv2": 8, "act1": 2}}, "conv2 4 -> 8 bits, act1 4 -> 2 bits"),
]


@pytest.mark.parametrize(("grid", "told"), OTHER_GRIDS)
def test_from_other_grids_a_run_takes_the_weights_alone_and_says_so(
    tiny: Tiny, begun: Callable[..., Any], assert_same: Callable[..., None], grid: dict[str, Any], told: str
) -> None:
    source = tiny({"name": "source"}).checkpoint.model
    state, line = begun(grid | {"train.init": "source"})
    expected = f"starts from the weights of source; its grids differ ({told}), so the scales are initialized anew"
    assert line == expected
    weights = {name: tensor for name, tensor in source.items() if "quantizer" not in name}
    assert len(weights) == 8
    assert_same({name: state[name] for name in weights}, weights)
    assert not any(bool(tensor) for name, tensor in state.items() if name.endswith("initialized"))


def test_float_networks_have_no_scales_to_speak_of(tiny: Tiny, begun: Callable[..., Any]) -> None:
    tiny({"quant.bits": 32, "name": "float"})
    tiny({"name": "quantized"})
    assert begun({"train.init": "float"})[1] == "starts from the weights of float"
    assert begun({"train.init": "quantized", "quant.bits": 32})[1] == "starts from the weights of quantized"


def test_grids_of_other_layers_or_another_n_differ(tiny_config: Any) -> None:
    config = tiny_config({"quant.quantizer": "pow2", "quant.n": 4})
    other = tiny_config({"quant.quantizer": "pow2", "quant.n": 5})
    assert grid_differences(config, other) == ["n 4 -> 5"]
    assert grid_differences(config, config) == []
    one, other = tiny_config({"model.name": "conv 4 3x3, fc"}), tiny_config({"model.name": "conv 4 3x3 pad 1, fc"})
    assert grid_differences(one, other) == ["other layers"]


def test_a_run_taken_further_is_resumed_exactly_without_the_run_it_started_from(
    tiny: Tiny, begun: Callable[..., Any], silent_display: Any, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    source = tiny({"name": "source", "train.epochs": 1})
    further = {"train.init": "source", "train.lr": 0.005, "seed": 1}
    whole = tiny(further | {"name": "whole"})
    part = tiny(further | {"name": "part"}, display=silent_display(3))
    assert part.interrupted
    begun(further)  # killed before its first epoch ended
    shutil.rmtree(source.run_dir)
    one = load_checkpoint(whole.run_dir / runs.LAST_FILE)
    for name in ("part", "begun"):
        experiment.resume(name, tmp_path, tmp_path / "runs", silent_display(), {}, None)
        other = load_checkpoint(tmp_path / "runs" / name / runs.LAST_FILE)
        assert_same(one.model, other.model)
        assert_same(one.trainer, other.trainer, ignore=MEASURED)
    assert "started from source" in describe(whole.run_dir, whole.checkpoint, 200, 360)


def test_a_header_names_what_makes_a_run_different(tiny: Tiny) -> None:
    plain = tiny({"name": "plain", "train.epochs": 1})
    said = describe(plain.run_dir, plain.checkpoint, 200, 360)
    for word in ("surrogate", "operators", "initialization", "flips", "started", "n ="):
        assert word not in said
    settings = {
        "quant.quantizer": "pow2",
        "quant.n": 5,
        "quant.surrogate": "tanh",
        "quant.layer_bits": {"conv1": 8},
        "model.widths": [4, 8, 16],
        "model.ops": "explicit",
        "model.init": "xavier",
        "data.flip": True,
        "data.augment": "affine",
        "train.optimizer": "adamw",
        "train.schedule": "cosine",
        "train.epochs": 1,
    }
    one = tiny(settings)
    name = "lenet-nano-4-8-16-w4a4-conv1w8-pow2-tanh-n5-explicit-xavier-adamw-cosine-digits-affine-s0"
    assert one.run_dir.name == name
    said = describe(one.run_dir, one.checkpoint, 200, 360)
    for part in (
        "lenet-nano-4-8-16, ",
        "4-bit weights, 4-bit activations (pow2, n = 5, tanh surrogate), conv1 8 bits, explicit operators, xavier",
        "affine augmentation, flips",
        "adamw 0.002 cosine",
    ):
        assert part in said
    pictures = one.checkpoint.config.data.model_copy(update={"image_size": "32x32", "color": True})
    config = one.checkpoint.config.model_copy(update={"data": pictures})
    said = describe(one.run_dir, dataclasses.replace(one.checkpoint, config=config), 200, 360)
    assert "360 test images 32x32 color, affine" in said


def test_another_network_other_classes_and_broken_or_packed_files_are_refused(
    tiny: Tiny, main: Callable[..., Any], tmp_path: Path
) -> None:
    source = tiny({"name": "source", "train.epochs": 1})
    with pytest.raises(ConfigError, match=r"--init source: its conv1\.weight has shape .*choose the same --model"):
        tiny({"train.init": "source", "model.name": "lenet"})
    model = source.checkpoint.model
    three = model | {name: model[name][:3] for name in ("fc2.weight", "fc2.bias")}
    save_checkpoint(tmp_path / "three.pt", dataclasses.replace(source.checkpoint, model=three))
    with pytest.raises(ConfigError, match=r"its fc2\.weight has shape \(3, 32\)"):
        tiny({"train.init": str(tmp_path / "three.pt")})
    broken = model | {"act1.quantizer.scale": torch.ones(3)}
    save_checkpoint(tmp_path / "broken.pt", dataclasses.replace(source.checkpoint, model=broken))
    with pytest.raises(CheckpointError, match=r"broken\.pt: its scales do not fit"):
        tiny({"train.init": str(tmp_path / "broken.pt")})
    packed = tmp_path / "packed"
    assert main("export", source.run_dir, "--to", "packed", "--no-verify", "--out", packed).rc == 0
    with pytest.raises(CheckpointError, match="is a packed file: it has the integers, but not the weights"):
        tiny({"train.init": str(packed / "model.safetensors")})
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["source"]
