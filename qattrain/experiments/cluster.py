"""A crew of workers of a dask cluster that somebody started: over SSH, by SLURM, in Kubernetes, or by hand.

Everything goes through the scheduler: cells out, slices of their run folders back, which this process writes. Nothing
is opened for others to connect to. dask itself gives the task of a worker that died to another.
"""

import asyncio
import contextlib
import logging
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qattrain
from qattrain.errors import ConfigError, QattrainError, TrainingError
from qattrain.experiments.folder import RESULT_FILE, Cell, SweepFolder
from qattrain.experiments.grid import Point
from qattrain.experiments.sweep import Event
from qattrain.files import replace_files
from qattrain.runs import folder as runs

CONNECT_SECONDS = 4
WORKER_SECONDS = 30  # for a first worker to be there
SLICE_SECONDS = 30.0
POLL_SECONDS = 0.05
STATE_FILES = (runs.CONFIG_FILE, runs.METRICS_FILE, runs.LAST_FILE, runs.BEST_FILE)


class DaskCrew:
    """Workers of the cluster whose scheduler is at `address`. data_dir: on the workers; None: each knows its own.

    Raises ConfigError if the scheduler cannot be reached, has no workers, or one of them cannot run this qattrain.
    """

    def __init__(self, address: str, folder: SweepFolder, data_dir: Path | None, threads: int) -> None:
        self.address, self.folder, self.data_dir, self.threads = address, folder, data_dir, threads
        self.client = _connect(address)
        self.running: dict[Any, tuple[Cell, contextlib.ExitStack]] = {}  # by future; the stack holds the claim
        self.happened: list[Event] = []
        self.checked: set[str] = set()
        try:
            self._check_workers()
        except BaseException:
            self.client.close()
            raise

    def settle(self, points: list[Point]) -> list[Cell]:
        from qattrain.experiments.remote import settle_here

        for section, key in (("train", "init"), ("distill", "teacher")):
            for file in (point.config[section][key] for point in points):
                if file is not None:
                    what = f"{section}.{key} = {file!r}"
                    raise ConfigError(f"{what}: that file is here, not on the workers; leave out --scheduler")
        for dataset in {point.config["data"]["dataset"] for point in points}:
            self._check_data(dataset)
        found = self._result(settle_here, points, self.threads, self.data_dir)
        if isinstance(found, QattrainError):
            raise found
        cells: list[Cell] = found
        return cells

    def free(self) -> bool:
        """One more than there are workers, so that none waits for us."""
        return len(self.running) <= len(self.client.nthreads())

    def begin(self, cell: Cell) -> None:
        stack = contextlib.ExitStack()
        if not stack.enter_context(self.folder.claimed(cell.name)):
            stack.close()
            self.happened.append(Event("busy", cell.name))
        elif self.folder.result(cell) is not None:  # another sweep finished it before we claimed it
            stack.close()
            self.happened.append(Event("finished", cell.name))
        else:
            dataset = cell.config["data"]["dataset"]
            if dataset not in self.checked:
                self._check_data(dataset)
            self._submit(cell, stack)

    def _submit(self, cell: Cell, stack: contextlib.ExitStack) -> None:
        from qattrain.experiments.remote import Task, run_slice

        run_dir = self.folder.cells / cell.name
        source = None if cell.source is None else (self.folder.cells / cell.source / runs.LAST_FILE).read_bytes()
        files = {name: (run_dir / name).read_bytes() for name in STATE_FILES if (run_dir / name).is_file()}
        task = Task(cell, files if runs.LAST_FILE in files else {}, source, self.data_dir, SLICE_SECONDS)
        with warnings.catch_warnings(action="ignore"):  # dask finds a checkpoint large
            future = self.client.submit(run_slice, task, key=f"qattrain-{cell.name}-{uuid.uuid4().hex}", pure=False)
        self.running[future] = cell, stack

    def events(self, seconds: float) -> list[Event]:
        deadline = time.monotonic() + seconds
        while True:
            happened, self.happened = self.happened, []
            for future in [future for future in self.running if self._is_done(future)]:
                happened += self._take(future)
            if happened or time.monotonic() > deadline:
                return happened
            time.sleep(POLL_SECONDS)

    def _take(self, future: Any) -> Iterator[Event]:
        cell, stack = self.running.pop(future)
        with stack:
            if future.status == "error":
                error = future.exception()
                died = type(error).__name__ == "KilledWorker"
                yield self._failed(cell, "every worker it was given to died" if died else f"on a worker: {error!r}")
                return
            found = self.client.gather(future, direct=False)
            if found.unfit is not None:
                raise _of_worker(found.worker, found.unfit)
            self._write(cell, found.files)
            if found.error is not None:
                yield self._failed(cell, found.error)
            elif found.finished:
                self.folder.set_failure(cell.name, None)
                yield Event("finished", cell.name)
            else:
                self._submit(cell, stack.pop_all())
                yield Event("progress", cell.name, share=found.share)

    def _failed(self, cell: Cell, line: str) -> Event:
        self.folder.set_failure(cell.name, line)
        return Event("failed", cell.name, line)

    def _write(self, cell: Cell, files: dict[str, bytes]) -> None:
        run_dir = self.folder.cells / cell.name
        try:
            run_dir.mkdir(exist_ok=True)
            # Last what says that the others are complete.
            replace_files(run_dir, dict(sorted(files.items(), key=lambda item: item[0] == RESULT_FILE)))
        except OSError as error:
            raise TrainingError(f"cannot write {run_dir}: {error.strerror}; free space there") from None

    def close(self) -> None:
        """Claims fall, and what the workers are at is forgotten: they end their slices by themselves."""
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.client.cancel(list(self.running))
        for _, stack in self.running.values():
            stack.close()
        self.running.clear()
        self.client.close(timeout=CONNECT_SECONDS)

    def _is_done(self, future: Any) -> bool:
        if future.status == "cancelled" or self.client.status != "running":
            raise TrainingError(
                f"the scheduler at {self.address} is gone; what is finished is kept; start it, then this command again"
            )
        return future.status in ("finished", "error")  # a lost one is computed again

    def _result(self, function: Callable[..., Any], *arguments: Any) -> Any:
        future = self.client.submit(function, *arguments, pure=False)
        while not self._is_done(future):
            time.sleep(POLL_SECONDS)
        if future.status == "error":
            raise TrainingError(f"the workers of {self.address} failed: {future.exception()!r}")
        return self.client.gather(future, direct=False)

    def _check_workers(self) -> None:
        def version() -> str | None:  # travels as it is: a worker without qattrain can run it, too
            try:
                import qattrain
            except ImportError:
                return None
            return qattrain.__version__

        try:
            self.client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise ConfigError(
                f"the scheduler at {self.address} has no workers after {WORKER_SECONDS} s; start one with: "
                f"dask worker {self.address} --nthreads 1"
            ) from None
        for worker, found in self.client.run(version).items():
            if found != qattrain.__version__:
                from qattrain.experiments.remote import other_version

                raise _of_worker(worker, other_version(found, qattrain.__version__))

    def _check_data(self, dataset: str) -> None:
        from qattrain.experiments.remote import data_problem

        for worker, problem in self.client.run(data_problem, dataset, self.data_dir).items():
            if problem is not None:
                raise _of_worker(worker, problem)
        self.checked.add(dataset)


def _of_worker(worker: str, error: QattrainError) -> QattrainError:
    return type(error)(f"worker {worker}: {error}")


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(
            f"--scheduler: package {error.name or error} cannot be imported; it comes with: "
            "pip install 'qattrain[distributed]'"
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is told by our errors
    untyped: Any = distributed

    async def handshake() -> None:
        options = untyped.Security().get_connection_args("client")
        connection = untyped.comm.connect(address, timeout=CONNECT_SECONDS, **options)
        (await asyncio.wait_for(connection, CONNECT_SECONDS + 1)).abort()

    try:
        asyncio.run(handshake())  # a Client that does not get through takes long to give up
        return untyped.Client(address, timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False)
    except Exception as error:  # an address can be wrong in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"--scheduler {address}: no dask scheduler answered within {CONNECT_SECONDS} s ({reason}); start one with: "
            "dask scheduler --host 127.0.0.1 --port 8786"
        ) from None
