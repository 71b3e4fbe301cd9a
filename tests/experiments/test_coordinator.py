"""Handing out cells: each once, PTQ after its float cell, deaths and failures counted, other sweeps waited for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import ConfigError
from qattrain.experiments import sweep as coordinator
from qattrain.experiments.folder import RESULT_FILE, Cell, SweepFolder
from qattrain.experiments.grid import Point, read_grid
from qattrain.experiments.sweep import MOST_DEATHS, Coordinator, Event, Status, run_sweep
from qattrain.runs import folder as runs


class ScriptedCrew:
    """Does with each cell what `script` says, one thing a try, and then finishes it."""

    def __init__(self, folder: SweepFolder, script: dict[str, list[str]], size: int = 2) -> None:
        self.folder, self.script, self.size = folder, script, size
        self.begun: list[str] = []
        self.under_way: list[str] = []
        self.closed = False
        self.cells: list[Cell] = []

    def settle(self, points: list[Point]) -> list[Cell]:
        assert points
        return self.cells

    def free(self) -> bool:
        return len(self.under_way) < self.size

    def begin(self, cell: Cell) -> None:
        assert cell.name not in self.under_way
        if cell.source is not None:
            assert self.folder.result(Cell(cell.source, cell.config, None)), "its source is not finished"
        self.begun.append(cell.name)
        self.under_way.append(cell.name)

    def events(self, seconds: float) -> list[Event]:
        assert seconds > 0
        name = self.under_way.pop(0)
        todo = self.script.get(name, [])
        kind: Any = todo.pop(0) if todo else "finished"
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "finished":
            finish(self.folder, name)
        return [Event("progress", name, share=0.5), Event(kind, name, "it is broken")]

    def close(self) -> None:
        self.closed = True


def finish(folder: SweepFolder, name: str, accuracy: float = 0.5) -> None:
    (folder.cells / name).mkdir(exist_ok=True)
    (folder.cells / name / runs.LAST_FILE).touch()
    (folder.cells / name / RESULT_FILE).write_text(json.dumps({"accuracy": accuracy}))


@pytest.fixture
def cells(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.setattr(coordinator, "SECONDS_BETWEEN_TRIES", 0.0)
    config = tiny_config().model_dump(mode="json")
    ptq = config | {"ptq": {"calibration": "minmax"}}
    return [Cell("p", ptq, None, "a"), Cell("a", config, None), Cell("b", config, None), Cell("c", config, None)]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    found = SweepFolder(tmp_path / "sweep")
    found.make()
    return found


def run(folder: SweepFolder, cells: list[Cell], script: dict[str, list[str]]) -> tuple[ScriptedCrew, Status, list[Any]]:
    crew, ended = ScriptedCrew(folder, script), []
    work = Coordinator(folder, cells, lambda _, event: ended.append(event) if event else None)
    work.run(crew)
    return crew, work.status, ended


def test_every_cell_is_begun_once_and_ptq_after_its_source(folder: SweepFolder, cells: list[Cell]) -> None:
    crew, status, ended = run(folder, cells, {})
    assert sorted(crew.begun) == ["a", "b", "c", "p"]
    assert crew.begun.index("p") > crew.begun.index("a")
    assert (status.finished, status.failed, status.running, status.best) == (4, {}, {}, ("a", 0.5))
    assert sorted(name for name, _ in ended) == ["a", "b", "c", "p"]


def test_finished_cells_are_not_begun(folder: SweepFolder, cells: list[Cell]) -> None:
    finish(folder, "a", 0.9)
    finish(folder, "c")
    crew, status, ended = run(folder, cells, {})
    assert sorted(crew.begun) == ["b", "p"]
    assert (status.finished, status.best, len(ended)) == (4, ("a", 0.9), 2)


def test_a_failure_stops_nothing_but_what_is_made_of_it(folder: SweepFolder, cells: list[Cell]) -> None:
    crew, status, _ = run(folder, cells, {"a": ["failed"]})
    assert sorted(crew.begun) == ["a", "b", "c"]
    assert status.finished == 2
    assert status.failed["a"] == "it is broken"
    assert "a failed" in status.failed["p"]
    assert folder.failure(cells[0]) == status.failed["p"]


def test_a_cell_whose_workers_die_is_tried_again_but_not_for_ever(folder: SweepFolder, cells: list[Cell]) -> None:
    crew, status, _ = run(folder, cells, {"b": ["lost"] * (MOST_DEATHS - 1), "c": ["lost"] * 99})
    assert (crew.begun.count("b"), crew.begun.count("c")) == (MOST_DEATHS, MOST_DEATHS)
    assert list(status.failed) == ["c"]
    assert folder.failure(cells[3]) == status.failed["c"]


def test_a_cell_another_sweep_works_on_is_waited_for_and_taken_over_if_that_ends(
    folder: SweepFolder, cells: list[Cell]
) -> None:
    crew, status, _ = run(folder, cells, {"b": ["busy"] * 3})
    assert (crew.begun.count("b"), status.finished) == (4, 4)

    class OtherFinishes(ScriptedCrew):
        def events(self, seconds: float) -> list[Event]:
            found = super().events(seconds)
            if found[-1].kind == "busy":
                finish(self.folder, found[-1].cell)
            return found

    other = SweepFolder(folder.path.parent / "other")
    other.make()
    twice = OtherFinishes(other, {"b": ["busy"]})
    Coordinator(other, cells, lambda *_: None).run(twice)
    assert twice.begun.count("b") == 1


def test_the_time_left_follows_the_epochs_done(folder: SweepFolder, cells: list[Cell]) -> None:
    seen = []
    work = Coordinator(folder, cells, lambda status, _: seen.append(status.seconds_left))
    work.run(ScriptedCrew(folder, {}))
    assert seen[0] is None
    assert seen[-1] == 0
    assert max(left for left in seen if left is not None) > 0


def sweep(folder: SweepFolder, crew: ScriptedCrew, assignments: list[str]) -> Any:
    grid = read_grid(None, assignments, {})
    return run_sweep(grid, folder, folder.path.parent, lambda: crew, lambda *_: None, lambda _: None)


def test_a_recorded_plan_is_kept_for_the_same_grid_only(folder: SweepFolder, cells: list[Cell]) -> None:
    first, second, third = (ScriptedCrew(folder, {}) for _ in range(3))
    first.cells, third.cells = cells[1:3], cells[1:]
    assert sweep(folder, first, ["seed=[0,1]"]).cells == cells[1:3]
    assert sweep(folder, second, ["seed=[0,1]"]).cells == cells[1:3]
    assert (second.begun, second.closed) == ([], False)
    assert sweep(folder, third, ["seed=[0,1,2]"]).cells == cells[1:]
    assert third.begun == ["c"]
    with pytest.raises(ConfigError, match=r"--threads 2.*1 a worker"):
        sweep(folder, second, ["seed=[0,1,2]", "train.threads=2"])


def test_ctrl_c_closes_the_crew(folder: SweepFolder, cells: list[Cell]) -> None:
    crew = ScriptedCrew(folder, {"a": ["interrupt"]})
    crew.cells = cells
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, crew, ["seed=[0,1]"])
    assert crew.closed
