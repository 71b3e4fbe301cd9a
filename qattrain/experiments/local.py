"""A crew of processes on this machine, and what such a process does."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qattrain.errors import TrainingError
from qattrain.experiments.folder import Cell, SweepFolder
from qattrain.experiments.grid import Point
from qattrain.experiments.sweep import Event

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


def work(pipe: Connection, folder: Path, data_dir: Path) -> None:
    """The life of a worker. Takes ("load",), ("settle", points, threads), ("run", cell), ("stop",) from `pipe`.

    Answers with ("settled", cells), ("error", exception), or an Event's fields; to ("load",), of torch, not at all.
    """
    tasks: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(pipe, tasks, stop), daemon=True).start()
    while (task := tasks.get()) is not None and not stop.is_set():
        try:
            if task[0] == "load":
                import qattrain.experiments.cells  # noqa: F401
            elif task[0] == "settle":
                pipe.send(_settled(task[1], task[2], data_dir))
            else:
                _run(pipe, SweepFolder(folder), task[1], data_dir, stop)
        except OSError:  # nobody is listening any more
            return


def _listen(pipe: Connection, tasks: queue.SimpleQueue[tuple[Any, ...] | None], stop: threading.Event) -> None:
    while True:
        try:
            message = pipe.recv()
        except (OSError, EOFError):
            message = ("stop",)
        if message[0] == "stop":
            stop.set()
            tasks.put(None)
            return
        tasks.put(message)


def _settled(points: Any, threads: int, data_dir: Path) -> tuple[Any, ...]:
    from qattrain.errors import QattrainError
    from qattrain.experiments.cells import cached_load, settle

    try:
        return "settled", settle(points, threads, data_dir, cached_load)
    except QattrainError as error:
        return "error", error


def _run(pipe: Connection, folder: SweepFolder, cell: Cell, data_dir: Path, stop: threading.Event) -> None:
    from qattrain.experiments.cells import cached_load, error_line, run_cell

    def report(share: float) -> None:
        with contextlib.suppress(OSError):  # nobody is listening: `stop` will be set, and the cell saved
            pipe.send(("progress", cell.name, "", share))

    with folder.claimed(cell.name) as ours:
        if not ours:
            pipe.send(("busy", cell.name))
            return
        answer: tuple[Any, ...] = ("finished", cell.name)
        if folder.result(cell) is None:  # another sweep may have finished it before we claimed it
            try:
                if not run_cell(cell, folder.cells, data_dir, cached_load, stop, report):
                    answer = ("stopped", cell.name)
            except Exception as error:  # whatever is wrong with one cell, the others go on
                line = error_line(error)
                folder.set_failure(cell.name, line)
                answer = ("failed", cell.name, line)
            else:
                folder.set_failure(cell.name, None)
    pipe.send(answer)
