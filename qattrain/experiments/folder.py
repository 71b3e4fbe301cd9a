"""The folder of a sweep: its plan, its cells, who works on which, what came of them. No torch in here.

runs/sweep-<hash of the grid>/    or runs/<--name>/
    plan.json                     what was asked, and every cell with all values settled: settled once, then kept
    cells/<name>-<hash>/          a run folder like any other: config.json, metrics.jsonl, last.pt; and, written last,
                                  result.json, by which a finished cell is known
    claims/<cell>                 locked by the process that works on the cell, so that no two do; the system unlocks
                                  it when the process ends, however it ends
    failures/<cell>               the error line of a cell that failed; gone once it succeeds
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
                 (of a failed one, else null), settings (name -> value, of those axes without a field of their own)
    groups[]     one for all finished rows that are equal but for the seed: method, bits, act_bits, quantizer, model,
                 dataset, epochs, settings, n, accuracy_mean, accuracy_std (of n - 1 degrees of freedom; null if n is
                 1), loss_mean, weight_bytes, images_per_second (mean; null for ptq)
    reference[]  points of others, as given with --reference: name, weight_bytes, accuracy

Accuracies are fractions. What an unfinished row does not know is null. `sweep.csv` has the same rows.
"""

import csv
import fcntl
import hashlib
import io
import json
import statistics
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qattrain
from qattrain.config import parse_config
from qattrain.errors import ConfigError, TrainingError
from qattrain.files import replace_files, write_atomically
from qattrain.runs import folder as runs

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
        method = parse_config(self.config, self.name).method
        return "fp32" if method == "float" else method


@dataclass(frozen=True)
class Plan:
    """asked: the grid it was made for. axes: dotted names of what varies. version: of qattrain, which settled it."""

    asked: str
    axes: list[str]
    cells: list[Cell]
    version: str = qattrain.__version__


def cell_name(config: dict[str, Any]) -> str:
    """What the cell is, readable, and the hash of its settled configuration, apart from its name and its threads."""
    identity = json.dumps(config | {"name": None, "train": config["train"] | {"threads": None}}, sort_keys=True)
    readable = runs.default_name(parse_config(config, "sweep"))
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


JSON_FILE, CSV_FILE = "sweep.json", "sweep.csv"
PICTURES = ("accuracy-bits.png", "accuracy-bits.svg", "accuracy-bytes.png", "accuracy-bytes.svg")
# Settings that a row tells in a field of its own.
OWN_FIELDS = {
    "seed",
    "quant.bits",
    "quant.act_bits",
    "quant.quantizer",
    "model.name",
    "data.dataset",
    "train.epochs",
    "ptq.bits",
}
SAME_IN_GROUP = ("method", "bits", "act_bits", "quantizer", "model", "dataset", "epochs", "settings")
MEASURED = ("epochs", "accuracy", "loss", "weight_bytes", "images_per_second")
REFERENCE_FIELDS = ("name", "weight_bytes", "accuracy")


def sweep_document(plan: Plan, folder: SweepFolder, reference: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole of `sweep.json`, from what lies in the folder now."""
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
    measured = dict.fromkeys(MEASURED) | {key: value for key, value in (result or {}).items() if key in MEASURED}
    return {
        "run_dir": f"{folder.cells.name}/{cell.name}",
        "method": cell.method,
        "bits": quant["bits"],
        "act_bits": quant["act_bits"],
        "quantizer": "float" if cell.method == "fp32" else quant["quantizer"],
        "model": config["model"]["name"],
        "dataset": config["data"]["dataset"],
        "seed": config["seed"],
        **measured,
        "status": "finished" if result is not None else "failed" if error is not None else "unfinished",
        "error": error,
        "settings": {axis: _value(config, axis) for axis in axes if axis not in OWN_FIELDS},
    }


def _value(config: dict[str, Any], axis: str) -> Any:
    value: Any = config
    for part in axis.split("."):
        value = None if value is None else value[part]
    return value


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
    """Those groups that no other beats in weight bytes and mean accuracy both; smallest first."""
    front: list[dict[str, Any]] = []
    for group in sorted(groups, key=lambda group: (group["weight_bytes"], -group["accuracy_mean"])):
        if not front or group["accuracy_mean"] > front[-1]["accuracy_mean"]:
            front.append(group)
    return front


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The rows with a header; a column for each of their settings at the end. Empty where a value is not known."""
    buffer = io.StringIO()
    flat = [{key: value for key, value in row.items() if key != "settings"} | row["settings"] for row in rows]
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in row.items()})
    return buffer.getvalue()


def write_results(folder: SweepFolder, document: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Write `sweep.json`, `sweep.csv` and `pictures` (file name -> content), all or none. Raises ConfigError."""
    files = pictures | {
        CSV_FILE: csv_text(document["rows"]).encode(),
        JSON_FILE: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
    }
    try:
        replace_files(folder.path, files)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder.path}: {error.strerror}; choose another --runs-dir") from None


def is_written(folder: SweepFolder, document: dict[str, Any], pictures: tuple[str, ...]) -> bool:
    """Whether the folder holds these very results already, pictures included."""
    try:
        found = json.loads((folder.path / JSON_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == document) and all((folder.path / name).is_file() for name in (CSV_FILE, *pictures))


def read_reference(path: Path) -> list[dict[str, Any]]:
    """Points of others: CSV with the columns name, weight_bytes, accuracy, or TOML with them in [[point]] tables.

    Accuracies are fractions, as everywhere in files. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)["point"] if path.suffix == ".toml" else list(csv.DictReader(io.StringIO(text)))
        points = [(str(entry["name"]), int(entry["weight_bytes"]), float(entry["accuracy"])) for entry in found]
        if not points:
            raise ValueError("it holds no points")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--reference {path}: {reason}; expected CSV with the columns {', '.join(REFERENCE_FIELDS)}, or TOML with "
            "them in [[point]] tables"
        ) from None
    for name, size, accuracy in points:
        if not 0 <= accuracy <= 1 or size < 1:
            raise ConfigError(
                f"--reference {path}: '{name}' has accuracy {accuracy:g} and {size} bytes; allowed: accuracies as "
                "fractions, 0 to 1, and at least 1 byte"
            )
    return [dict(zip(REFERENCE_FIELDS, point, strict=True)) for point in points]
