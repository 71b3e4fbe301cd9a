"""Claiming and watching: each cell once, PTQ after its float cell, deaths and failures counted, others waited for."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import doomed_worker, finish

from qattrain.errors import ConfigError, TrainingError
from qattrain.experiments import sweep as sweeps
from qattrain.experiments.cells import claim_and_run
from qattrain.experiments.folder import Cell, Report, SweepFolder
from qattrain.experiments.grid import Point, read_grid
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.sweep import MOST_DEATHS, LocalCrew, Status, Sweep, run_sweep


class ThreadCrew:
    """`size` threads, each claiming cells as a worker process does, that do with each what `script` says."""

    def __init__(self, folder: SweepFolder, script: dict[str, str], size: int = 2) -> None:
        self.folder, self.script, self.size = folder, script, size
        self.owners: Set[str] = {folder.owner}
        self.begun: list[str] = []
        self.under_way: list[str] = []
        self.closed = False
        self.cells: list[Cell] = []
        self.threads: list[threading.Thread] = []
        self.stop = threading.Event()

    def settle(self, points: list[Point]) -> list[Cell]:
        assert points
        return self.cells

    def step(self, ledger: Ledger) -> None:
        if "interrupt" in self.script.values():
            raise KeyboardInterrupt
        while len(self.threads) < self.size:
            arguments = copy.deepcopy(ledger), self.run, self.stop
            self.threads.append(threading.Thread(target=claim_and_run, args=arguments, daemon=True))
            self.threads[-1].start()
        time.sleep(0.01)

    def run(self, cell: Cell, report: Report) -> None:
        assert cell.name not in self.under_way
        if cell.source is not None:
            assert self.folder.result(Cell(cell.source, cell.config, None)), "its source is not finished"
        self.begun.append(cell.name)
        self.under_way.append(cell.name)
        report(0.5)
        time.sleep(0.05)
        self.under_way.remove(cell.name)
        if self.script.get(cell.name) == "failed":
            raise TrainingError("it is broken")
        finish(self.folder, cell.name, 0.6 if cell.name == "a" else 0.5)

    def close(self) -> None:
        self.closed = True
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def cells(settled_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.setattr("qattrain.experiments.cells.SECONDS_BETWEEN_TRIES", 0.01)
    config = settled_config()
    ptq = config | {"ptq": {"calibration": "minmax"}}
    return [Cell("p", ptq, None, "a"), Cell("a", config, None), Cell("b", config, None), Cell("c", config, None)]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    found = SweepFolder(tmp_path / "sweep")
    found.make()
    return found


def run(folder: SweepFolder, cells: list[Cell], script: dict[str, str]) -> tuple[ThreadCrew, Status, list[Any]]:
    crew, ended = ThreadCrew(folder, script), []
    work = Sweep(folder, cells, lambda _, event: ended.append(event) if event else None)
    work.run(crew)
    crew.close()
    return crew, work.status(crew.owners), ended


def test_every_cell_is_begun_once_and_ptq_after_its_source(folder: SweepFolder, cells: list[Cell]) -> None:
    crew, status, ended = run(folder, cells, {})
    assert sorted(crew.begun) == ["a", "b", "c", "p"]
    assert crew.begun.index("p") > crew.begun.index("a")
    assert (status.finished, status.failed, status.running, status.best) == (4, {}, {}, ("a", 0.6))
    assert sorted(name for name, _ in ended) == ["a", "b", "c", "p"]


def test_what_is_running_is_shown_with_the_share_done_and_what_ended_one_by_one(
    folder: SweepFolder, cells: list[Cell]
) -> None:
    seen: list[Status] = []
    ended: list[int] = []

    def watch(status: Status, event: Any) -> None:
        seen.append(status)
        if event:
            ended.append(status.finished)

    crew = ThreadCrew(folder, {})
    Sweep(folder, cells, watch).run(crew)
    crew.close()
    assert {name for status in seen for name in status.running} == {"a", "b", "c", "p"}
    assert {share for status in seen for share in status.running.values()} <= {0.0, 0.5}
    assert ended == [1, 2, 3, 4]


def test_finished_cells_are_not_begun(folder: SweepFolder, cells: list[Cell]) -> None:
    finish(folder, "a", 0.9)
    finish(folder, "c")
    crew, status, ended = run(folder, cells, {})
    assert sorted(crew.begun) == ["b", "p"]
    assert (status.finished, status.best, len(ended)) == (4, ("a", 0.9), 2)


def test_a_failure_stops_nothing_but_what_is_made_of_it(folder: SweepFolder, cells: list[Cell]) -> None:
    crew, status, _ = run(folder, cells, {"a": "failed"})
    assert sorted(crew.begun) == ["a", "b", "c"]
    assert status.finished == 2
    assert status.failed["a"] == "it is broken"
    assert "a failed" in status.failed["p"]
    assert folder.failure(cells[0]) == status.failed["p"]
    again, status, _ = run(folder, cells, {})  # at the next start
    assert (again.begun, status.failed) == (["a", "p"], {})
    assert folder.failure(cells[0]) is None


def run_here(
    folder: SweepFolder, cells: list[Cell], worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Status:
    """With one worker process at a time, which runs `worker`."""
    monkeypatch.setattr(sweeps, "run_worker", worker)
    crew, work = LocalCrew(folder, folder.path, 1, 1), Sweep(folder, cells, lambda *_: None)
    try:
        work.run(crew)
    finally:
        crew.close()
    return work.status(set())


def test_a_cell_whose_workers_die_is_tried_again_but_not_for_ever(
    folder: SweepFolder, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = run_here(folder, cells, doomed_worker, monkeypatch)
    begun = (folder.path / "begun").read_text()
    assert (begun.count("b"), begun.count("c")) == (MOST_DEATHS, MOST_DEATHS)
    assert list(status.failed) == ["c"]
    assert folder.failure(cells[3]) == status.failed["c"]
    assert status.failed["c"] == "its worker process was killed by signal 9, 3 times; is there enough memory?"
    assert (status.finished, status.running, status.elsewhere) == (3, {}, 0)


def test_a_cell_another_sweep_works_on_is_waited_for_and_taken_over_if_that_ends(
    folder: SweepFolder, cells: list[Cell]
) -> None:
    def with_another(there: SweepFolder, at_the_end: Callable[[SweepFolder, str], None]) -> tuple[ThreadCrew, Status]:
        held = contextlib.ExitStack()
        assert held.enter_context(SweepFolder(there.path).claimed("b"))
        waited = []

        def watch(status: Status, _event: Any) -> None:
            if status.finished == 3 and not waited:
                waited.append((status.elsewhere, status.running))
                at_the_end(there, "b")
                held.close()

        crew = ThreadCrew(there, {})
        work = Sweep(there, cells, watch)
        work.run(crew)
        crew.close()
        assert waited == [(1, {})]
        return crew, work.status(crew.owners)

    crew, status = with_another(folder, lambda *_: None)
    assert (crew.begun.count("b"), status.finished) == (1, 4)

    other = SweepFolder(folder.path.parent / "other")
    other.make()
    crew, status = with_another(other, finish)
    assert (crew.begun.count("b"), status.finished) == (0, 4)


def test_the_time_left_follows_the_epochs_done(folder: SweepFolder, cells: list[Cell]) -> None:
    seen = []
    work = Sweep(folder, cells, lambda status, _: seen.append(status.seconds_left))
    crew = ThreadCrew(folder, {})
    work.run(crew)
    crew.close()
    assert seen[0] is None
    assert seen[-1] == 0
    assert max(left for left in seen if left is not None) > 0


def sweep(folder: SweepFolder, crew: ThreadCrew, assignments: list[str]) -> Any:
    grid = read_grid(None, assignments, {})
    return run_sweep(grid, folder, folder.path.parent, lambda: crew, lambda *_: None, lambda _: None)


def test_a_recorded_plan_is_kept_for_the_same_grid_only(folder: SweepFolder, cells: list[Cell]) -> None:
    first, second, third = (ThreadCrew(folder, {}) for _ in range(3))
    first.cells, third.cells = cells[1:3], cells[1:]
    assert sweep(folder, first, ["seed=[0,1]"]).cells == cells[1:3]
    assert sweep(folder, second, ["seed=[0,1]"]).cells == cells[1:3]
    assert (second.begun, second.closed) == ([], False)
    assert sweep(folder, third, ["seed=[0,1,2]"]).cells == cells[1:]
    assert third.begun == ["c"]
    with pytest.raises(ConfigError, match=r"--threads 2.*1 per worker"):
        sweep(folder, second, ["seed=[0,1,2]", "train.threads=2"])


def test_ctrl_c_closes_the_crew(folder: SweepFolder, cells: list[Cell]) -> None:
    crew = ThreadCrew(folder, {"a": "interrupt"})
    crew.cells = cells
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, crew, ["seed=[0,1]"])
    assert crew.closed
