"""The folder of a sweep: its plan, its cells, which process works on which, and their results. No torch in here.

runs/sweep-<hash of the grid>/    or runs/<--name>/
    plan.json                     the grid as asked for, and every cell with all values settled, once
    cells/<name>-<hash>/          a run folder like any other: config.json, metrics.jsonl, last.pt; result.json is
                                  written last: a cell that has it is finished
    claims/<cell>                 locked by the process that works on the cell, so that no two do; the system unlocks
                                  it when the process ends, however it ends; its text tells how far the cell is
    failures/<cell>               the error line of a cell that failed; removed once it succeeds
    sweep.json sweep.csv accuracy-bits.png .svg accuracy-bytes.png .svg

`sweep.json` holds, at the top level:

    kind         "sweep"
    name         of the sweep's folder
    version      of qattrain
    axes         dotted names of the settings that vary
    cells, finished, failed, unfinished     counts of rows
    notice       set where a dataset is a stand-in for MNIST, else null
    rows[]       one per cell: run_dir (relative to the sweep's folder), method ("fp32", "qat" or "ptq"), bits,
                 act_bits, quantizer ("float" for fp32), model, dataset, seed, epochs (0 for ptq), accuracy, loss,
                 weight_bytes, images_per_second (null for ptq), status ("finished", "failed" or "unfinished"), error
                 (of a failed one, else null), warnings (list: what is wrong with a finished one; null if unknown),
                 settings (name -> value, of those axes without a field of their own)
    groups[]     one per set of finished rows that differ only in the seed: method, bits, act_bits, quantizer, model,
                 dataset, epochs, settings, n, accuracy_mean, accuracy_std (of n - 1 degrees of freedom; null if n is
                 1), loss_mean, weight_bytes, images_per_second (mean; null for ptq)
    reference[]  other people's results, as given with --reference: name, weight_bytes, accuracy

Accuracies are fractions. Values that an unfinished row does not have yet are null. `sweep.csv` has the same rows.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import statistics
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import qattrain
from qattrain.config import parse_config
from qattrain.config.sources import lookup
from qattrain.errors import ConfigError, TrainingError, reason, system_errors
from qattrain.files import replace_files, write_atomically
from qattrain.files.escapes import csv_cell
from qattrain.runs import folder as runs

PLAN_FILE, RESULT_FILE = "plan.json", "result.json"
HASH_DIGITS = 10

Report = Callable[[float], None]  # takes the share of a cell's training that is done


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
        method = parse_config(self.config, self.name).method
        return "fp32" if method == "float" else method


@dataclass(frozen=True)
class Plan:
    """asked: the grid it was made for. axes: dotted names of what varies. version: of the qattrain that settled it."""

    asked: str
    axes: list[str]
    cells: list[Cell]
    version: str = qattrain.__version__


def cell_name(config: dict[str, Any]) -> str:
    """A readable name, and the hash of the settled configuration without its name and threads."""
    identity = json.dumps(runs.comparable(config), sort_keys=True)
    readable = runs.default_name(parse_config(config, "sweep"))
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:HASH_DIGITS]}"


@dataclass(frozen=True)
class Claim:
    """A claim that was not given back. share: of the cell's training that is done. held: its owner is alive.

    dead: the owners before, who died holding it.
    """

    share: float
    dead: list[str]
    owner: str
    held: bool


class SweepFolder:
    """Reads and writes the files of the folder. owner: the name under which this process claims cells."""

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, uuid.uuid4().hex
        self.cells, self.claims, self.failures = path / runs.CELLS_FOLDER, path / "claims", path / "failures"

    def refuse_a_run(self) -> None:
        """Raises ConfigError if a run has the name."""
        if (self.path / runs.CONFIG_FILE).exists():
            raise ConfigError(f"{self.path} is a run, not a sweep; choose another --name")

    def make(self) -> None:
        """Make the folder if it does not exist. Raises TrainingError."""
        with system_errors(TrainingError, f"cannot make {self.path}", "choose another --runs-dir"):
            for folder in (self.cells, self.claims, self.failures):
                folder.mkdir(parents=True, exist_ok=True)

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

    def with_known_names(self, cells: list[Cell]) -> list[Cell]:
        """The cells, those that were begun under their old names: a name may change with the version, its hash not."""
        begun = {path.parent.name for path in self.cells.glob(f"*/{runs.LAST_FILE}")}
        by_hash = {name.rpartition("-")[2]: name for name in begun}
        names = {cell.name: by_hash.get(cell.name.rpartition("-")[2], cell.name) for cell in cells}
        names |= {cell.name: cell.name for cell in cells if cell.name in begun}
        return [replace(cell, name=names[cell.name], source=cell.source and names[cell.source]) for cell in cells]

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a finished cell, or None."""
        run_dir = self.cells / cell.name
        try:
            found = json.loads((run_dir / RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and (run_dir / runs.LAST_FILE).is_file() else None

    def failure(self, cell: Cell) -> str | None:
        """The error line of the cell's last failure, or None."""
        try:
            return (self.failures / cell.name).read_text().strip()
        except OSError:
            return None

    def failure_time(self, name: str) -> int | None:
        """When the cell's last failure was recorded, in nanoseconds; None: there is none."""
        try:
            return (self.failures / name).stat().st_mtime_ns
        except OSError:
            return None

    def set_failure(self, name: str, line: str | None) -> None:
        """Record that a cell failed; None: that it did not. Raises TrainingError."""
        if line is None:
            (self.failures / name).unlink(missing_ok=True)
        else:
            write_atomically(self.failures / name, f"{line}\n".encode())

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[Report | None]:
        """Hold the cell's claim. Yields None if any process, including this one, already holds it.

        Otherwise yields a function that writes the share done into the claim, where any process can read it. A claim
        that is given back is empty; if its owner died, it still has the owner's name, and the next owner keeps that.
        """
        path = self.claims / name
        path.touch()
        with path.open("r+") as file:
            if not _locked(file, fcntl.LOCK_EX):
                yield None
                return
            owners = " ".join([*file.read().split()[1:], self.owner])

            def report(share: float) -> None:
                with contextlib.suppress(OSError):  # on a full disk the claim holds without its text
                    os.pwrite(file.fileno(), f"{share:.4f} {owners}\n".encode(), 0)  # one write: others read it

            report(0.0)
            yield report
            file.truncate(0)

    def read_claims(self, names: Iterable[str]) -> dict[str, Claim]:
        """The claims on these cells that were not given back."""
        found, claims = {}, {entry.name for entry in os.scandir(self.claims)}  # few: most cells were never claimed
        for name in (name for name in names if name in claims):
            with contextlib.suppress(OSError, ValueError), (self.claims / name).open() as file:  # given back: no text
                share, *dead, owner = file.read().split()
                found[name] = Claim(float(share), dead, owner, held=not _locked(file, fcntl.LOCK_SH))
        return found


def _locked(file: TextIO, kind: int) -> bool:
    """Lock the file until it is closed, without waiting; False if another process holds the lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Ledger:
    """Which cells are finished, which failed and which are open, according to the files of the folder.

    open: by name. finished: accuracies by name. failed: error lines by name; failures older than the ledger do not
    count, because a sweep tries those cells again.
    """

    def __init__(self, folder: SweepFolder, cells: list[Cell]) -> None:
        self.folder = folder
        self.old_failures = {cell.name: folder.failure_time(cell.name) for cell in cells}
        self.open = {cell.name: cell for cell in cells}
        self.finished: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        list(self._ended(cells))

    def ended(self) -> Iterator[tuple[str, float | str]]:
        """Name, and accuracy or error line, of every cell that ended since the last call."""
        folders = self.folder.claims, self.folder.failures
        touched = {entry.name for folder in folders for entry in os.scandir(folder)}  # not all cells of a large sweep
        return self._ended([cell for name, cell in self.open.items() if name in touched])

    def _ended(self, cells: list[Cell]) -> Iterator[tuple[str, float | str]]:
        for cell in cells:
            outcome = self.outcome(cell)
            if outcome is not None:
                del self.open[cell.name]
                if isinstance(outcome, float):
                    self.finished[cell.name] = outcome
                else:
                    self.failed[cell.name] = outcome
                yield cell.name, outcome

    def ready(self) -> list[Cell]:
        """The open cells whose source, if any, is finished. Some may be claimed."""
        return [cell for cell in self.open.values() if cell.source is None or cell.source in self.finished]

    def outcome(self, cell: Cell) -> float | str | None:
        """Accuracy or error line of the cell; None: it is open."""
        result = self.folder.result(cell)
        if result is not None:
            return float(result["accuracy"])
        is_old = self.folder.failure_time(cell.name) == self.old_failures[cell.name]
        return None if is_old else self.folder.failure(cell)


def find_sweep(name: str | None, asked: str | None, runs_dir: Path) -> SweepFolder:
    """The folder of the sweep `name`, or of the grid `asked` if that is None; it need not exist."""
    assert name is not None or asked is not None
    digest = hashlib.sha256((asked or "").encode()).hexdigest()[:HASH_DIGITS]
    return SweepFolder(runs_dir / (name or f"sweep-{digest}"))


def list_sweeps(runs_dir: Path) -> list[str]:
    """Names of the sweeps in `runs_dir`, newest first."""
    found = sorted(runs_dir.glob(f"*/{PLAN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found]


JSON_FILE, CSV_FILE = "sweep.json", "sweep.csv"
PICTURES = ("accuracy-bits.png", "accuracy-bits.svg", "accuracy-bytes.png", "accuracy-bytes.svg")
# Settings that have a field of their own in a row.
OWN_FIELDS = {"seed", "model.name", "data.dataset", "train.epochs", "ptq.bits"}
OWN_FIELDS |= {"quant.bits", "quant.act_bits", "quant.quantizer"}
SAME_IN_GROUP = ("method", "bits", "act_bits", "quantizer", "model", "dataset", "epochs", "settings")
MEASURED = ("epochs", "accuracy", "loss", "weight_bytes", "images_per_second")
REFERENCE_FIELDS = ("name", "weight_bytes", "accuracy")


def sweep_document(plan: Plan, folder: SweepFolder, reference: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `sweep.json`, from the current files of the folder."""
    rows = [_row(cell, plan.axes, folder) for cell in plan.cells]
    statuses = [row["status"] for row in rows]
    return {
        "kind": "sweep",
        "name": folder.path.name,
        "version": plan.version,
        "axes": plan.axes,
        "cells": len(rows),
        **{status: statuses.count(status) for status in ("finished", "failed", "unfinished")},
        "notice": next((cell.notice for cell in plan.cells if cell.notice), None),
        "rows": rows,
        "groups": _groups(rows),
        "reference": reference,
    }


def _row(cell: Cell, axes: list[str], folder: SweepFolder) -> dict[str, Any]:
    config, quant = cell.config, cell.config["quant"]
    result = folder.result(cell)
    error = folder.failure(cell) if result is None else None
    return {
        "run_dir": f"{folder.cells.name}/{cell.name}",
        "method": cell.method,
        "bits": quant["bits"],
        "act_bits": quant["act_bits"],
        "quantizer": "float" if cell.method == "fp32" else quant["quantizer"],
        "model": config["model"]["name"],
        "dataset": config["data"]["dataset"],
        "seed": config["seed"],
        **{name: (result or {}).get(name) for name in MEASURED},
        "status": "finished" if result is not None else "failed" if error is not None else "unfinished",
        "error": error,
        "warnings": (result or {}).get("warnings"),
        "settings": {axis: lookup(config, axis.split(".")) for axis in axes if axis not in OWN_FIELDS},
    }


def _groups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished":
            key = json.dumps([row[name] for name in SAME_IN_GROUP], sort_keys=True)
            found.setdefault(key, []).append(row)
    return [_group(members) for members in found.values()]


def _group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [row["accuracy"] for row in rows]
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"] is not None]
    return {
        **{name: rows[0][name] for name in SAME_IN_GROUP},
        "n": len(rows),
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(rows) > 1 else None,
        "loss_mean": statistics.fmean(row["loss"] for row in rows),
        "weight_bytes": rows[0]["weight_bytes"],
        "images_per_second": statistics.fmean(speeds) if speeds else None,
    }


def pareto_front(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that no other group beats in both weight bytes and mean accuracy, smallest first."""
    front: list[dict[str, Any]] = []
    for group in sorted(groups, key=lambda group: (group["weight_bytes"], -group["accuracy_mean"])):
        if not front or group["accuracy_mean"] > front[-1]["accuracy_mean"]:
            front.append(group)
    return front


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The rows under a header, with a column per setting at the end. Unknown values are empty."""
    buffer = io.StringIO()
    flat = [{key: value for key, value in row.items() if key != "settings"} | row["settings"] for row in rows]
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        plain = {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in row.items()}
        writer.writerow({key: csv_cell(value) for key, value in plain.items()})
    return buffer.getvalue()


def write_results(folder: SweepFolder, document: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Write `sweep.json`, `sweep.csv` and `pictures` (file name -> content), all or none. Raises TrainingError."""
    files = pictures | {
        CSV_FILE: csv_text(document["rows"]).encode(),
        JSON_FILE: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
    }
    with system_errors(TrainingError, f"cannot write into {folder.path}", "choose another --runs-dir"):
        replace_files(folder.path, files)


def is_written(folder: SweepFolder, document: dict[str, Any], pictures: tuple[str, ...]) -> bool:
    """Whether the folder already holds exactly these results, pictures included."""
    try:
        found = json.loads((folder.path / JSON_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == document) and all((folder.path / name).is_file() for name in (CSV_FILE, *pictures))


def read_reference(path: Path) -> list[dict[str, Any]]:
    """Other people's results: CSV with the columns name, weight_bytes, accuracy, or TOML with [[point]] tables of them.

    Accuracies are fractions, as in all files. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)["point"] if path.suffix == ".toml" else list(csv.DictReader(io.StringIO(text)))
        points = [(str(entry["name"]), int(entry["weight_bytes"]), float(entry["accuracy"])) for entry in found]
        if not points:
            raise ValueError("it holds no points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--reference {path}: {reason(error)}; expected CSV with the columns {', '.join(REFERENCE_FIELDS)}, or "
            "TOML with them in [[point]] tables"
        ) from None
    for name, size, accuracy in points:
        if not 0 <= accuracy <= 1 or size < 1:
            raise ConfigError(
                f"--reference {path}: '{name}' has accuracy {accuracy:g} and {size} bytes; allowed: accuracies as "
                "fractions, 0 to 1, and at least 1 byte"
            )
    return [dict(zip(REFERENCE_FIELDS, point, strict=True)) for point in points]
