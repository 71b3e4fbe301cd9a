"""A crew of processes on this machine."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qattrain.errors import TrainingError
from qattrain.sweeps.crew import Event
from qattrain.sweeps.folder import Cell, SweepFolder
from qattrain.sweeps.grid import Point
from qattrain.sweeps.worker import work

MOST_WORKERS = 8  # where nobody says how many: each holds torch and a dataset, half a gigabyte
SECONDS_TO_STOP = 60  # an evaluation or a compilation is not interrupted


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Worker:
    """A process, our end of its pipe, and the cell it works on."""

    process: BaseProcess
    pipe: Connection
    cell: str | None = None


class LocalCrew:
    """`workers` processes, each with `threads` threads; they start when there is something to do.

    Where `workers` is not said: a worker a core, for cells side by side are faster than one on several threads, at most
    MOST_WORKERS. Where `threads` is not said: the cores divided among the workers.
    """

    def __init__(self, folder: SweepFolder, data_dir: Path, workers: int | None, threads: int | None) -> None:
        self.folder, self.data_dir = folder, data_dir
        self.workers = workers or min(cores(), MOST_WORKERS)
        self.threads = threads or max(1, cores() // self.workers)
        self.crew: list[Worker] = []

    def settle(self, points: list[Point]) -> list[Cell]:
        worker = self._hire()
        worker.pipe.send(("settle", points, self.threads))
        for _ in range(min(self.workers, len(points)) - 1):  # the others load torch meanwhile
            self._hire().pipe.send(("load",))
        try:
            kind, answer = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise TrainingError(f"the worker process {_death(worker.process)}; free some memory, start again") from None
        if kind == "error":
            raise answer
        cells: list[Cell] = answer
        return cells

    def free(self) -> bool:
        return len(self.crew) < self.workers or any(worker.cell is None for worker in self.crew)

    def begin(self, cell: Cell) -> None:
        worker = next((worker for worker in self.crew if worker.cell is None), None) or self._hire()
        worker.cell = cell.name
        with contextlib.suppress(OSError):  # it died idle: its closed pipe is an event
            worker.pipe.send(("run", cell))

    def events(self, seconds: float) -> list[Event]:
        found: list[Event] = []
        ready = wait([worker.pipe for worker in self.crew], seconds)
        for worker in [worker for worker in self.crew if worker.pipe in ready]:
            found += self._messages(worker)
        return found

    def _messages(self, worker: Worker) -> Iterator[Event]:
        try:
            while worker.pipe.poll():
                event = Event(*worker.pipe.recv())
                if event.kind != "progress":
                    worker.cell = None
                yield event
        except (EOFError, OSError):
            worker.process.join()
            self.crew.remove(worker)
            if worker.cell is not None:
                yield Event("lost", worker.cell, f"its worker process {_death(worker.process)}")

    def close(self) -> None:
        """Every worker saves its cell and ends; one that has not after a minute, or at a second Ctrl-C, is killed."""
        try:
            for worker in self.crew:
                with contextlib.suppress(OSError):  # gone already
                    worker.pipe.send(("stop",))
            deadline = time.monotonic() + SECONDS_TO_STOP
            for worker in list(self.crew):
                while worker.process.is_alive() and time.monotonic() < deadline:
                    self.events(0)  # a full pipe would keep it from ending
                    worker.process.join(0.05)
        finally:
            for worker in self.crew:
                worker.process.kill()
            self.crew.clear()

    def _hire(self) -> Worker:
        ours, theirs = multiprocessing.Pipe()
        # A fresh interpreter: torch's threads do not survive a fork.
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(theirs, self.folder.path, self.data_dir), daemon=True
        )
        with _interrupts_blocked():
            process.start()
        theirs.close()  # so that the pipe closes when the worker dies
        self.crew.append(Worker(process, ours))
        return self.crew[-1]


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started within it never gets a terminal's Ctrl-C: whoever started it tells it to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(process: Any) -> str:
    code = process.exitcode
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
