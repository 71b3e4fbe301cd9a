"""Sweeps on this machine: killed anywhere, interrupted, run twice at once, they end as if nobody had touched them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweep_runs import MOST_SECONDS, under_way, until

from qattrain.errors import TrainingError
from qattrain.experiments.folder import Cell, SweepFolder
from qattrain.experiments.grid import expand, read_grid
from qattrain.experiments.sweep import LocalCrew, Sweep, cores


def all_claims_fallen(folder: Path) -> bool:
    sweep = SweepFolder(folder)
    for path in sweep.claims.iterdir():
        with sweep.claimed(path.name) as ours:
            if not ours:
                return False
    return True


def test_kill_9_of_the_parent_and_of_a_worker_changes_nothing(
    started: Callable[..., Any], tmp_path: Path, assert_same_sweep: Callable[[Path], None]
) -> None:
    folder = tmp_path / "runs" / "study"
    parent = started("--workers", 2, "--name", "study")
    until(lambda: under_way(folder))
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    until(lambda: all_claims_fallen(folder))  # its workers notice, and end
    unfinished = under_way(folder)
    assert unfinished

    again = started("--workers", 2, "--name", "study")
    worker = until(lambda: [p for p in psutil.Process(again.pid).children() if "spawn_main" in " ".join(p.cmdline())])
    until(lambda: set(under_way(folder)) - set(unfinished) or len(under_way(folder)) < len(unfinished))
    worker[0].kill()
    _, stderr = again.communicate(timeout=MOST_SECONDS)
    assert again.returncode == 0, stderr
    assert_same_sweep(folder)


def test_ctrl_c_saves_what_is_running_and_exits_130(
    started: Callable[..., Any], tmp_path: Path, assert_same_sweep: Callable[[Path], None]
) -> None:
    folder = tmp_path / "runs" / "study"
    process = started("--workers", 2, "--name", "study")
    until(lambda: under_way(folder))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 130, stderr
    assert "run the same command again to resume" in stdout
    assert all_claims_fallen(folder)
    assert under_way(folder)
    assert (folder / "sweep.json").exists()
    # Two at once go on with it: no cell is done by both.
    both = [started("--workers", 1, "--name", "study") for _ in range(2)]
    for one in both:
        _, stderr = one.communicate(timeout=MOST_SECONDS)
        assert one.returncode == 0, stderr
    assert_same_sweep(folder)


def test_sigterm_stops_a_sweep_as_ctrl_c_does(started: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "study"
    process = started("--workers", 1, "--name", "study")
    until(lambda: under_way(folder))
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 143, stderr
    assert "stopped by SIGTERM and saved; run the same command again to resume" in stdout
    assert all_claims_fallen(folder)
    assert under_way(folder)
    assert not list(folder.rglob("*.tmp"))


def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again(
    qattrain: Callable[..., Any], tmp_path: Path
) -> None:
    grid = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", 100, "--epochs", 1, "--lr", "1e30,0.05")
    arguments = ("sweep", *grid, "--bits", 4, "--workers", 1, "--threads", 1, "--name", "study")
    for _ in range(2):
        done = qattrain(*arguments)
        assert done.rc == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: 1 of 2 cells failed")
        assert "loss became" in last
        assert "[2 of 2]" in done.stderr
    folder = SweepFolder(tmp_path / "runs" / "study")
    plan = folder.read_plan()
    assert plan is not None
    assert [folder.failure(cell) is None for cell in plan.cells] == [False, True]
    assert folder.result(plan.cells[1]) is not None


def test_workers_and_threads_share_the_cores(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    assert LocalCrew(folder, tmp_path, 1, None).threads == cores()
    assert LocalCrew(folder, tmp_path, cores() + 1, None).threads == 1
    assert LocalCrew(folder, tmp_path, 3, 7).threads == 7
    every = LocalCrew(folder, tmp_path, None, None)
    assert every.workers * every.threads <= cores()


def test_a_worker_that_cannot_live_is_an_error_and_no_endless_story(
    tmp_path: Path, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path)
    folder.make()
    crew = LocalCrew(folder, tmp_path, 1, 1)
    for name in ("settle_and_send", "run_worker"):  # called with arguments that os._exit does not take: it dies of that
        monkeypatch.setattr(f"qattrain.experiments.sweep.{name}", os._exit)
    try:
        with pytest.raises(TrainingError, match=r"worker process.*exit code"):
            crew.settle(expand(read_grid(None, ["seed=[0]"], {})))
        cells = [Cell("a", tiny_config().model_dump(mode="json"), None)]
        with pytest.raises(TrainingError, match=r"worker process.*exit code"):
            Sweep(folder, cells, lambda *_: None).run(crew)
    finally:
        crew.close()


def test_a_finished_sweep_of_1000_cells_is_recognised_within_3_seconds_without_torch(tmp_path: Path) -> None:
    make = Path(__file__).parent / "thousand.py"
    subprocess.run([sys.executable, make, tmp_path], timeout=60, check=True)
    seeds = ",".join(map(str, range(500)))
    code = (
        "import sys\n"
        "from qattrain import cli\n"
        f"sys.argv = 'qattrain sweep --dataset digits --bits 2,4 --seeds {seeds}'.split()\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    after = os.times()
    assert "1000 of 1000 cells finished" in done.stdout
    # Of the processor's time: the clock measures what else this machine does.
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used <= 3, used
