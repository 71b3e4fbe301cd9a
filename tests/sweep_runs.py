"""A sweep of seconds, and how to watch one that another process runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qattrain.experiments.folder import RESULT_FILE, SweepFolder
from qattrain.experiments.kinds import RESULT_KIND
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.sweep import MOST_DEATHS
from qattrain.files import records
from qattrain.runs import folder as runs

# Six cells, of which four are trained step by step: each takes long enough to be killed in the middle.
GRID = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "250", "--limit-test", "100", "--epochs", "1")
GRID += ("--batch-size", "1", "--lr", "0.003", "--threads", "1", "--bits", "2,32", "--seeds", "0,1", "--ptq", "4")
MOST_SECONDS = 300.0  # of a machine that may be busy with other things


def until(true: Callable[[], Any]) -> Any:
    """Waits for something to be true, and returns it."""
    deadline = time.monotonic() + MOST_SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, true
        time.sleep(0.01)
    return found


def under_way(folder: Path) -> list[Path]:
    """Cells that have a checkpoint and are not finished."""
    found = folder.glob(f"cells/*/{runs.LAST_FILE}")
    return [path.parent for path in found if not (path.parent / RESULT_FILE).exists()]


def figures(folder: Path) -> list[dict[str, Any]]:
    """Every row of a sweep but for the speed, which no two trainings have in common."""
    rows: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def finish(folder: SweepFolder, name: str, accuracy: float = 0.5) -> None:
    """Make the cell a finished one."""
    (folder.cells / name).mkdir(exist_ok=True)
    (folder.cells / name / runs.LAST_FILE).touch()
    result = {"epochs": 1, "accuracy": accuracy, "loss": 0.1, "weight_bytes": 1000, "images_per_second": 9.0}
    records.write(folder.cells / name / RESULT_FILE, RESULT_KIND, result)


def doomed_worker(ledger: Ledger, owner: str, _data_dir: Path) -> None:
    """A worker process without torch. It is killed by the cell c, and by b but for the last try that b has."""
    folder = ledger.folder
    folder.owner = owner
    while list(ledger.ended()) or ledger.open:
        for cell in ledger.ready():
            with folder.claimed(cell.name) as report:
                if report is not None and ledger.outcome(cell) is None:
                    with (folder.path / "begun").open("a") as log:
                        log.write(cell.name)
                    tries = (folder.path / "begun").read_text().count(cell.name)
                    if cell.name == "c" or (cell.name == "b" and tries < MOST_DEATHS):
                        os.kill(os.getpid(), signal.SIGKILL)
                    finish(folder, cell.name)
        time.sleep(0.01)


class Cluster:
    """A scheduler and workers, each a process, that listen on the loopback only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, list[subprocess.Popen[bytes]]()
        self.environment = os.environ | {"XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        self.environment.pop("QATTRAIN_DATA_DIR", None)
        place = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(place))
        until(place.exists)
        self.address: str = until(lambda: _address(place))

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        command = [sys.executable, "-m", "dask", kind, *arguments, *local]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def add_worker(self, preload: str = "") -> subprocess.Popen[bytes]:
        """preload: Python code that the worker runs first."""
        arguments = ["--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder)]
        if preload:
            (self.folder / "preload.py").write_text(preload)
            arguments += ["--preload", str(self.folder / "preload.py")]
        self.workers.append(self._start("worker", self.address, *arguments))
        return self.workers[-1]

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


def _address(place: Path) -> str | None:
    try:
        found: str = json.loads(place.read_text())["address"]
    except ValueError:  # half written
        return None
    return found
