"""The folder of a sweep: its plan, its cells, who works on which, what is finished. No torch in here.

runs/sweep-<hash of the grid>/    or runs/<--name>/
    plan.json                     what was asked, and every cell with all values settled: settled once, then kept
    cells/<name>-<hash>/          a run folder like any other: config.json, metrics.jsonl, last.pt; and, written last,
                                  result.json, by which a finished cell is known
    claims/<cell>                 locked by the process that works on the cell, so that no two do; the system unlocks
                                  it when the process ends, however it ends
    failures/<cell>               the error line of a cell that failed; gone once it succeeds
    sweep.json sweep.csv accuracy-bits.png .svg accuracy-bytes.png .svg
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qattrain
from qattrain import runs
from qattrain.config import FLOAT_BITS
from qattrain.errors import ConfigError, TrainingError
from qattrain.files import write_atomically

PLAN_FILE, RESULT_FILE = "plan.json", "result.json"
HASH_DIGITS = 10


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. config: settled, as in config.json but for the name. source: a PTQ cell's float cell."""

    name: str
    config: dict[str, Any]
    notice: str | None
    source: str | None = None

    @property
    def method(self) -> str:
        """fp32, qat, or ptq."""
        quant = self.config["quant"]
        bits = {quant["bits"], quant["act_bits"], *quant["layer_bits"].values()}
        return "ptq" if self.config["ptq"] else "fp32" if bits == {FLOAT_BITS} else "qat"


@dataclass(frozen=True)
class Plan:
    """asked: the grid it was made for. axes: dotted names of what varies. version: of qattrain, which settled it."""

    asked: str
    axes: list[str]
    cells: list[Cell]
    version: str = qattrain.__version__


def cell_name(config: dict[str, Any]) -> str:
    """What the cell is, readable, and the hash of its settled configuration, apart from its name and its threads."""
    quant, train = config["quant"], config["train"]
    identity = json.dumps(config | {"name": None, "train": train | {"threads": None}}, sort_keys=True)
    quantizer = quant["quantizer"] + ("-ptq" if config["ptq"] else "")
    readable = runs.default_name(
        config["model"]["name"], quant["bits"], quant["act_bits"], quantizer, config["data"]["dataset"], config["seed"]
    )
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:HASH_DIGITS]}"


class SweepFolder:
    """Reads and writes what lies in the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells, self.claims, self.failures = path / runs.CELLS_FOLDER, path / "claims", path / "failures"

    def refuse_a_run(self) -> None:
        """Raises ConfigError if a run has the name."""
        if (self.path / runs.CONFIG_FILE).exists():
            raise ConfigError(f"{self.path} is a run, not a sweep; choose another --name")

    def make(self) -> None:
        """Make the folder, if it is not there. Raises TrainingError."""
        try:
            for folder in (self.cells, self.claims, self.failures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make {self.path}: {error.strerror}; choose another --runs-dir") from None

    def read_plan(self) -> Plan | None:
        """The recorded plan, or None if there is none that this version of qattrain wrote."""
        try:
            found = json.loads((self.path / PLAN_FILE).read_text())
            plan = Plan(**(found | {"cells": [Cell(**cell) for cell in found["cells"]]}))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return plan if plan.version == qattrain.__version__ else None

    def write_plan(self, plan: Plan) -> None:
        """Raises TrainingError."""
        write_atomically(self.path / PLAN_FILE, (json.dumps(asdict(plan), indent=1) + "\n").encode())

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell reached, or None."""
        run_dir = self.cells / cell.name
        try:
            found = json.loads((run_dir / RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and (run_dir / runs.LAST_FILE).is_file() else None

    def failure(self, cell: Cell) -> str | None:
        """The error line with which the cell failed last, or None."""
        try:
            return (self.failures / cell.name).read_text().strip()
        except OSError:
            return None

    def set_failure(self, name: str, line: str | None) -> None:
        """Record how a cell failed; None: it did not. Raises TrainingError."""
        if line is None:
            (self.failures / name).unlink(missing_ok=True)
        else:
            write_atomically(self.failures / name, f"{line}\n".encode())

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether the cell is ours within; False if a process, this one included, works on it already."""
        with (self.claims / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def find_sweep(name: str | None, asked: str | None, runs_dir: Path) -> SweepFolder:
    """The folder of the sweep `name`, or else of the grid `asked`; it need not exist."""
    assert name is not None or asked is not None
    digest = hashlib.sha256((asked or "").encode()).hexdigest()[:HASH_DIGITS]
    return SweepFolder(runs_dir / (name or f"sweep-{digest}"))


def list_sweeps(runs_dir: Path) -> list[str]:
    """Names of the sweeps in `runs_dir`, newest first."""
    found = sorted(runs_dir.glob(f"*/{PLAN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found]
