"""What a worker of a dask cluster runs: a slice of a cell, from files that came with the task to files that go back.

A worker has no folder in common with anybody. A slice ends after `seconds` of training, at whatever step it is then,
so that a worker that dies takes no more than that with it; the next one goes on from there, on any worker, exactly.
"""

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import qattrain
from qattrain.data import AUTO_NAME, Dataset, is_on_disk
from qattrain.errors import ConfigError, DataError, QattrainError
from qattrain.experiments.cells import cached_load, error_line, run_cell, settle
from qattrain.experiments.folder import Cell
from qattrain.experiments.grid import Point
from qattrain.files import default_data_dir
from qattrain.runs import folder as runs

# One cell at a time in a process: torch's random numbers and number of threads belong to all of its threads.
_busy = threading.Lock()


@dataclass(frozen=True)
class Task:
    """A slice to run. files: of the cell, by name, so far. source: `last.pt` of a PTQ cell's float cell."""

    cell: Cell
    files: dict[str, bytes]
    source: bytes | None
    data_dir: Path | None
    seconds: float
    version: str = qattrain.__version__


@dataclass(frozen=True)
class Slice:
    """What came of it. error: the cell failed. unfit: nothing was run, for this worker, at that address, cannot."""

    files: dict[str, bytes]
    finished: bool = False
    error: str | None = None
    unfit: QattrainError | None = None
    worker: str = ""
    share: float = 0.0


def run_slice(task: Task) -> Slice:
    """Runs on a worker. Raises nothing that one cell can cause."""
    unfit = data_problem(task.cell.config["data"]["dataset"], task.data_dir)
    if qattrain.__version__ != task.version:
        unfit = other_version(qattrain.__version__, task.version)
    if unfit is not None:
        from distributed import get_worker

        return Slice({}, unfit=unfit, worker=get_worker().address)
    share = 0.0

    def report(done: float) -> None:
        nonlocal share
        share = done

    with _busy, tempfile.TemporaryDirectory(prefix="qattrain-") as folder:
        stop = threading.Event()
        timer = threading.Timer(task.seconds, stop.set)
        timer.daemon = True
        timer.start()
        run_dir = Path(folder) / task.cell.name
        error = None
        finished = False
        try:
            if task.source is not None:
                assert task.cell.source is not None, task.cell
                (Path(folder) / task.cell.source).mkdir()
                (Path(folder) / task.cell.source / runs.LAST_FILE).write_bytes(task.source)
            if task.files:
                run_dir.mkdir()
                for name, data in task.files.items():
                    (run_dir / name).write_bytes(data)
            finished = run_cell(task.cell, Path(folder), worker_data_dir(task.data_dir), load_present, stop, report)
        except Exception as failure:  # whatever is wrong with one cell, the others go on
            error = error_line(failure)
        finally:
            timer.cancel()
        files = {path.name: path.read_bytes() for path in run_dir.glob("*") if path.is_file()}
    return Slice(files, finished, error, share=share)


def settle_here(points: list[Point], threads: int, data_dir: Path | None) -> list[Cell] | QattrainError:
    """`cells.settle` on a worker; an error comes back as a value, for dask has its own way with exceptions."""
    try:
        with _busy:
            return settle(points, threads, worker_data_dir(data_dir), load_present)
    except QattrainError as error:
        return error


def other_version(found: str | None, expected: str) -> ConfigError:
    """The error for a worker with another qattrain, or, where `found` is None, without."""
    has = f"qattrain {found}" if found else "no qattrain"
    return ConfigError(f"it has {has}, this is {expected}; install that there")


def data_problem(dataset: str, data_dir: Path | None) -> QattrainError | None:
    """What keeps this worker from using the dataset, or None."""
    try:
        _check_data(dataset, worker_data_dir(data_dir))
    except QattrainError as error:
        return error
    return None


def _check_data(dataset: str, data_dir: Path) -> None:
    if dataset != AUTO_NAME and not is_on_disk(dataset, data_dir):
        raise DataError(
            f"it has no {dataset} in {data_dir}; put the files there, or name their folder with --data-dir, or with "
            "QATTRAIN_DATA_DIR where the worker is started"
        )


def worker_data_dir(asked: Path | None) -> Path:
    """Where this worker's datasets lie: as asked, or where its own environment says."""
    own = os.environ.get("QATTRAIN_DATA_DIR")
    return asked or (Path(own) if own else default_data_dir())


def load_present(name: str, data_dir: Path) -> Dataset:
    """The dataset, from this worker's disk: a hundred workers are not all to download it. Raises DataError."""
    _check_data(name, data_dir)
    return cached_load(name, data_dir)
