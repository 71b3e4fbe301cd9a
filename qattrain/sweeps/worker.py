"""A worker process on this machine: takes cells from a pipe, runs them, one after the other.

It ends when told to, and as soon as the process that started it is gone, however that ended: the pipe closes. A cell
under way is saved then; its claim falls with this process.
"""

import contextlib
import queue
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qattrain.sweeps.folder import Cell, SweepFolder


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
                import qattrain.sweeps.cells  # noqa: F401
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
    from qattrain.sweeps.cells import cached_load, settle

    try:
        return "settled", settle(points, threads, data_dir, cached_load)
    except QattrainError as error:
        return "error", error


def _run(pipe: Connection, folder: SweepFolder, cell: Cell, data_dir: Path, stop: threading.Event) -> None:
    from qattrain.sweeps.cells import cached_load, error_line, run_cell

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
