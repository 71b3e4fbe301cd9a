"""Files of every version that there ever was are read, to the same logits and the same rows.

Each folder of `data` was written by the qattrain of its time, with lenet-nano where there were no chains yet:

    1-first         the first checkpoints, configurations and metrics; a network quantized after training
    2-sweeps        the first sweeps; their checkpoints are left out
    3-chains        the first checkpoints with the images' shape, one of them stopped after its first epoch
    4-warnings      histories with warnings
    5-before-seals  the last files without a digest; the packed file is of version 2

`logits.json` has what that version computed. A packed file of version 1, and a checkpoint between 1 and 3, lie beside
the tests of integer and runs.
"""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qattrain.config import parse_config
from qattrain.config.sources import build_config
from qattrain.experiments.folder import SweepFolder, csv_text, sweep_document
from qattrain.integer.packed import load_packed
from qattrain.report.sources import find_sources
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint, restore_model
from qattrain.training import run as experiment

DATA = Path(__file__).parent / "data"
NETWORKS = sorted(path.parent for path in DATA.glob("*/runs/*/last.pt"))
SWEEPS = sorted(path.parent for path in DATA.glob("*/runs/*/plan.json"))
IMAGES = (np.arange(2 * 784) ** 2 % 251).astype(np.uint8).reshape(2, 1, 28, 28)
IMAGES[1] //= 3


def name(path: Path) -> str:
    return str(path.relative_to(DATA))


def expected(path: Path) -> list[list[float]]:
    found: dict[str, list[list[float]]] = json.loads((path.parents[1] / "logits.json").read_text())
    return found[path.name]


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """A copy of the version's runs, which may be written."""

    def make(path: Path) -> Path:
        shutil.copytree(path.parent, tmp_path / "runs")
        return tmp_path / "runs" / path.name

    return make


def test_there_are_files_of_five_times() -> None:
    assert len(NETWORKS) == 6
    assert len(SWEEPS) == 3
    assert len({path.parents[1].name for path in NETWORKS + SWEEPS}) == 5


@pytest.mark.parametrize("path", NETWORKS, ids=name)
def test_a_checkpoint_is_read_to_the_same_logits(path: Path) -> None:
    network = restore_model(load_checkpoint(path / runs.LAST_FILE), str(path)).eval()
    with torch.no_grad():
        assert network(torch.from_numpy(IMAGES)).double().tolist() == expected(path)


@pytest.mark.parametrize("path", NETWORKS, ids=name)
def test_a_run_is_listed_and_its_configuration_can_be_used_again(path: Path) -> None:
    checkpoint = load_checkpoint(path / runs.LAST_FILE)
    assert runs.read_metrics(path) == checkpoint.history
    assert parse_config(runs.read_record(path)["config"], "old") == checkpoint.config
    summary = next(one for one in runs.list_runs(path.parent) if one.name == path.name)
    assert summary.damaged is None
    assert summary.accuracy == checkpoint.history[-1]["test_accuracy"]
    config = build_config(path / runs.CONFIG_FILE, [], {})
    assert config.model_copy(update={"name": checkpoint.config.name}) == checkpoint.config


@pytest.mark.parametrize("path", [path for path in NETWORKS if path.name == "stopped"], ids=name)
def test_a_stopped_run_is_resumed_to_its_end(path: Path, copy: Any, silent_display: Any) -> None:
    run_dir = copy(path)
    before = load_checkpoint(run_dir / runs.LAST_FILE)
    result = experiment.resume(str(run_dir), run_dir, run_dir.parent, silent_display(), {}, None)
    assert result.checkpoint.finished
    assert result.checkpoint.history[0] == before.history[0]
    assert [record["epoch"] for record in runs.read_metrics(run_dir)] == [1, 2]


@pytest.mark.parametrize("path", sorted(DATA.glob("*/model.safetensors")), ids=name)
def test_a_packed_file_is_read_to_the_same_logits(path: Path) -> None:
    assert load_packed(path)[0].run(IMAGES).tolist() == json.loads((path.parent / "logits.json").read_text())["packed"]


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_a_sweep_is_read_to_the_same_rows(path: Path, copy: Any) -> None:
    folder = SweepFolder(copy(path))
    folder.make()
    plan = folder.read_plan()
    assert plan is not None
    for cell in plan.cells:
        (folder.cells / cell.name / runs.LAST_FILE).touch()  # left out of the data
    written = json.loads((path / "sweep.json").read_text())
    document = sweep_document(plan, folder, [])
    for row, old in zip(document["rows"], written["rows"], strict=True):
        assert {key: row[key] for key in old} == old
    assert [group["accuracy_mean"] for group in document["groups"]] == [g["accuracy_mean"] for g in written["groups"]]
    rows = list(csv.DictReader(io.StringIO(csv_text(document["rows"]))))
    for row, old in zip(rows, csv.DictReader(io.StringIO((path / "sweep.csv").read_text())), strict=True):
        assert {key: row[key] for key in old} == old


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_a_report_takes_an_old_sweep(path: Path) -> None:
    _, [sweep] = find_sources([str(path)], path.parent)
    assert len(sweep.finished) == 3
