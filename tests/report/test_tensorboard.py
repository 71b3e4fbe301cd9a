"""`--tensorboard`: the event files agree with the run, also after an interruption."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qattrain.config import ModelConfig
from qattrain.report.display import TENSORBOARD_FOLDER, tensorboard_display
from qattrain.runs.checkpoint import load_checkpoint, restore_model
from qattrain.training import run as experiment

WEIGHT_LAYERS = ModelConfig(name="lenet-nano").chain.weight_layers
SMALL = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "200", "--threads", "1", "--bits", "3")


def events(run_dir: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sizes = {"histograms": 0, "scalars": 0}  # 0: all of them
    found = accumulator.EventAccumulator(str(run_dir / TENSORBOARD_FOLDER), sizes)
    found.Reload()
    return found


def scalars(found: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def recorded(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The values as event files store them: in float32."""
    names = [name for name in history[0] if name not in ("epoch", "warnings")]  # warnings are text
    return {name: [(record["epoch"], float(np.float32(record[name]))) for record in history] for name in names}


def test_scalars_and_histograms_are_those_of_the_run_which_is_the_same_without_them(
    main: Callable[..., Any], tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    results = []
    for runs_dir, flags in (("with", ["--tensorboard"]), ("without", [])):
        done = main("train", *SMALL, "--epochs", 2, "--runs-dir", tmp_path / runs_dir, "--json", *flags)
        assert done.rc == 0, done
        results.append(Path(json.loads(done.stdout)["run_dir"]))
    with_it, without = (load_checkpoint(run_dir / "last.pt") for run_dir in results)
    assert_same(with_it.model, without.model)
    assert sorted(path.name for path in results[1].iterdir()) == ["config.json", "last.pt", "metrics.jsonl"]

    found = events(results[0])
    assert scalars(found) == recorded(with_it.history)
    model = restore_model(with_it, "test").eval()
    for name in WEIGHT_LAYERS:
        weight, codes = getattr(model, name).weight, getattr(model, name).quantized_weight().codes
        for tag, values in ((f"weights/{name}", weight), (f"codes/{name}", codes)):
            assert [event.step for event in found.Histograms(tag)] == [1, 2]
            last = found.Histograms(tag)[-1].histogram_value
            assert (last.num, last.min, last.max) == (values.numel(), values.min().item(), values.max().item())
        bars = {round(limit - 0.5): count for limit, count in zip(last.bucket_limit, last.bucket, strict=True) if count}
        assert bars == {int(code): int((codes == code).sum()) for code in codes.unique()}


def test_an_epoch_that_was_written_but_not_saved_stands_there_once_after_resuming(
    tiny_config: Callable[..., Any], tmp_path: Path, silent_display: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_args: object) -> None:
        raise RuntimeError("killed")

    config = tiny_config({"train.epochs": 3, "name": "run"})
    with tensorboard_display(silent_display()) as display:
        experiment.train(config, tmp_path, tmp_path, display, stop_after=1)
    with monkeypatch.context() as patch, tensorboard_display(silent_display()) as display:
        patch.setattr("qattrain.training.session.Session.save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            experiment.resume("run", tmp_path, tmp_path, display, {}, None)
    assert [step for step, _ in scalars(events(tmp_path / "run"))["test_loss"]] == [1, 2]
    with tensorboard_display(silent_display()) as display:
        result = experiment.resume("run", tmp_path, tmp_path, display, {}, None)
    found = events(tmp_path / "run")
    assert scalars(found) == recorded(result.checkpoint.history)
    assert [event.step for event in found.Histograms("codes/conv1")] == [1, 2, 3]


def test_what_a_run_did_before_it_was_asked_for_is_written_down_too(
    tiny: Callable[..., Any], tmp_path: Path, main: Callable[..., Any]
) -> None:
    run_dir = tiny({"quant.bits": 32}, stop_after=1).run_dir
    done = main("train", "--resume", run_dir, "--tensorboard", "--json", "--data-dir", tmp_path)
    assert done.rc == 0, done
    found = events(run_dir)
    assert scalars(found) == recorded(load_checkpoint(run_dir / "last.pt").history)
    assert found.Tags()["histograms"] == [f"weights/{name}" for name in WEIGHT_LAYERS]  # a float network has no codes


def test_without_the_extra_nothing_is_trained_and_the_remedy_is_named(
    main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = main("train", *SMALL, "--tensorboard", "--runs-dir", tmp_path / "runs")
    assert done.rc == 1
    assert "pip install 'qattrain[tensorboard]'" in done.error
    assert not (tmp_path / "runs").exists()


def test_a_stopped_run_names_the_flag_in_the_line_that_goes_on(main: Callable[..., Any], tmp_path: Path) -> None:
    done = main("train", *SMALL, "--epochs", 2, "--stop-after", 1, "--tensorboard", "--runs-dir", tmp_path)
    assert done.rc == 0, done
    assert "--tensorboard" in done.stdout.splitlines()[-1]
