"""compare: what is missing is trained, what is there is reused, and every number is against the first row."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import PtqConfig, QuantConfig
from qattrain.data import DATASETS, load_dataset
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.evaluation.metrics import mcnemar_p, wilson_interval
from qattrain.experiments.comparison import Comparison, Row
from qattrain.files.locks import folder_lock
from qattrain.report.drawing import comparison_figure
from qattrain.runs.checkpoint import load_checkpoint
from qattrain.training.ptq import settle_ptq

SMALL = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "200", "--epochs", "1", "--threads", "1")
WEIGHTS = 8 * 25 + 16 * 8 * 25 + 32 * 256 + 10 * 32  # of lenet-nano
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def compare(tmp_path: Path, main: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        done = main("compare", *arguments, "--runs-dir", tmp_path / "runs", "--json")
        assert done.rc == 0, done
        document: dict[str, Any] = json.loads(done.stdout)
        return document | {"stderr": done.stderr}

    return run


def refused(main: Callable[..., Any], *arguments: object, code: int = 2) -> str:
    done = main("compare", *arguments)
    assert done.rc == code, done
    assert not done.stdout
    line: str = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_missing_runs_are_trained_and_found_again(compare: Callable[..., Any], tmp_path: Path) -> None:
    first = compare("fp32", "vs", "ptq", "vs", "qat", "--bits", 3, *SMALL)
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 4  # three runs and the comparison
    assert first["stderr"].count("training one") == 2
    second = compare("fp32", "ptq", "qat", "--bits", 3, *SMALL)
    assert sorted((tmp_path / "runs").iterdir()) == folders
    assert second["stderr"].count("reused") == 3
    assert second["rows"] == first["rows"]
    assert first["baseline"] == "fp32"
    assert [row["method"] for row in first["rows"]] == ["fp32", "ptq", "qat"]
    assert [(row["bits"], row["act_bits"]) for row in first["rows"]] == [(32, 32), (3, 3), (3, 3)]

    outcomes = [evaluate_checkpoint(Path(row["run_dir"]) / "last.pt", tmp_path) for row in first["rows"]]
    hits = [outcome.evaluation.predictions == outcome.test.labels for outcome in outcomes]
    for row, outcome, hit in zip(first["rows"], outcomes, hits, strict=True):
        assert row["accuracy"] == outcome.evaluation.correct / 360
        assert tuple(row["accuracy_ci95"]) == wilson_interval(outcome.evaluation.correct, 360)
        assert row["delta"] == row["accuracy"] - first["rows"][0]["accuracy"]
        assert row["mcnemar_p"] == mcnemar_p(hits[0], hit)
        assert row["loss"] == outcome.evaluation.loss
    layer_bytes = [25, 400, 1024, 40]  # of a bit of every weight, layer by layer
    assert [row["weight_bytes"] for row in first["rows"]] == [4 * WEIGHTS, 3 * sum(layer_bytes), 3 * sum(layer_bytes)]
    assert first["rows"][1]["images_per_second"] is None
    # Each method has its own default quantizer; one that is asked for goes for both.
    configs = [load_checkpoint(Path(row["run_dir"]) / "last.pt").config.quant.quantizer for row in first["rows"][1:]]
    assert configs == ["affine", "lsq"]

    (folder,) = (tmp_path / "runs").glob("compare-*")
    assert sorted(path.name for path in folder.iterdir()) == ["compare.json", "compare.png"]
    assert (folder / "compare.png").read_bytes().startswith(PNG)
    written = json.loads((folder / "compare.json").read_text())
    assert written["rows"] == first["rows"]
    assert (written["dataset"], written["test_images"], written["notice"]) == ("digits", 360, None)


def test_another_setting_is_another_run_and_the_float_run_is_shared(
    compare: Callable[..., Any], tmp_path: Path
) -> None:
    compare("fp32", "qat", *SMALL)
    more = compare("fp32", "qat", *SMALL, "--quantizer", "pow2")
    assert more["stderr"].count("reused") == 1
    names = {path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith("compare-")}
    stem = "lenet-nano-{}-digits-s0"
    assert names == {stem.format(middle) for middle in ("w32a32-float", "w4a4-lsq", "w4a4-pow2")}
    assert len(list((tmp_path / "runs").glob("compare-*"))) == 2


def test_a_stopped_run_is_not_taken_for_a_finished_one_but_resumed(
    compare: Callable[..., Any], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    whole = tiny({"quant.bits": 32}, runs_dir=tmp_path / "whole").checkpoint.history
    tiny({"quant.bits": 32}, runs_dir=tmp_path / "runs", stop_after=1)
    document = compare("fp32", "vs", "fp32", *SMALL, "--epochs", 2)
    assert "not finished, its configuration is the same; resuming it" in document["stderr"]
    assert document["rows"][0]["run_dir"].endswith("-s0")
    assert document["rows"][0]["accuracy"] == whole[-1]["test_accuracy"]
    assert (document["rows"][1]["delta"], document["rows"][1]["mcnemar_p"]) == (0, 1)


def test_a_stopped_run_that_another_process_writes_is_left_alone(
    compare: Callable[..., Any], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    stopped = tiny({"quant.bits": 32}, runs_dir=tmp_path / "runs", stop_after=1)
    with folder_lock(stopped.run_dir):
        document = compare("fp32", "vs", "fp32", *SMALL, "--epochs", 2)
    assert "no run with this configuration: training one" in document["stderr"]
    assert document["rows"][0]["run_dir"].endswith("-s0-2")


def test_checkpoints_and_runs_are_compared_as_they_are(
    compare: Callable[..., Any], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    runs_dir = tmp_path / "runs"
    one = tiny({"train.epochs": 1, "name": "one"}, runs_dir=runs_dir)
    other = tiny({"train.epochs": 1, "seed": 1, "name": "other"}, runs_dir=tmp_path / "elsewhere")
    document = compare("one", "vs", other.run_dir / "last.pt", "vs", one.run_dir)
    assert [row["method"] for row in document["rows"]] == ["one", "other", "one"]
    assert document["baseline"] == "one"
    assert [path.name for path in runs_dir.iterdir() if not path.name.startswith("compare-")] == ["one"]


def test_runs_with_other_test_images_are_refused(
    main: Callable[..., Any], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_dataset("digits", Path())
    monkeypatch.setitem(DATASETS, "kmnist", lambda _folder: dataclasses.replace(digits, name="kmnist"))
    one = tiny({"train.epochs": 1}).run_dir
    fewer = tiny({"train.epochs": 1, "data.limit_test": 100}).run_dir
    other = tiny({"train.epochs": 1, "data.dataset": "kmnist"}).run_dir
    line = refused(main, one, "vs", other)
    for text in ("kmnist", "digits", "same test images"):
        assert text in line
    line = refused(main, one, "vs", fewer)
    for text in ("100 images", "360"):
        assert text in line
    assert refused(main, one, "nosuch", code=1).count("nosuch") == 1


@pytest.mark.parametrize(
    ("assignment", "found"),
    [("name=mine", "name = 'mine'"), ("train.init=x.pt", "train.init = 'x.pt'"), ("ptq={}", "ptq")],
)
def test_settings_that_cannot_be_honoured_are_refused(
    main: Callable[..., Any], tmp_path: Path, assignment: str, found: str
) -> None:
    line = refused(main, "fp32", "qat", *SMALL, "--set", assignment, "--runs-dir", tmp_path / "runs")
    assert found in line
    assert not (tmp_path / "runs").exists()


def test_a_quantization_of_an_unfinished_run_is_not_the_finished_ones(
    tiny: Callable[..., Any], silent_display: Any
) -> None:
    settings = {"quant.bits": 32, "train.epochs": 1}
    stopped, finished = tiny(settings, display=silent_display(1)), tiny(settings)
    assert stopped.interrupted
    configs = [
        settle_ptq(run.checkpoint.config, len(run.checkpoint.history), "a run", QuantConfig(bits=8), PtqConfig(), None)
        for run in (stopped, finished)
    ]
    assert configs[0] != configs[1]  # else compare would reuse the one for the other


@pytest.mark.parametrize(("correct", "total"), [(10, 10), (0, 7), (3, 7)])
def test_the_figure_can_show_any_accuracy_and_any_name(correct: int, total: int) -> None:
    low_high = wilson_interval(correct, total)
    name = "_a $x^$ \u6f22"  # hidden from legends, no formula, not in the font
    row = Row(name, "a", 4, 4, correct / total, low_high, 0.0, 1.0, 0.1, 100, None)
    histories = [[{"epoch": 1, "test_accuracy": correct / total}, {"epoch": 2, "test_accuracy": correct / total}], []]
    comparison = Comparison("digits", "a notice", total, [row, row], histories, "key")
    assert comparison_figure(comparison).startswith(PNG)
