"""Cells: every configuration once, and a cell stopped anywhere equals one that was not."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.data import load_dataset
from qattrain.errors import ConfigError, DataError, TrainingError
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.experiments.cells import cached_load, run_cell, settle
from qattrain.experiments.folder import RESULT_FILE, Cell
from qattrain.experiments.grid import expand, read_grid
from qattrain.experiments.kinds import RESULT_KIND
from qattrain.files import records
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint

TINY = ["data.dataset=digits", "model.name=lenet-nano", "data.limit_train=100", "train.epochs=2", "seed=[0]"]


def cells_of(tmp_path: Path, *assignments: str) -> list[Cell]:
    return settle(expand(read_grid(None, [*TINY, *assignments], {})), 1, tmp_path, cached_load)


def run(cell: Cell, folder: Path, stop: threading.Event | None = None, report: Any = lambda _: None) -> bool:
    return run_cell(cell, folder, folder, cached_load, stop or threading.Event(), report)


def test_every_value_is_settled_and_the_threads_are_the_workers(tmp_path: Path) -> None:
    (cell,) = settle(expand(read_grid(None, TINY, {})), 3, tmp_path, cached_load)
    train = cell.config["train"]
    assert (cell.config["quant"]["bits"], train["batch_size"], train["lr"], train["threads"]) == (4, 32, 0.05, 3)
    assert train["precision"] != "auto"


def test_float_points_that_differ_in_what_float_ignores_are_one_cell(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, 'quant.quantizer=["lsq","affine"]', "quant.bits=[1,32]", "ptq.bits=[8]")
    found = [(cell.method, cell.config["quant"]["quantizer"]) for cell in cells]
    assert found == [("fp32", "lsq"), ("qat", "lsq"), ("qat", "affine"), ("ptq", "lsq"), ("ptq", "affine")]
    assert {cell.source for cell in cells if cell.method == "ptq"} == {cells[0].name}


def test_the_float_cell_is_added_where_the_grid_lacks_it(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "ptq.bits=[8,4]", "seed=[0,1]", 'quant.surrogate=["clipped","tanh"]')
    assert [cell.method for cell in cells] == ["fp32"] * 2 + ["ptq"] * 4
    assert {cell.config["ptq"]["source_epochs"] for cell in cells if cell.config["ptq"]} == {2}


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (('train.lr=["auto",0.05]',), ("duplicate cell", "train.lr=auto", "train.lr=0.05")),
        (('quant.quantizer=["lsq","ternary"]', "quant.bits=[2,4]"), ("quant.bits=4", "ternary")),
        (('model.name=["lenet","nosuch"]',), ("model.name=nosuch", "lenet-small")),
        (('train.optimizer=["sgd","nosuch"]',), ("train.optimizer=nosuch", "adamw")),
        (('train.schedule=["nosuch"]',), ("nosuch", "one-cycle")),
        (('data.augment=["nosuch"]',), ("nosuch", "shift")),
        (("ptq.bits=[32]",), ("32", "1 to 8")),
        (("ptq.bits=[4]", 'ptq.calibration="nosuch"'), ("nosuch", "minmax")),
    ],
)
def test_what_is_wrong_with_a_point_shows_before_anything_is_trained(
    tmp_path: Path, assignments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        cells_of(tmp_path, *assignments)
    assert [part for part in said if part not in str(caught.value)] == []


def test_a_notice_is_kept_with_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qattrain.data.mnist.answering_mirror", lambda _source: None)
    for cell in cells_of(tmp_path, "data.dataset=auto", "ptq.bits=[8]", "train.epochs=1"):
        assert cell.notice
        assert run(cell, tmp_path)
        assert load_checkpoint(tmp_path / cell.name / runs.LAST_FILE).notice == cell.notice


def test_a_dataset_that_is_not_there_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"junk")
    with pytest.raises(DataError, match="train-images"):
        cells_of(tmp_path, 'data.dataset="mnist"', "seed=[0]")


def test_a_stopped_cell_goes_on_and_equals_one_that_was_not(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    (cell,) = cells_of(tmp_path, "seed=[3]")
    shares: list[float] = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert run(cell, tmp_path / "whole", report=shares.append)
    stop = threading.Event()
    stop.set()
    stops = 0
    while not run(cell, tmp_path / "parts", stop):  # a step at a time
        stops += 1
        assert not (tmp_path / "parts" / cell.name / RESULT_FILE).exists()
    assert stops == 7  # 2 epochs of 4 steps
    one, other = (load_checkpoint(tmp_path / name / cell.name / runs.LAST_FILE) for name in ("whole", "parts"))
    assert_same(one.model, other.model)
    assert_same(one.trainer, other.trainer, ignore=("seconds",))
    results = [
        records.read(tmp_path / name / cell.name / RESULT_FILE, RESULT_KIND) or {} for name in ("whole", "parts")
    ]
    assert results[0] | {"images_per_second": 0} == results[1] | {"images_per_second": 0}
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1


def test_a_result_tells_what_evaluating_the_cell_finds(tmp_path: Path) -> None:
    for cell in cells_of(tmp_path, "ptq.bits=[3]", "train.epochs=1"):
        assert run(cell, tmp_path)
        path = tmp_path / cell.name / runs.LAST_FILE
        result, outcome = json.loads((path.parent / RESULT_FILE).read_text()), evaluate_checkpoint(path, tmp_path)
        assert (result["accuracy"], result["loss"]) == (outcome.evaluation.accuracy, outcome.evaluation.loss)
        assert result["epochs"] == (0 if cell.source else 1)
        assert load_checkpoint(path).config.name == cell.name
        weights = 8 * 25 + 16 * 8 * 25 + 32 * 256 + 10 * 32
        assert result["weight_bytes"] == (weights * 3 / 8 if cell.source else weights * 4)


def test_what_a_killed_process_left_without_a_checkpoint_is_started_afresh(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "train.epochs=1")
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / runs.CONFIG_FILE).write_text("{")
    assert run(cell, tmp_path)


def test_a_cell_whose_loss_diverges_is_an_error(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "train.lr=1e30")
    with pytest.raises(TrainingError, match="loss became"):
        run(cell, tmp_path)


def test_a_worker_loads_a_dataset_once(tmp_path: Path) -> None:
    assert cached_load("digits", tmp_path) is cached_load("digits", tmp_path)
    assert load_dataset("digits", tmp_path) is not load_dataset("digits", tmp_path)
