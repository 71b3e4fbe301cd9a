"""A sweep: one process plans it, watches its folder and shows its state, while workers run the cells. No torch in here.

Cells are not handed out: each worker claims them in the folder and writes their results there. So several sweeps can
share a folder, and nothing is lost if a worker or the parent is killed. `LocalCrew` runs the workers on this machine,
`cells.work` is what one of them does, and `cluster.DaskCrew` claims cells on behalf of a cluster's workers.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Set
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from qattrain.config.chain import Shape
from qattrain.errors import ConfigError, QattrainError, TrainingError
from qattrain.experiments.folder import Cell, Plan, SweepFolder
from qattrain.experiments.grid import Grid, Point, expand
from qattrain.experiments.ledger import Ledger
from qattrain.files.stopping import Stopped
from qattrain.runs import folder as runs

SECONDS_BETWEEN_LOOKS = 0.25  # at the folder
PTQ_COST = 0.2  # in epochs, to estimate the time left
MOST_DEATHS = 3  # of workers on the same cell: then the cell is at fault
MOST_WORKERS = 8  # by default: each holds torch and a dataset, half a gigabyte
SECONDS_TO_STOP = 60  # an evaluation or a compilation is not interrupted


@dataclass(frozen=True)
class Status:
    """The state of a sweep. running: share done by cell name. best: name and accuracy of the best finished cell."""

    total: int
    finished: int
    elsewhere: int
    failed: dict[str, str]
    running: dict[str, float]
    best: tuple[str, float] | None
    seconds_left: float | None


# Called with the status now and then, and with the name and the accuracy or error line of each cell that ends.
Watcher = Callable[[Status, tuple[str, float | str] | None], None]


@dataclass(frozen=True)
class Images:
    """What is known of a dataset without its images. dataset: its specification. train: how many training images."""

    dataset: str
    shape: Shape
    classes: int
    train: int


class Crew(Protocol):
    """Workers: they claim cells, run them, and write result.json or a failure into the folder."""

    owners: Set[str]  # the names under which they claim cells

    @property
    def size(self) -> int:
        """How many there are."""

    def describe(self, data: dict[str, Any]) -> Images:
        """The images of this `data` section, where the workers find them. Raises ConfigError, DataError."""

    def settle(self, points: list[Point]) -> list[Cell]:
        """The cells of the grid; `auto` is settled where they will run. Raises ConfigError, DataError."""

    def step(self, ledger: Ledger) -> None:
        """Keep the workers busy with the open cells, for about SECONDS_BETWEEN_LOOKS.

        Raises any QattrainError that ends the sweep.
        """

    def close(self) -> None:
        """Stop and save what is running, where that is possible, and release everything."""


def run_sweep(
    grid: Grid,
    folder: SweepFolder,
    runs_dir: Path,
    hire: Callable[[], Crew],
    watch: Watcher,
    say: Callable[[str], None],
) -> Plan:
    """Run the unfinished cells of `grid` in `folder`; `hire` is called only if there is something to do.

    A cell that fails is recorded and does not end the sweep. Raises ConfigError, DataError, CheckpointError,
    TrainingError; Stopped after the crew has stopped.
    """
    with contextlib.ExitStack() as stack:
        crew = functools.cache(lambda: stack.enter_context(contextlib.closing(hire())))
        try:
            plan = _make_plan(grid, folder, runs_dir, crew)
            folder.make()
            sweep = Sweep(folder, plan.cells, watch)
            kept = f", {len(sweep.kept)} finished before" if sweep.kept else ""
            say(f"{folder.path}: {len(plan.cells)} cells{kept}")
            for line in sweep.ledger.damaged.values():
                say(f"{line.partition(';')[0]}; it is written again")
            if sweep.ledger.open:
                sweep.run(crew())
        except (Stopped, KeyboardInterrupt):
            with contextlib.suppress(OSError):  # the terminal may be gone
                say("stopping and saving what is running; press Ctrl-C again to stop at once")
            raise
    return plan


def _make_plan(grid: Grid, folder: SweepFolder, runs_dir: Path, crew: Callable[[], Crew]) -> Plan:
    """The recorded plan if it is of this grid, so that `auto` is settled only once; else a new one, recorded."""
    points = expand(grid)  # also if a plan is recorded: a mistake shows at every start
    plan = folder.read_plan()
    if plan is not None and plan.asked == grid.asked():
        recorded = plan.cells[0].config["train"]["threads"]
        if grid.threads not in (None, recorded):
            raise ConfigError(
                f"--threads {grid.threads}: {folder.path} was started with {recorded} per worker and keeps them, so "
                "that its cells are comparable; leave the option out, or choose another --name"
            )
        return plan
    for point in points:
        if point.config["train"]["init"] is not None:
            found = runs.find_checkpoint(point.config["train"]["init"], runs_dir)
            point.config["train"]["init"] = str(found.resolve())  # so that it is found from a cell
    folder.refuse_a_run()
    plan = Plan(grid.asked(), grid.axes, folder.with_known_names(crew().settle(points)))
    folder.make()  # only now: a grid that is refused leaves nothing behind
    folder.write_plan(plan)
    return plan


class Sweep:
    """Watches the folder until every cell is finished or has failed."""

    def __init__(
        self,
        folder: SweepFolder,
        cells: list[Cell],
        watch: Watcher,
        make_ledger: Callable[[list[Cell]], Ledger] | None = None,
    ) -> None:
        self.folder, self.watch = folder, watch
        self.costs = {cell.name: cost(cell) for cell in cells}
        self.ledger = make_ledger(cells) if make_ledger is not None else Ledger(folder, cells)
        self.kept = set(self.ledger.finished)
        self.started = time.monotonic()

    def run(self, crew: Crew) -> None:
        """Returns when nothing is left to do. Raises Stopped, and any error that is not one cell's."""
        while True:
            for cell in self.ledger.open.values():
                if cell.source in self.ledger.failed:
                    line = f"not made, because its float network {cell.source} failed"
                    self.folder.set_failure(cell.name, line)
            for ended in self.ledger.ended():
                self.watch(self.status(crew.owners), ended)
            self.watch(self.status(crew.owners), None)
            if not self.ledger.open:
                return
            crew.step(self.ledger)

    def status(self, owners: Set[str]) -> Status:
        """owners: of the claims that belong to this sweep."""
        ledger, claims = self.ledger, self.folder.read_claims(self.ledger.open)
        running = {name: claim.share for name, claim in claims.items() if claim.owner in owners}
        return Status(
            total=len(self.costs),
            finished=len(ledger.finished),
            elsewhere=sum(claim.held for name, claim in claims.items() if name not in running),
            failed=dict(ledger.failed),
            running=running,
            best=max(ledger.finished.items(), key=lambda item: item[1], default=None),
            seconds_left=self._seconds_left(running),
        )

    def _seconds_left(self, running: dict[str, float]) -> float | None:
        """Estimated from the epochs done since the start; None before any are."""
        under_way = sum(self.costs[name] * share for name, share in running.items())
        done = under_way + sum(self.costs[name] for name in self.ledger.finished if name not in self.kept)
        left = sum(self.costs[name] for name in self.ledger.open) - under_way
        return left * (time.monotonic() - self.started) / done if done else None


def cost(cell: Cell) -> float:
    """Roughly how long the cell takes, in epochs."""
    epochs: int = cell.until or cell.config["train"]["epochs"]
    return PTQ_COST if cell.config["ptq"] else epochs


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalCrew:
    """Up to `workers` processes with `threads` threads each, started when there is something to do.

    workers: None means one per core, at most MOST_WORKERS, because cells in parallel are faster than one cell on
    several threads. threads: None divides the cores among the workers.
    """

    def __init__(self, folder: SweepFolder, data_dir: Path, workers: int | None, threads: int | None) -> None:
        self.folder, self.data_dir = folder, data_dir
        self.workers = self.size = workers or min(cores(), MOST_WORKERS)
        self.threads = threads or max(1, cores() // self.workers)
        self.alive: dict[str, BaseProcess] = {}  # by the name under which it claims cells
        self.owners: Set[str] = self.alive.keys()
        self.deaths: dict[str, str] = {}  # how each ended, by the same name
        self.deaths_in_vain = 0  # without a cell, since a worker last held one

    def settle(self, points: list[Point]) -> list[Cell]:
        answer: list[Cell] = self._ask(settle_and_send, points, self.threads, self.data_dir)
        return answer

    def describe(self, data: dict[str, Any]) -> Images:
        answer: Images = self._ask(describe_and_send, data, self.data_dir)
        return answer

    def _ask(self, target: Callable[..., None], *arguments: Any) -> Any:
        """What the function sends, run in a process of its own. Raises any QattrainError that it sends."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = _start(target, sender, *arguments)
        sender.close()  # so that receiving fails if the process dies
        try:
            answer = receiver.recv()
        except EOFError:
            process.join()
            raise TrainingError(f"the worker process {_death(process)}; free some memory and start again") from None
        finally:
            process.kill()
        if isinstance(answer, QattrainError):
            raise answer
        return answer

    def step(self, ledger: Ledger) -> None:
        for _ in range(len(self.alive), min(self.workers, len(ledger.ready()))):
            owner = uuid.uuid4().hex
            self.alive[owner] = _start(run_worker, ledger, owner, self.data_dir)
        wait([process.sentinel for process in self.alive.values()], SECONDS_BETWEEN_LOOKS)
        self._count_deaths(ledger)

    def _count_deaths(self, ledger: Ledger) -> None:
        """Fail a cell with which too many workers died; raise TrainingError if workers die before they claim one."""
        gone = {owner: process for owner, process in self.alive.items() if process.exitcode is not None}
        for owner, process in gone.items():
            del self.alive[owner]
            self.deaths[owner] = _death(process)
        claims = self.folder.read_claims(ledger.open)  # they still name the dead, even if others hold them now
        holders = {owner for claim in claims.values() for owner in (*claim.dead, claim.owner)}
        self.deaths_in_vain = 0 if holders & self.owners else self.deaths_in_vain + len(gone.keys() - holders)
        if self.deaths_in_vain >= MOST_DEATHS:
            raise TrainingError(f"the worker process {[*self.deaths.values()][-1]}; free some memory and start again")
        for name, claim in claims.items():
            deaths = [self.deaths[owner] for owner in (*claim.dead, claim.owner) if owner in self.deaths]
            if len(deaths) >= MOST_DEATHS:
                line = f"its worker process {deaths[-1]}, {MOST_DEATHS} times; is there enough memory?"
                self.folder.set_failure(name, line)

    def close(self) -> None:
        """Every worker saves its cell and ends. It is killed if that takes over a minute, or at a second Ctrl-C."""
        try:
            for process in self.alive.values():
                process.terminate()
            deadline = time.monotonic() + SECONDS_TO_STOP
            for process in self.alive.values():
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self.alive.values():
                process.kill()
            self.alive.clear()


def _start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process. It never gets a terminal's Ctrl-C, only the signals of `LocalCrew.close`."""
    # A fresh interpreter: torch's threads do not survive a fork.
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _death(process: BaseProcess) -> str:
    code = process.exitcode
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"


# What the processes run. Only they import torch.


def settle_and_send(sender: Connection, points: list[Point], threads: int, data_dir: Path) -> None:
    """Send the cells of the grid, or the QattrainError that it causes."""
    from qattrain.experiments.cells import cached_load, settle

    try:
        sender.send(settle(points, threads, data_dir, cached_load))
    except QattrainError as error:
        sender.send(error)


def describe_and_send(sender: Connection, data: dict[str, Any], data_dir: Path) -> None:
    """Send what `cells.describe` says of these images, or the QattrainError that they cause."""
    from qattrain.experiments.cells import cached_load, describe

    try:
        sender.send(describe(data, data_dir, cached_load))
    except QattrainError as error:
        sender.send(error)


def run_worker(*arguments: Any) -> None:
    """`cells.work`, imported where it runs."""
    from qattrain.experiments.cells import work

    work(*arguments)
