"""`qattrain runs`: damaged runs are shown, many runs at once, the newest first."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.runs import folder as runs

MANY = 10_000
MOST_SECONDS = 3.0  # of the processor


@pytest.fixture(scope="module")
def config(settled_config: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = settled_config()
    return found


def make_run(run_dir: Path, config: dict[str, Any]) -> Path:
    run_dir.mkdir(parents=True)
    runs.write_config(run_dir, config, {})
    runs.write_metrics(run_dir, [{"epoch": n, "test_accuracy": 0.5} for n in (1, 2)])
    (run_dir / runs.LAST_FILE).touch()
    return run_dir


def test_a_damaged_run_is_shown_as_damaged_with_the_remedy(
    main: Callable[..., Any], tmp_path: Path, config: dict[str, Any]
) -> None:
    make_run(tmp_path / "good", config)
    for name, file in (("a", runs.CONFIG_FILE), ("b", runs.METRICS_FILE)):
        path = make_run(tmp_path / name, config) / file
        path.write_text(path.read_text().replace("4", "5").replace("0.5", "0.6"))
    (make_run(tmp_path / "c", config) / runs.CONFIG_FILE).unlink()
    done = main("runs", "--runs-dir", tmp_path)
    assert done.rc == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "50.00 %" in rows["good"]
    for name, why in (("a", "config.json is damaged"), ("b", "metrics.jsonl is damaged"), ("c", "config.json is miss")):
        assert "damaged" in rows[name]
        assert f"{tmp_path / name}/{why}" in done.stdout
        assert f"qattrain train --resume {tmp_path / name}" in done.stdout
    found = json.loads(main("runs", "--runs-dir", tmp_path, "--json").stdout)
    assert found["total"] == 4
    damaged = {run["name"]: run["damaged"] for run in found["runs"]}
    assert damaged["good"] is None
    assert all(text and str(tmp_path / name) in text for name, text in damaged.items() if name != "good")


def test_resuming_a_damaged_run_writes_its_files_again(tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    run_dir = tiny({"train.epochs": 1}).run_dir
    before = runs.read_record(run_dir)["config"], runs.read_metrics(run_dir)
    for file in (runs.CONFIG_FILE, runs.METRICS_FILE):
        (run_dir / file).write_bytes((run_dir / file).read_bytes()[:-9])
    assert "is damaged" in main("runs", "--runs-dir", run_dir.parent).stdout
    assert main("train", "--resume", run_dir).rc == 0
    assert (runs.read_record(run_dir)["config"], runs.read_metrics(run_dir)) == before
    assert "damaged" not in main("runs", "--runs-dir", run_dir.parent).stdout


def test_of_10000_runs_the_newest_50_are_shown_within_3_seconds(tmp_path: Path, config: dict[str, Any]) -> None:
    first = make_run(tmp_path / "run-00000", config)
    for number in range(1, MANY):
        run_dir = tmp_path / f"run-{number:05}"
        run_dir.mkdir()
        for name in (runs.CONFIG_FILE, runs.METRICS_FILE, runs.LAST_FILE):
            os.link(first / name, run_dir / name)
    newest = make_run(tmp_path / "newest", config)

    def seconds(*arguments: str) -> tuple[float, str]:
        before = os.times()
        command = [sys.executable, "-m", "qattrain", *arguments, "--runs-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return used, done.stdout + done.stderr

    used, said = seconds("runs")
    lines = [line for line in said.splitlines() if line.startswith(("run-", "newest"))]
    assert (len(lines), lines[0].split()[0]) == (50, newest.name)
    assert "the newest 50 of 10,001 runs; see all with --all" in said
    assert used <= MOST_SECONDS
    used, said = seconds("eval", "nosuch")
    assert f"nor a run or a sweep's cell in {tmp_path}" in said
    before = time.process_time()
    assert runs.find_finished(config | {"seed": 1}, tmp_path) is None  # reads every configuration, digests included
    assert time.process_time() - before <= 3 * MOST_SECONDS
