"""`qattrain sweep` as a user meets it: options, files, JSON, the same command again, and one line for every mistake."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.experiments.folder import PICTURES
from qattrain.experiments.grid import expand, read_grid
from qattrain.experiments.kinds import SWEEP_KIND
from qattrain.files import records
from qattrain.runs import folder as runs

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "100", "--epochs", "1", "--threads", "1")
SMALL += ("--workers", "1")


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def test_a_sweep_ends_in_tables_pictures_and_runs_like_any_other(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = ("--bits", "2,4", "--ptq", "8", "--name", "study")
    first = main("sweep", *SMALL, *grid, "--json")
    assert first.rc == 0, first
    document = json.loads(first.stdout)
    assert [row["method"] for row in document["rows"]] == ["fp32", "qat", "qat", "ptq"]
    folder = tmp_path / "runs" / "study"
    assert document == records.read(folder / "sweep.json", SWEEP_KIND)
    assert set(files(folder)) == {"plan.json", "sweep.json", "sweep.csv", *PICTURES}

    # The same command again finds everything, and writes nothing.
    before = files(folder)
    again = main("sweep", *SMALL, *grid)
    assert again.rc == 0
    assert "saved in" in again.stdout
    assert "4 finished before" in again.stderr
    assert files(folder) == before

    # Every cell is a run: by its folder, and listed beside the others.
    for row in document["rows"]:
        evaluated = json.loads(main("eval", folder / row["run_dir"], "--json").stdout)
        assert (evaluated["accuracy"], evaluated["loss"]) == (row["accuracy"], row["loss"])
    assert main("inspect", f"study/{document['rows'][1]['run_dir']}").rc == 0
    listed = json.loads(main("runs", "--runs-dir", folder / "cells", "--json").stdout)["runs"]
    assert {run["name"] for run in listed} == {Path(row["run_dir"]).name for row in document["rows"]}
    text = main("runs")
    assert text.rc == 0
    assert "study" in text.stdout

    # --report-only remakes them, with others' points, by name or by the same settings.
    (tmp_path / "others.csv").write_text("name,weight_bytes,accuracy\nBitNetMCU,3200,0.9892\n")
    assert main("sweep", "--name", "study", "--report-only", "--reference", "others.csv").rc == 0
    assert "BitNetMCU" in (folder / "accuracy-bytes.svg").read_text()
    for name in PICTURES:
        (folder / name).unlink()
    assert main("sweep", *SMALL, *grid, "--report-only").rc == 0
    assert set(files(folder)) == set(before)

    # Another grid by the same name keeps what both have.
    stamp = (folder / document["rows"][1]["run_dir"] / runs.LAST_FILE).stat().st_mtime_ns
    wider = main("sweep", *SMALL, "--bits", "2,4", "--seeds", "0,1", "--name", "study", "--json")
    assert "2 finished before" in wider.stderr
    assert len(json.loads(wider.stdout)["rows"]) == 4
    assert (folder / document["rows"][1]["run_dir"] / runs.LAST_FILE).stat().st_mtime_ns == stamp


def test_words_in_lists_are_values_and_cells_are_found_by_name(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_set = main("sweep", *SMALL, "--bits", 2, "--set", "quant.surrogate=[clipped,identity]", "--name", "s", "--json")
    assert by_set.rc == 0, by_set
    rows = json.loads(by_set.stdout)["rows"]
    assert [row["settings"] for row in rows] == [{"quant.surrogate": name} for name in ("clipped", "identity")]
    by_option = main("sweep", *SMALL, "--bits", 2, "--surrogate", "clipped,identity", "--name", "s")
    assert "2 finished before" in by_option.stderr

    names = [Path(row["run_dir"]).name for row in rows]
    assert "-identity-" in names[1]
    assert "-clipped-" not in names[0]
    for text in (names[1], f"s/{names[1]}"):
        assert json.loads(main("eval", text, "--json").stdout)["accuracy"] == rows[1]["accuracy"]
    assert main("inspect", names[1]).rc == 0
    assert main("predict", names[1], "nosuch.png").error.count("nosuch.png")
    assert main("export", names[1], "--to", "packed", "--no-verify").rc == 0
    (tmp_path / "runs" / "s" / "sweep.json").rename(tmp_path / "away.json")  # as if the sweep had been killed
    refused = main("report", "s").error
    line = "qattrain sweep --report-only --name s --runs-dir runs"
    assert f"runs/s is a sweep without sweep.json; make it with: {line}" in refused
    assert main(*line.split()[1:]).rc == 0
    assert main("report", "s", "--out", "page.html").rc == 0
    page = json.loads(main("report", names[1], "--out", "page.html", "--json").stdout)
    assert [run["name"] for run in page["runs"]] == [names[1]]
    compared = json.loads(main("compare", names[0], "vs", f"s/{names[1]}", "--json").stdout)
    assert [row["method"] for row in compared["rows"]] == names
    assert main("train", *SMALL[:-2], "--bits", 2, "--init", names[0], "--name", "further").rc == 0
    assert "is quantized" in main("train", *SMALL[:-2], "--teacher", names[0]).error
    assert "already quantized" in main("ptq", names[0], "--bits", 8).error

    no_run = [("eval", "s"), ("inspect", "runs/s"), ("predict", "s", "x.png"), ("export", "s", "--to", "c")]
    no_run += [("ptq", "s", "--bits", "8"), ("compare", "s", "vs", names[0]), ("train", "--resume", "s")]
    no_run += [("train", *SMALL[:-2], "--init", "s"), ("train", *SMALL[:-2], "--teacher", "s")]
    for line in no_run:
        error = main(*line).error
        assert f"runs/s is a sweep, not a run; name one of its cells: {names[0]}, {names[1]}; list them" in error


MISTAKES: list[tuple[str, int, tuple[str, ...]]] = [
    ("sweep", 2, ("empty", "--bits 1,2,4")),
    ("sweep --bits 4,4", 2, ("4 twice", "duplicate cell")),
    ("sweep --bits 1,,2", 2, ("--bits '1,,2'", "1,2,4")),
    ("sweep --bits 1,9", 2, ("quant.bits = 9", "1 to 8")),
    ("sweep --ptq 8,8", 2, ("ptq.bits", "8 twice")),
    ("sweep --set train.lrr=[1,2]", 2, ("train.lrr", "momentum")),
    ("sweep --config nosuch.toml", 2, ("nosuch.toml",)),
    ("sweep --threads 1,2", 2, ("--threads", "1,2")),
    ("sweep --bits 2 --workers 0", 2, ("--workers", "0")),
    ("sweep --bits 2 --reference nosuch.csv", 2, ("nosuch.csv", "weight_bytes")),
    ("sweep --report-only", 2, ("--name", "none yet")),
    ("sweep --name nosuch --report-only", 2, ("nosuch", "none yet")),
    ("sweep --bits 2 --report-only", 2, ("sweep-", "none yet")),
    ("sweep --bits 2 --set train.init=nosuch", 1, ("nosuch", "checkpoint")),
]


@pytest.mark.parametrize(("line", "code", "said"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str,
    code: int,
    said: tuple[str, ...],
    tmp_path: Path,
    main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = main(*line.split())
    assert done.rc == code
    assert [text for text in said if text not in done.error] == []
    assert not list(tmp_path.iterdir())


def test_a_grid_that_cannot_be_settled_is_one_line_and_leaves_nothing(tmp_path: Path, main: Callable[..., Any]) -> None:
    place = ("--runs-dir", tmp_path / "runs")
    done = main("sweep", *SMALL, "--bits", "2,4", "--quantizer", "lsq,ternary", *place)
    assert done.rc == 2
    assert "quant.bits=4 quant.quantizer=ternary" in done.error
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / runs.CONFIG_FILE).touch()
    taken = main("sweep", *SMALL, "--bits", "2", "--name", "taken", *place)
    assert "is a run" in taken.error


def test_the_example_is_a_grid(tmp_path: Path) -> None:
    for path in CONFIGS.glob("sweep-*.toml"):
        assert "sweep" in tomllib.loads(path.read_text())
        grid = read_grid(path, [], {})
        assert grid.axes
        assert len(expand(grid)) > 1, tmp_path
