"""A sweep: hands the cells to a crew until every one is finished or has failed. No torch in here."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from qattrain.errors import ConfigError
from qattrain.experiments.folder import Cell, Plan, SweepFolder
from qattrain.experiments.grid import Grid, Point, expand
from qattrain.runs import folder as runs

MOST_DEATHS = 3  # of workers with the same cell: then it is the cell


@dataclass(frozen=True)
class Event:
    """What happened to a cell.

    progress: `share` of it is done. finished. failed: `text` says why. busy: another process works on it. lost: its
    worker died. stopped: as asked, and saved.
    """

    kind: Literal["progress", "finished", "failed", "busy", "lost", "stopped"]
    cell: str
    text: str = ""
    share: float = 0.0


class Crew(Protocol):
    """Settles the grid and runs cells, several at a time; writes their folders, result.json and failures."""

    def settle(self, points: list[Point]) -> list[Cell]:
        """The cells of the grid, with what is `auto` settled where they will run. Raises ConfigError, DataError."""

    def free(self) -> bool:
        """Whether another cell can be started."""

    def begin(self, cell: Cell) -> None:
        """Start, or go on with, a cell whose source, if it has one, is finished."""

    def events(self, seconds: float) -> list[Event]:
        """What has happened; waits for something at most that long. Raises any QattrainError that ends the sweep."""

    def close(self) -> None:
        """Stop what is running, saved where that is possible, and let go of everything."""


SECONDS_TO_WAIT = 0.25  # for something to happen, before the display is asked to show the time
SECONDS_BETWEEN_TRIES = 1.0  # for a cell another process works on
PTQ_COST = 0.2  # in epochs: for the time left


@dataclass
class Status:
    """Where the sweep is. running: share done by cell name. best: name and accuracy of the best finished cell."""

    total: int
    finished: int = 0
    elsewhere: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    best: tuple[str, float] | None = None
    seconds_left: float | None = None


# Told the status now and then, and the name, outcome and accuracy or error line of a cell that ended.
Watcher = Callable[[Status, tuple[str, float | str] | None], None]


def run_sweep(
    grid: Grid,
    folder: SweepFolder,
    runs_dir: Path,
    hire: Callable[[], Crew],
    watch: Watcher,
    say: Callable[[str], None],
) -> Plan:
    """Run what is not finished of `grid` in `folder`; `hire` is called only if there is something to do.

    A cell that fails is recorded and does not end the sweep. Raises ConfigError, DataError, CheckpointError,
    TrainingError; KeyboardInterrupt after the crew has stopped.
    """
    hired: list[Crew] = []

    def crew() -> Crew:
        if not hired:
            hired.append(hire())
        return hired[0]

    try:
        plan = _make_plan(grid, folder, runs_dir, crew)
        folder.make()
        coordinator = Coordinator(folder, plan.cells, watch)
        kept = coordinator.status.finished
        say(f"{folder.path}: {len(plan.cells)} cells" + (f", {kept} finished before" if kept else ""))
        if coordinator.waiting:
            coordinator.run(crew())
    except KeyboardInterrupt:
        say("stopping: what is running is saved (Ctrl-C again: at once)")
        raise
    finally:
        for member in hired:
            member.close()
    return plan


def _make_plan(grid: Grid, folder: SweepFolder, runs_dir: Path, crew: Callable[[], Crew]) -> Plan:
    """The recorded plan, if it is of this very grid, so that `auto` is settled once; else a new one, recorded.

    Raises ConfigError, DataError, CheckpointError, TrainingError.
    """
    points = expand(grid)  # also where a plan is recorded: a mistake shows at every start
    plan = folder.read_plan()
    if plan is not None and plan.asked == grid.asked():
        recorded = plan.cells[0].config["train"]["threads"]
        if grid.threads not in (None, recorded):
            raise ConfigError(
                f"--threads {grid.threads}: {folder.path} was started with {recorded} a worker and keeps it, so that "
                "its cells compare; leave the option out, or choose another --name"
            )
        return plan
    for point in points:
        if point.config["train"]["init"] is not None:
            found = runs.find_checkpoint(point.config["train"]["init"], runs_dir)
            point.config["train"]["init"] = str(found.resolve())  # as it is seen from a cell
    folder.refuse_a_run()
    plan = Plan(grid.asked(), grid.axes, crew().settle(points))
    folder.make()  # only now: a grid that is refused leaves nothing
    folder.write_plan(plan)
    return plan


class Coordinator:
    """Runs what is not finished. A cell that fails does not stop the others; it is tried again at the next start."""

    def __init__(self, folder: SweepFolder, cells: list[Cell], watch: Watcher) -> None:
        self.folder, self.watch = folder, watch
        self.status = Status(len(cells))
        self.waiting: dict[str, Cell] = {}
        self.cells = {cell.name: cell for cell in cells}
        self.deaths: dict[str, int] = {}
        self.not_before: dict[str, float] = {}
        for cell in cells:
            result = folder.result(cell)
            if result is None:
                self.waiting[cell.name] = cell
            else:
                self._count(cell.name, result["accuracy"])
        self.started, self.done_cost = time.monotonic(), 0.0

    def run(self, crew: Crew) -> None:
        """Returns when nothing is left to do. Raises KeyboardInterrupt, and any error that is not one cell's."""
        while self.waiting or self.status.running:
            for cell in self._ready():
                if not crew.free():
                    break
                del self.waiting[cell.name]
                self.status.running[cell.name] = 0.0
                crew.begin(cell)
            for event in crew.events(SECONDS_TO_WAIT):
                self._take(event)
            self.status.seconds_left = self._seconds_left()
            self.watch(self.status, None)

    def _ready(self) -> list[Cell]:
        """What can be started now. Notices what another sweep finished, and what can never be started."""
        ready, now = [], time.monotonic()
        for cell in list(self.waiting.values()):
            if cell.source in self.status.failed:
                del self.waiting[cell.name]
                line = f"not made, for its float network {cell.source} failed"
                self.folder.set_failure(cell.name, line)
                self._fail(cell.name, line)
            elif self.not_before.get(cell.name, now) <= now and not self._unfinished(cell.source):
                result = self.folder.result(cell) if cell.name in self.not_before else None
                if result is not None:
                    del self.waiting[cell.name]
                    self._finish(cell, result["accuracy"])
                else:
                    ready.append(cell)
        self.status.elsewhere = len(self.not_before.keys() & self.waiting.keys())
        return ready

    def _unfinished(self, name: str | None) -> bool:
        return name in self.waiting or name in self.status.running

    def _take(self, event: Event) -> None:
        cell = self.cells[event.cell]
        if event.kind == "progress":
            self.status.running[cell.name] = event.share
            return
        self.status.running.pop(cell.name, None)
        if event.kind == "finished":
            result = self.folder.result(cell)
            assert result is not None, event
            self._finish(cell, result["accuracy"])
        elif event.kind == "failed":
            self._fail(cell.name, event.text)
        elif event.kind == "busy":
            self.waiting[cell.name] = cell
            self.not_before[cell.name] = time.monotonic() + SECONDS_BETWEEN_TRIES
        else:
            self.waiting[cell.name] = cell
            self.deaths[cell.name] = self.deaths.get(cell.name, 0) + (event.kind == "lost")
            if self.deaths[cell.name] >= MOST_DEATHS:
                del self.waiting[cell.name]
                line = f"{event.text}, {MOST_DEATHS} times; is there enough memory?"
                self.folder.set_failure(cell.name, line)
                self._fail(cell.name, line)

    def _finish(self, cell: Cell, accuracy: float) -> None:
        self.done_cost += cost(cell)
        self._count(cell.name, accuracy)
        self.watch(self.status, (cell.name, accuracy))

    def _count(self, name: str, accuracy: float) -> None:
        self.status.finished += 1
        if self.status.best is None or accuracy > self.status.best[1]:
            self.status.best = name, accuracy

    def _fail(self, name: str, line: str) -> None:
        self.status.failed[name] = line
        self.watch(self.status, (name, line))

    def _seconds_left(self) -> float | None:
        """By the epochs done since the start; None before anything is."""
        under_way = {name: cost(self.cells[name]) * share for name, share in self.status.running.items()}
        done = self.done_cost + sum(under_way.values())
        total = sum(cost(self.cells[name]) for name in [*self.waiting, *under_way]) - sum(under_way.values())
        return total * (time.monotonic() - self.started) / done if done else None


def cost(cell: Cell) -> float:
    """About how long the cell takes, in epochs."""
    epochs: int = cell.config["train"]["epochs"]
    return PTQ_COST if cell.config["ptq"] else epochs
