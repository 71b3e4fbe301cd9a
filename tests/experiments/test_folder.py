"""The folder: one name for one configuration, one process for one cell, and finished means finished."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import parse_config
from qattrain.errors import ConfigError, RecordError, TrainingError
from qattrain.experiments.folder import (
    PLAN_FILE,
    RESULT_FILE,
    Cell,
    Claim,
    Plan,
    SweepFolder,
    cell_name,
    find_sweep,
    list_sweeps,
)
from qattrain.experiments.ledger import Ledger
from qattrain.runs import folder as runs


@pytest.fixture
def config(settled_config: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = settled_config(4, 2)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    found = SweepFolder(tmp_path / "sweep")
    found.make()
    return found


OTHER_VALUES = ("x", "lenet", "32x32", 7, 0.25, True, False, "explicit", "fp32", "on", {"fc1": 8}, [4, 8, 16])


def with_another(config: dict[str, Any], section: str, key: str) -> dict[str, Any]:
    """The configuration with another value of one setting, the first that is allowed."""
    for value in OTHER_VALUES:
        changed = config | {section: config[section] | {key: value}}
        with contextlib.suppress(ConfigError):
            if parse_config(changed, "test") != parse_config(config, "test"):
                return changed
    raise AssertionError(section, key)


def test_a_cell_is_named_by_all_of_its_configuration_but_name_and_threads(config: dict[str, Any]) -> None:
    name = cell_name(config)
    assert name.startswith("lenet-nano-w4a2-lsq-digits-s0-")
    assert cell_name(config | {"name": "other", "train": config["train"] | {"threads": 7}}) == name
    names = {name}
    for section, values in config.items():
        if isinstance(values, dict):
            names |= {cell_name(with_another(config, section, key)) for key in values if key != "threads"}
    assert len(names) == 1 + sum(len(values) for values in config.values() if isinstance(values, dict)) - 1
    assert cell_name(config | {"seed": 1}) not in names
    ptq = cell_name(config | {"ptq": {"calibration": "mse", "images": 3, "source_epochs": 2}})
    assert ptq.startswith("lenet-nano-w4a2-lsq-ptq-digits-s0-")


def test_settings_that_are_new_do_not_rename_the_cells_of_older_versions(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config({"quant.bits": 4, "quant.act_bits": 2}).model_dump(mode="json")
    assert cell_name(config) == "lenet-nano-w4a2-lsq-digits-s0-ea08075ab3"  # written by the version before chains
    old = {key: value for key, value in config["data"].items() if key not in runs.ADDED_DATA}
    assert cell_name(config | {"data": old}) == cell_name(config)
    assert runs.comparable(config | {"data": old}) == runs.comparable(config)


def test_cells_that_were_begun_keep_the_names_that_another_version_gave_them(
    folder: SweepFolder, config: dict[str, Any]
) -> None:
    config["quant"]["surrogate"] = "tanh"
    cells = [Cell("new-name-00aa", config, None), Cell("ptq-11bb", config, None, "new-name-00aa")]
    assert folder.with_known_names(cells) == cells
    (folder.cells / "old-00aa").mkdir()
    assert folder.with_known_names(cells) == cells  # it has no checkpoint: there is nothing to keep
    (folder.cells / "old-00aa" / runs.LAST_FILE).touch()
    kept = [replace(cells[0], name="old-00aa"), replace(cells[1], source="old-00aa")]
    assert folder.with_known_names(cells) == kept
    (folder.cells / "new-name-00aa").mkdir()
    (folder.cells / "new-name-00aa" / runs.LAST_FILE).touch()
    assert folder.with_known_names(cells) == cells
    assert cell_name(config).startswith("lenet-nano-w4a2-lsq-tanh-digits-s0-")


def test_a_claim_excludes_others_and_falls_with_its_process(folder: SweepFolder) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qattrain.experiments.folder import SweepFolder\n"
        f"with SweepFolder(Path({str(folder.path)!r})).claimed('cell') as ours:\n"
        "    print(ours is not None, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with folder.claimed("cell") as ours, folder.claimed("another") as another:
        assert (ours is not None, another is not None) == (False, True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with folder.claimed("cell") as ours, folder.claimed("cell") as again:
        assert (ours is not None, again is not None) == (True, False)


def test_a_claim_says_who_holds_it_how_far_it_is_and_who_died_with_it(folder: SweepFolder) -> None:
    names = ("cell", "never-claimed")
    assert folder.read_claims(names) == {}
    dead, alive = SweepFolder(folder.path), SweepFolder(folder.path)
    dead.owner, alive.owner = "dead", "alive"
    with dead.claimed("cell") as report:
        assert report is not None
        assert folder.read_claims(names) == {"cell": Claim(0.0, [], "dead", held=True)}
        report(0.25)
        text = (folder.claims / "cell").read_text()
        assert folder.read_claims(names) == {"cell": Claim(0.25, [], "dead", held=True)}
    assert folder.read_claims(names) == {}
    (folder.claims / "cell").write_text(text)  # as a process leaves it that is killed
    assert folder.read_claims(names) == {"cell": Claim(0.25, [], "dead", held=False)}
    with alive.claimed("cell"):
        assert folder.read_claims(names) == {"cell": Claim(0.0, ["dead"], "alive", held=True)}
    assert folder.read_claims(names) == {}


def test_a_cell_is_finished_if_its_result_and_its_checkpoint_are_there(
    folder: SweepFolder, config: dict[str, Any]
) -> None:
    cell = Cell("cell", config, None)
    run_dir = folder.cells / "cell"
    run_dir.mkdir()
    assert folder.result(cell) is None
    result = {"epochs": 1, "accuracy": 0.5, "loss": 0.25, "weight_bytes": 9, "images_per_second": None}
    (run_dir / RESULT_FILE).write_text(json.dumps(result))  # as older versions wrote it
    assert folder.result(cell) is None
    (run_dir / runs.LAST_FILE).touch()
    assert folder.result(cell) == result
    for junk in ("", "[]", '{"accuracy": 0', json.dumps(result | {"accuracy": 2}), json.dumps({"accuracy": 0.5})):
        (run_dir / RESULT_FILE).write_text(junk)
        with pytest.raises(
            RecordError, match=r"result\.json is damaged: .*; run the sweep's command again, which makes"
        ):
            folder.result(cell)
        ledger = Ledger(folder, [cell])
        assert list(ledger.open) == list(ledger.damaged) == ["cell"]  # it is run again: its last checkpoint is there


def test_failures_are_kept_until_the_cell_succeeds(folder: SweepFolder, config: dict[str, Any]) -> None:
    cell = Cell("cell", config, None)
    assert folder.failure(cell) is None
    folder.set_failure("cell", "the loss became nan")
    assert folder.failure(cell) == "the loss became nan"
    folder.set_failure("cell", None)
    folder.set_failure("cell", None)
    assert folder.failure(cell) is None


def test_a_plan_reads_back_unless_it_is_junk_or_of_another_version(folder: SweepFolder, config: dict[str, Any]) -> None:
    plan = Plan("asked", ["seed"], [Cell("a", config, None), Cell("b", config, "a notice", "a")])
    assert folder.read_plan() is None
    folder.write_plan(plan)
    assert folder.read_plan() == plan
    folder.write_plan(replace(plan, version="0.0"))
    assert folder.read_plan() is None
    crafted = asdict(plan) | {"axes": ["nosuch"]}
    for junk in ("", "[]", "{}", '{"asked": 1}', json.dumps(crafted), json.dumps(crafted | {"axes": [], "cells": [3]})):
        (folder.path / PLAN_FILE).write_text(junk)
        with pytest.raises(
            RecordError, match=r"plan\.json is damaged: .*; remove it and run the sweep's command again"
        ):
            folder.read_plan()


def test_methods_are_told_by_the_configuration(config: dict[str, Any]) -> None:
    quant = config["quant"] | {"bits": 32, "act_bits": 32}
    assert Cell("a", config, None).method == "qat"
    assert Cell("a", config | {"quant": quant}, None).method == "fp32"
    assert Cell("a", config | {"quant": quant | {"layer_bits": {"fc1": 8}}}, None).method == "qat"
    assert Cell("a", config | {"ptq": {"calibration": "mse"}}, None, "b").method == "ptq"


def test_sweeps_are_found_by_name_or_by_what_they_ask_for(tmp_path: Path) -> None:
    assert find_sweep("mine", "asked", tmp_path).path == tmp_path / "mine"
    unnamed = find_sweep(None, "asked", tmp_path)
    assert unnamed.path == find_sweep(None, "asked", tmp_path).path != find_sweep(None, "other", tmp_path).path
    assert list_sweeps(tmp_path) == []
    unnamed.make()
    unnamed.write_plan(Plan("asked", [], []))
    assert list_sweeps(tmp_path) == [unnamed.path.name]


def test_a_folder_that_is_a_run_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / runs.CONFIG_FILE).touch()
    with pytest.raises(ConfigError, match=r"run is a run.*--name"):
        SweepFolder(tmp_path / "run").refuse_a_run()
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file.*--runs-dir"):
        SweepFolder(tmp_path / "file").make()


def test_a_folder_that_is_removed_in_mid_run_is_one_line(folder: SweepFolder, config: dict[str, Any]) -> None:
    ledger = Ledger(folder, [Cell("cell", config, None)])
    shutil.rmtree(folder.path)
    for look in (
        lambda: list(ledger.ended()),
        lambda: folder.read_claims(["cell"]),
        lambda: folder.claimed("cell").__enter__(),
        lambda: folder.set_failure("cell", "it failed"),
        lambda: folder.write_plan(Plan("asked", [], [])),
    ):
        with pytest.raises(TrainingError, match=r"^cannot .*No such file or directory; its folder is not there"):
            look()


def test_the_record_of_a_failure_is_checked_and_older_ones_are_read(
    folder: SweepFolder, config: dict[str, Any]
) -> None:
    cell = Cell("cell", config, None)
    (folder.failures / "cell").write_bytes(b"the loss became \xff\n")  # as older versions wrote it
    assert folder.failure(cell) == "the loss became \ufffd"
    assert folder.failure_time("cell")
    folder.set_failure("cell", "another")
    assert [path.name for path in folder.failures.iterdir()] == ["cell.json"]
    path = folder.failures / "cell.json"
    path.write_text(path.read_text().replace("another", "nothing"))
    assert "cell.json is damaged: its digest does not match" in str(folder.failure(cell))
    assert folder.touched() == {"cell"}
