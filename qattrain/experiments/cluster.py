"""A crew of workers of a dask cluster that somebody else started: over SSH, by SLURM, in Kubernetes, or by hand.

Cells go out and slices of their run folders come back through the scheduler; this process claims the cells and writes
the folders. It opens no port. If a worker dies, dask itself gives its task to another.

The workers share no folder with this process or with each other. A slice ends after `SLICE_SECONDS` of training, at
whatever step that is, so at most that much is lost with a worker, and any worker can resume it exactly. Only the
functions that run on workers import torch; dask pickles them by reference.
"""

import asyncio
import contextlib
import logging
import os
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qattrain
from qattrain.errors import (
    ConfigError,
    DataError,
    QattrainError,
    TrainingError,
    optional_package,
    reason,
    write_errors,
)
from qattrain.experiments.folder import RESULT_FILE, Cell, Report, SweepFolder
from qattrain.experiments.grid import Point
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.sweep import SECONDS_BETWEEN_LOOKS, Images
from qattrain.files import cache_dir, replace_files
from qattrain.runs import folder as runs

if TYPE_CHECKING:
    from qattrain.data import Dataset

CONNECT_SECONDS = 4
WORKER_SECONDS = 30  # to wait for a first worker
SLICE_SECONDS = 30.0
POLL_SECONDS = 0.05
STATE_FILES = (runs.CONFIG_FILE, runs.METRICS_FILE, runs.LAST_FILE, runs.BEST_FILE)


@dataclass(frozen=True)
class Slice:
    """What a worker sends back. files: of the cell, by name. share: of its training that is done.

    error: why the cell failed. unfit: why the worker, at that address, did not run it.
    """

    files: dict[str, bytes]
    share: float = 0.0
    error: str | None = None
    unfit: QattrainError | None = None
    worker: str = ""


class DaskCrew:
    """Workers of the cluster whose scheduler is at `address`. data_dir: on the workers; None: each has its own.

    Raises TrainingError if the scheduler cannot be reached, has no workers, or has one that cannot run this qattrain.
    """

    def __init__(self, address: str, folder: SweepFolder, data_dir: Path | None, threads: int) -> None:
        self.address, self.folder, self.data_dir, self.threads = address, folder, data_dir, threads
        self.client = _connect(address)
        # By future. Closing the stack gives the claim back; the report writes the share done into it.
        self.running: dict[Any, tuple[Cell, contextlib.ExitStack, Report]] = {}
        self.owners: Set[str] = {folder.owner}
        self.checked: set[str] = set()  # datasets
        try:
            self._check_workers()
        except BaseException:
            self.client.close()
            raise

    def settle(self, points: list[Point]) -> list[Cell]:
        for section, key in (("train", "init"), ("distill", "teacher")):
            for file in (point.config[section][key] for point in points):
                if file is not None:
                    what = f"{section}.{key} = {file!r}"
                    raise ConfigError(f"{what}: that file is here, not on the workers; leave out --scheduler")
        for dataset in {point.config["data"]["dataset"] for point in points}:
            self._check_data(dataset)
        found: list[Cell] = self._ask(settle_here, points, self.threads, self.data_dir)
        return found

    @property
    def size(self) -> int:
        return len(self.client.nthreads())

    def describe(self, data: dict[str, Any]) -> Images:
        self._check_data(data["dataset"])
        found: Images = self._ask(describe_here, data, self.data_dir)
        return found

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns on one of the workers. Raises any QattrainError that it returns."""
        future = self.client.submit(function, *arguments, pure=False)
        while not self._is_done(future):
            time.sleep(POLL_SECONDS)
        if future.status == "error":
            raise TrainingError(f"the workers of {self.address} failed: {future.exception()!r}")
        found = self.client.gather(future, direct=False)
        if isinstance(found, QattrainError):
            raise found
        return found

    def step(self, ledger: Ledger) -> None:
        for cell in ledger.ready():
            if len(self.running) > len(self.client.nthreads()):  # one more than workers: none has to wait for us
                break
            self._begin(cell, ledger)
        deadline = time.monotonic() + SECONDS_BETWEEN_LOOKS
        while not (done := [future for future in self.running if self._is_done(future)]):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        for future in done:
            self._take(future)

    def _begin(self, cell: Cell, ledger: Ledger) -> None:
        with contextlib.ExitStack() as claim:
            report = claim.enter_context(self.folder.claimed(cell.name))
            if report is not None and ledger.outcome(cell) is None:  # else another sweep runs it, or has just ended it
                dataset = cell.config["data"]["dataset"]
                if dataset not in self.checked:
                    self._check_data(dataset)
                self._submit(cell, claim.pop_all(), report)

    def _submit(self, cell: Cell, claim: contextlib.ExitStack, report: Report) -> None:
        paths = [Path(cell.name) / name for name in STATE_FILES]
        paths += [Path(cell.source) / runs.LAST_FILE] if cell.source is not None else []
        files = {
            path: (self.folder.cells / path).read_bytes() for path in paths if (self.folder.cells / path).is_file()
        }
        key = f"qattrain-{cell.name}-{uuid.uuid4().hex}"
        task = cell, files, self.data_dir, SLICE_SECONDS, qattrain.__version__
        with warnings.catch_warnings(action="ignore"):  # dask warns that a checkpoint is large
            self.running[self.client.submit(run_slice, *task, key=key, pure=False)] = cell, claim, report

    def _take(self, future: Any) -> None:
        """Write what came back into the folder; send the cell out again if it is neither finished nor failed."""
        cell, claim, report = self.running.pop(future)
        with claim:
            if future.status == "error":
                error = future.exception()
                died = type(error).__name__ == "KilledWorker"
                line = "every worker that ran it died" if died else f"on a worker: {error!r}"
                self.folder.set_failure(cell.name, line)
                return
            found: Slice = self.client.gather(future, direct=False)
            if found.unfit is not None:
                raise _of_worker(found.worker, found.unfit)
            self._write(cell.name, found.files)
            self.folder.set_failure(cell.name, found.error)
            if found.error is None and RESULT_FILE not in found.files:
                report(found.share)
                self._submit(cell, claim.pop_all(), report)

    def _write(self, name: str, files: dict[str, bytes]) -> None:
        run_dir = self.folder.cells / name
        with write_errors(TrainingError, f"cannot write {run_dir}", "choose another --runs-dir"):
            run_dir.mkdir(exist_ok=True)
            # result.json last: it says that the others are complete.
            replace_files(run_dir, dict(sorted(files.items(), key=lambda item: item[0] == RESULT_FILE)))

    def close(self) -> None:
        """Give the claims back and forget what the workers are doing; they end their slices by themselves."""
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.client.cancel(list(self.running))
        for _, claim, _ in self.running.values():
            claim.close()
        self.running.clear()
        self.client.close(timeout=CONNECT_SECONDS)

    def _is_done(self, future: Any) -> bool:
        if future.status == "cancelled" or self.client.status != "running":
            raise TrainingError(
                f"the scheduler at {self.address} is gone; what is finished is kept; start it and run this command "
                "again to resume"
            )
        return future.status in ("finished", "error")  # dask computes a lost one again

    def _check_workers(self) -> None:
        def version() -> str | None:  # pickled by value: a worker without qattrain can run it, too
            try:
                import qattrain
            except ImportError:
                return None
            return qattrain.__version__

        try:
            self.client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise TrainingError(
                f"the scheduler at {self.address} has no workers after {WORKER_SECONDS} s; start one with: "
                f"dask worker {self.address} --nthreads 1"
            ) from None
        for worker, found in self.client.run(version).items():
            if found != qattrain.__version__:
                raise _of_worker(worker, _other_version(found, qattrain.__version__))

    def _check_data(self, dataset: str) -> None:
        for worker, problem in self.client.run(data_problem, dataset, self.data_dir).items():
            if problem is not None:
                raise _of_worker(worker, problem)
        self.checked.add(dataset)


def _of_worker(worker: str, error: QattrainError) -> QattrainError:
    return type(error)(f"worker {worker}: {error}")


def _other_version(found: str | None, expected: str) -> TrainingError:
    """The error for a worker with another qattrain, or, where `found` is None, without."""
    has = f"qattrain {found}" if found else "no qattrain"
    return TrainingError(f"it has {has}, this is {expected}; install that there")


def _connect(address: str) -> Any:
    with optional_package("distributed", "--scheduler"):
        import distributed
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # our own errors say what matters
    untyped: Any = distributed

    async def handshake() -> None:
        options = untyped.Security().get_connection_args("client")
        connection = untyped.comm.connect(address, timeout=CONNECT_SECONDS, **options)
        (await asyncio.wait_for(connection, CONNECT_SECONDS + 1)).abort()

    try:
        asyncio.run(handshake())  # a Client takes long to give up
        return untyped.Client(address, timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False)
    except Exception as error:  # an address can be wrong in any way
        raise TrainingError(
            f"--scheduler {address}: no dask scheduler answered within {CONNECT_SECONDS} s ({reason(error)}); "
            "start one with: dask scheduler --host 127.0.0.1 --port 8786"
        ) from None


# What runs on the workers.

# One cell at a time in a process: torch's random numbers and number of threads belong to all of its threads.
_busy = threading.Lock()


def run_slice(cell: Cell, files: dict[Path, bytes], data_dir: Path | None, seconds: float, version: str) -> Slice:
    """Run the cell on this worker for some seconds. Raises nothing that one cell can cause.

    files: of the cell so far, and the checkpoint of a PTQ cell's source, by their paths. version: of the sweep.
    """
    from qattrain.experiments.cells import error_line, run_cell

    unfit = data_problem(cell.config["data"]["dataset"], data_dir)
    if qattrain.__version__ != version:
        unfit = _other_version(qattrain.__version__, version)
    if unfit is not None:
        from distributed import get_worker

        return Slice({}, unfit=unfit, worker=get_worker().address)
    error, shares = None, [0.0]
    with _busy, tempfile.TemporaryDirectory(prefix="qattrain-") as folder:
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.daemon = True
        timer.start()
        try:
            for path, data in files.items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(data)
            run_cell(cell, Path(folder), worker_data_dir(data_dir), load_present, stop, shares.append)
        except Exception as failure:  # a mistake in one cell does not stop the others
            error = error_line(failure)
        finally:
            timer.cancel()
        found = {path.name: path.read_bytes() for path in Path(folder, cell.name).glob("*") if path.is_file()}
    return Slice(found, shares[-1], error)


def settle_here(points: list[Point], threads: int, data_dir: Path | None) -> list[Cell] | QattrainError:
    """`cells.settle` on this worker; an error is returned, because dask wraps exceptions in its own way."""
    from qattrain.experiments.cells import settle

    try:
        with _busy:
            return settle(points, threads, worker_data_dir(data_dir), load_present)
    except QattrainError as error:
        return error


def describe_here(data: dict[str, Any], data_dir: Path | None) -> Images | QattrainError:
    """`cells.describe` on this worker, in the same way."""
    from qattrain.experiments.cells import describe

    try:
        return describe(data, worker_data_dir(data_dir), load_present)
    except QattrainError as error:
        return error


def data_problem(dataset: str, data_dir: Path | None) -> QattrainError | None:
    """What keeps this worker from using the dataset, or None."""
    from qattrain.data import AUTO_NAME, is_on_disk

    folder = worker_data_dir(data_dir)
    try:
        if dataset == AUTO_NAME or is_on_disk(dataset, folder):
            return None
    except QattrainError as error:
        return error
    return DataError(
        f"it has no {dataset} in {folder}; put the files there, or name their folder with --data-dir, or with "
        "QATTRAIN_DATA_DIR where the worker is started"
    )


def worker_data_dir(asked: Path | None) -> Path:
    """Where this worker's datasets are: the folder asked for, or its own default."""
    own = os.environ.get("QATTRAIN_DATA_DIR")
    return asked or (Path(own) if own else cache_dir())


def load_present(name: str, data_dir: Path) -> "Dataset":
    """The dataset, from this worker's disk: a hundred workers should not all download it. Raises DataError."""
    from qattrain.experiments.cells import cached_load

    problem = data_problem(name, data_dir)
    if problem is not None:
        raise problem
    return cached_load(name, data_dir)
