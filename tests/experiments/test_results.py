"""Results: means and deviations over seeds, the Pareto front, and files others can read."""

import csv
import io
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import ConfigError, TrainingError
from qattrain.experiments.folder import (
    PICTURES,
    RESULT_FILE,
    Cell,
    Plan,
    SweepFolder,
    csv_text,
    is_written,
    pareto_front,
    read_reference,
    sweep_document,
    write_results,
)
from qattrain.experiments.kinds import SWEEP_KIND
from qattrain.files import records
from qattrain.runs import folder as runs

ROW_FIELDS = (
    "run_dir method bits act_bits quantizer model dataset seed epochs accuracy loss weight_bytes images_per_second "
    "status error warnings settings"
)
GROUP_FIELDS = (
    "method bits act_bits quantizer model dataset epochs settings n accuracy_mean accuracy_std loss_mean weight_bytes "
    "images_per_second"
)
ACCURACIES = [0.9, 0.95, 0.94]


@pytest.fixture
def document(tmp_path: Path, tiny_config: Callable[..., Any]) -> dict[str, Any]:
    """Three finished seeds at one rate, one at another, one failed, one not begun, a float one."""
    folder = SweepFolder(tmp_path / "study")
    folder.make()
    cells = []
    settled = {"quant.bits": 4, "quant.act_bits": 4, "train.batch_size": 32, "train.weight_decay": 0.0}
    for name, seed, rate, bits in [("a", 0, 0.1, 4), ("b", 1, 0.1, 4), ("c", 2, 0.1, 4), ("d", 0, 0.2, 4)]:
        settings = settled | {"seed": seed, "train.lr": rate, "quant.bits": bits, "quant.act_bits": bits}
        cells.append(Cell(name, tiny_config(settings).model_dump(mode="json"), None))
    cells.append(Cell("failed", tiny_config({"train.lr": 0.3} | settled).model_dump(mode="json"), None))
    cells.append(Cell("waits", tiny_config({"train.lr": 0.4} | settled).model_dump(mode="json"), "no MNIST"))
    float_config = tiny_config(settled | {"quant.bits": 32, "quant.act_bits": 32, "train.lr": 0.1})
    cells.append(Cell("float", float_config.model_dump(mode="json"), None))
    folder.set_failure("failed", "the loss became nan")
    for name, accuracy in [*zip("abc", ACCURACIES, strict=True), ("d", 0.8), ("float", 0.99)]:
        (folder.cells / name).mkdir()
        (folder.cells / name / runs.LAST_FILE).touch()
        result = {"epochs": 2, "accuracy": accuracy, "loss": 1 - accuracy, "train_loss": 0.0, "weight_bytes": 100}
        result |= {"images_per_second": 10.0} | ({"warnings": ["dead"]} if name == "d" else {})
        (folder.cells / name / RESULT_FILE).write_text(json.dumps(result))
    plan = Plan("asked", ["seed", "train.lr", "quant.bits"], cells)
    folder.write_plan(plan)
    return sweep_document(plan, folder, [])


def test_a_row_a_cell_with_what_is_known_of_it(document: dict[str, Any]) -> None:
    rows = {Path(row["run_dir"]).name: row for row in document["rows"]}
    assert all(" ".join(row) == ROW_FIELDS for row in rows.values())
    assert (document["kind"], document["name"], document["cells"]) == ("sweep", "study", 7)
    assert (document["finished"], document["failed"], document["unfinished"]) == (5, 1, 1)
    assert (rows["a"]["run_dir"], rows["a"]["settings"], rows["a"]["status"]) == (
        "cells/a",
        {"train.lr": 0.1},
        "finished",
    )
    assert (rows["failed"]["error"], rows["failed"]["accuracy"]) == ("the loss became nan", None)
    assert (rows["waits"]["status"], rows["waits"]["error"]) == ("unfinished", None)
    assert [rows[name]["warnings"] for name in ("a", "d", "waits")] == [None, ["dead"], None]  # a: of an older version
    assert (rows["float"]["method"], rows["float"]["quantizer"]) == ("fp32", "float")
    assert document["notice"] == "no MNIST"


@pytest.mark.usefixtures("document")
def test_cells_that_ended_with_a_warning_are_counted_and_the_first_is_named(
    tmp_path: Path, main: Callable[..., Any]
) -> None:
    done = main("sweep", "--report-only", "--name", "study", "--runs-dir", tmp_path)
    assert done.rc == 0
    assert "1 of 7 cells ended with a warning" in done.stderr
    assert "cells/d: dead" in done.stderr


def test_groups_are_seeds_of_equal_settings_with_mean_and_sample_deviation(document: dict[str, Any]) -> None:
    assert all(" ".join(group) == GROUP_FIELDS for group in document["groups"])
    seeds, alone, float_ = document["groups"]
    assert seeds["n"] == 3
    assert seeds["accuracy_mean"] == pytest.approx(sum(ACCURACIES) / 3)
    assert seeds["accuracy_std"] == pytest.approx(statistics.stdev(ACCURACIES))
    assert (alone["n"], alone["accuracy_std"], alone["settings"]) == (1, None, {"train.lr": 0.2})
    assert float_["method"] == "fp32"


def test_the_csv_has_the_rows_and_a_column_a_setting(document: dict[str, Any]) -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(document["rows"]))))
    assert list(found[0]) == [*ROW_FIELDS.split()[:-1], "train.lr"]
    assert [row["train.lr"] for row in found] == ["0.1", "0.1", "0.1", "0.2", "0.3", "0.4", "0.1"]
    assert [float(row["accuracy"]) for row in found if row["accuracy"]] == [*ACCURACIES, 0.8, 0.99]
    assert found[4]["error"] == "the loss became nan"


def test_results_are_written_once_and_known_again(document: dict[str, Any], tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "study")
    pictures = dict.fromkeys(PICTURES, b"x")
    assert not is_written(folder, document, PICTURES)
    write_results(folder, document, pictures)
    assert is_written(folder, document, PICTURES)
    assert records.read(folder.path / "sweep.json", SWEEP_KIND) == document
    assert not is_written(folder, document | {"finished": 6}, PICTURES)
    (folder.path / PICTURES[0]).unlink()
    assert not is_written(folder, document, PICTURES)
    with pytest.raises(TrainingError, match="nowhere"):  # the world refuses, nobody asked wrongly
        write_results(SweepFolder(tmp_path / "nowhere"), document, {})


def test_the_front_holds_what_nothing_smaller_or_as_small_beats() -> None:
    points = [(10, 0.5), (10, 0.6), (20, 0.55), (20, 0.6), (30, 0.9), (40, 0.9), (50, 0.95)]
    groups = [{"weight_bytes": size, "accuracy_mean": accuracy} for size, accuracy in points]
    front = [(group["weight_bytes"], group["accuracy_mean"]) for group in pareto_front(groups)]
    assert front == [(10, 0.6), (30, 0.9), (50, 0.95)]
    for size, accuracy in points:
        beaten = any(s <= size and a >= accuracy and (s, a) != (size, accuracy) for s, a in points)
        assert ((size, accuracy) in front) != beaten


def test_reference_points_come_from_csv_and_toml_alike(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,weight_bytes,accuracy\nours,3200,0.9892\n")
    (tmp_path / "a.toml").write_text('[[point]]\nname = "ours"\nweight_bytes = 3200\naccuracy = 0.9892\n')
    expected = [{"name": "ours", "weight_bytes": 3200, "accuracy": 0.9892}]
    assert read_reference(tmp_path / "a.csv") == read_reference(tmp_path / "a.toml") == expected


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.csv", "", "no points"),
        ("a.csv", "name,bytes\nx,3\n", "weight_bytes"),
        ("a.csv", "name,weight_bytes,accuracy\nx,3\n", "accuracy"),
        ("a.csv", "name,weight_bytes,accuracy\nx,3,98.9\n", "fractions"),
        ("a.csv", "name,weight_bytes,accuracy\nx,0,0.5\n", "1 byte"),
        ("a.csv", "name,weight_bytes,accuracy\nx,many,0.5\n", "many"),
        ("a.toml", "", "point"),
        ("a.toml", "point = 3\n", "[[point]]"),
        ("a.toml", "= 3\n", "a.toml"),
    ],
)
def test_a_reference_file_that_is_none_is_refused(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_reference(tmp_path / file)
    assert said in str(caught.value)
    assert file in str(caught.value)
