"""The folder of a sweep: its plan, its cells, which process works on which, and their results. No torch in here.

runs/sweep-<hash of the grid>/    or runs/<--name>/
    plan.json                     the grid as asked for, and every cell with all values settled, once
    cells/<name>-<hash>/          a run folder like any other: config.json, metrics.jsonl, last.pt; result.json is
                                  written last: a cell that has it is finished
    claims/<cell>                 locked by the process that works on the cell, so that no two do; the system unlocks
                                  it when the process ends, however it ends; its text tells how far the cell is
    failures/<cell>.json          the error line of a cell that failed; removed once it succeeds
    sweep.json sweep.csv accuracy-bits.png .svg accuracy-bytes.png .svg

`qattrain.experiments.kinds` says what the JSON files hold.
"""

import contextlib
import csv
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
from typing import Any

import qattrain
from qattrain.config import parse_config, recorded_config
from qattrain.config.sources import lookup
from qattrain.errors import ConfigError, RecordError, TrainingError, reason, write_errors
from qattrain.experiments.kinds import FAILURE_KIND, PLAN_KIND, RESULT_KIND, SWEEP_KIND
from qattrain.files import read_bounded, records, replace_files
from qattrain.files.escapes import csv_cell
from qattrain.files.locks import try_lock
from qattrain.runs import folder as runs

PLAN_FILE, RESULT_FILE = "plan.json", "result.json"
SEARCH_FILE, FIT_FILE = "search.json", "fit.json"  # instead of plan and results, in the folder of `qattrain fit`
HASH_DIGITS = 10
MOST_NAME_BYTES = 255  # of a file or folder
FAILURE_SUFFIX = ".json"
MOST_CLAIM_CHARACTERS = 10_000

ELSEWHERE = "choose another --runs-dir"

Report = Callable[[float], None]  # takes the share of a cell's training that is done


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. config: settled, as in config.json but for the name. source: a PTQ cell's float cell.

    until: the epoch after which it counts as finished; None: its last.
    """

    name: str
    config: dict[str, Any]
    notice: str | None
    source: str | None = None
    until: int | None = None

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


def recorded_cell(recorded: dict[str, Any], names: set[str | None], axes: list[str]) -> Cell:
    """A cell of a plan. names: of all cells. Raises ConfigError, ValueError, KeyError, TypeError."""
    name, source = recorded["name"], recorded.get("source")
    if len(os.fsencode(name)) > MOST_NAME_BYTES:
        raise ValueError(f"the name of a cell, {name[:40]}..., is too long for a folder")
    config = recorded_config(recorded["config"] | {"name": name}, name)  # a name is that of a folder
    values = config.model_dump(mode="json") | {"name": recorded["config"].get("name")}
    for axis in axes:
        lookup(values, axis.split("."))
    if source not in names or config.train.threads is None:
        raise ValueError(f"the cell {name} is not settled")
    return Cell(name, values, recorded["notice"], source, recorded.get("until"))


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
        """Raises ConfigError if a run or a search has the name."""
        for file, what in ((runs.CONFIG_FILE, "a run"), (SEARCH_FILE, "a search")):
            if (self.path / file).exists():
                raise ConfigError(f"{self.path} is {what}, not a sweep; choose another --name")

    def make(self) -> None:
        """Make the folder if it does not exist. Raises TrainingError."""
        with write_errors(TrainingError, f"cannot make {self.path}", ELSEWHERE):
            for folder in (self.cells, self.claims, self.failures):
                folder.mkdir(parents=True, exist_ok=True)

    def read_plan(self) -> Plan | None:
        """The recorded plan, or None if there is none that this version of qattrain wrote. Raises RecordError."""
        path = self.path / PLAN_FILE
        found = records.read(path, PLAN_KIND)
        if found is None or found["version"] != qattrain.__version__:
            return None
        names = {None, *(cell["name"] for cell in found["cells"])}
        if not found["cells"] or len(names) <= len(found["cells"]):
            raise records.damaged(path, PLAN_KIND, "its cells are none, or two have one name")
        try:
            cells = [recorded_cell(one, names, found["axes"]) for one in found["cells"]]
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise records.damaged(path, PLAN_KIND, reason(error)) from None
        return Plan(found["asked"], found["axes"], cells, found["version"])

    def write_plan(self, plan: Plan) -> None:
        """Raises TrainingError."""
        records.write(self.path / PLAN_FILE, PLAN_KIND, asdict(plan))

    def with_known_names(self, cells: list[Cell]) -> list[Cell]:
        """The cells, those that were begun under their old names: a name may change with the version, its hash not."""
        begun = {path.parent.name for path in self.cells.glob(f"*/{runs.LAST_FILE}")}
        by_hash = {name.rpartition("-")[2]: name for name in begun}
        names = {cell.name: by_hash.get(cell.name.rpartition("-")[2], cell.name) for cell in cells}
        names |= {cell.name: cell.name for cell in cells if cell.name in begun}
        return [replace(cell, name=names[cell.name], source=cell.source and names[cell.source]) for cell in cells]

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a finished cell, or None. Raises RecordError if it is damaged."""
        run_dir = self.cells / cell.name
        if not (run_dir / runs.LAST_FILE).is_file():
            return None
        found = records.read(run_dir / RESULT_FILE, RESULT_KIND)
        is_reached = found is not None and found["epochs"] >= (cell.until or 0)
        return found if is_reached else None

    def failure(self, cell: Cell) -> str | None:
        """The error line of the cell's last failure, or None."""
        try:
            found = records.read(self._failure(cell.name), FAILURE_KIND)
            if found is not None:
                return str(found["error"])
            old = self.failures / cell.name  # older versions wrote the bare line
            if not old.is_file():
                return None
            data = read_bounded(old, FAILURE_KIND.most_bytes, RecordError, str(old), "remove it")
            return data.decode(errors="replace").strip()
        except RecordError as error:
            return str(error)

    def failure_time(self, name: str) -> int | None:
        """When the cell's last failure was recorded, in nanoseconds; None: there is none."""
        for path in (self._failure(name), self.failures / name):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime_ns
        return None

    def set_failure(self, name: str, line: str | None) -> None:
        """Record that a cell failed; None: that it did not. Raises TrainingError."""
        with write_errors(TrainingError, f"cannot write into {self.failures}", ELSEWHERE):
            if line is not None:
                records.write(self._failure(name), FAILURE_KIND, {"error": line})
            else:
                self._failure(name).unlink(missing_ok=True)
            (self.failures / name).unlink(missing_ok=True)

    def _failure(self, name: str) -> Path:
        return self.failures / f"{name}{FAILURE_SUFFIX}"

    def touched(self) -> set[str]:
        """The names of the cells that were ever claimed or failed. Raises TrainingError if the folder was removed."""
        with write_errors(TrainingError, f"cannot look into {self.path}", ELSEWHERE):
            claimed, failed = ([one.name for one in os.scandir(folder)] for folder in (self.claims, self.failures))
        return {*claimed, *(name.removesuffix(FAILURE_SUFFIX) for name in failed)}

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[Report | None]:
        """Hold the cell's claim. Yields None if any process, including this one, already holds it.

        Otherwise yields a function that writes the share done into the claim, where any process can read it. A claim
        that is given back is empty; if its owner died, it still has the owner's name, and the next owner keeps that.
        """
        with contextlib.ExitStack() as stack:
            with write_errors(TrainingError, f"cannot claim a cell in {self.claims}", ELSEWHERE):
                handle = os.open(self.claims / name, os.O_RDWR | os.O_CREAT, 0o666)
                file = stack.enter_context(os.fdopen(handle, "r+", errors="replace"))
                locked = try_lock(handle)
                if locked is None:
                    raise TrainingError(f"{self.path}: its file system has no locks, which sweeps need; {ELSEWHERE}")
                owners = " ".join([*file.read(MOST_CLAIM_CHARACTERS).split()[1:], self.owner]) if locked else ""
            if not locked:
                yield None
                return

            def report(share: float) -> None:
                with contextlib.suppress(OSError):  # on a full disk the claim holds without its text
                    os.pwrite(file.fileno(), f"{share:.4f} {owners}\n".encode(), 0)  # one write: others read it

            report(0.0)
            yield report
            with contextlib.suppress(OSError):  # the folder is on a disk that fails: the lock falls all the same
                file.truncate(0)

    def read_claims(self, names: Iterable[str]) -> dict[str, Claim]:
        """The claims on these cells that were not given back. Raises TrainingError if the folder was removed."""
        with write_errors(TrainingError, f"cannot look into {self.path}", ELSEWHERE):
            claims = {entry.name for entry in os.scandir(self.claims)}  # few: most cells were never claimed
        found = {}
        for name in (name for name in names if name in claims):
            with contextlib.suppress(OSError, ValueError), (self.claims / name).open() as file:  # given back: no text
                share, *dead, owner = file.read(MOST_CLAIM_CHARACTERS).split()
                held = try_lock(file.fileno(), shared=True) is False
                found[name] = Claim(float(share), dead, owner, held)
        return found


def find_sweep(name: str | None, asked: str | None, runs_dir: Path) -> SweepFolder:
    """The folder of the sweep `name`, or of the grid `asked` if that is None; it need not exist."""
    assert name is not None or asked is not None
    digest = hashlib.sha256((asked or "").encode()).hexdigest()[:HASH_DIGITS]
    return SweepFolder(runs_dir / (name or f"sweep-{digest}"))


def list_sweeps(runs_dir: Path, file: str = PLAN_FILE) -> list[str]:
    """Names of the sweeps in `runs_dir`, newest first. file: SEARCH_FILE lists the searches instead."""
    found = []
    for folder in runs.subfolders(runs_dir):
        with contextlib.suppress(OSError):
            found.append(((folder / file).stat().st_mtime, folder.name))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]


JSON_FILE, CSV_FILE = "sweep.json", "sweep.csv"
PICTURES = ("accuracy-bits.png", "accuracy-bits.svg", "accuracy-bytes.png", "accuracy-bytes.svg")
# Settings that have a field of their own in a row.
OWN_FIELDS = {"seed", "model.name", "data.dataset", "train.epochs", "ptq.bits"}
OWN_FIELDS |= {"quant.bits", "quant.act_bits", "quant.quantizer"}
SAME_IN_GROUP = ("method", "bits", "act_bits", "quantizer", "model", "dataset", "epochs", "settings")
MEASURED = ("epochs", "accuracy", "loss", "weight_bytes", "images_per_second")
REFERENCE_FIELDS = ("name", "weight_bytes", "accuracy")
MOST_REFERENCE_BYTES = 1 << 20


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
    try:
        result = folder.result(cell)
        error = folder.failure(cell) if result is None else None
    except RecordError as damaged:
        result, error = None, str(damaged)
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


def pareto_front(
    groups: list[dict[str, Any]], cost: str = "weight_bytes", accuracy: str = "accuracy_mean"
) -> list[dict[str, Any]]:
    """The groups that no other group beats in both cost and accuracy, cheapest first."""
    front: list[dict[str, Any]] = []
    for group in sorted(groups, key=lambda group: (group[cost], -group[accuracy])):
        if not front or group[accuracy] > front[-1][accuracy]:
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
        JSON_FILE: records.encoded(SWEEP_KIND, document),
    }
    with write_errors(TrainingError, f"cannot write into {folder.path}", ELSEWHERE):
        replace_files(folder.path, files)


def is_written(folder: SweepFolder, document: dict[str, Any], pictures: tuple[str, ...]) -> bool:
    """Whether the folder already holds exactly these results, pictures included."""
    try:
        found = records.read(folder.path / JSON_FILE, SWEEP_KIND)
    except RecordError:
        return False
    return bool(found == document) and all((folder.path / name).is_file() for name in (CSV_FILE, *pictures))


def read_reference(path: Path) -> list[dict[str, Any]]:
    """Other people's results: CSV with the columns name, weight_bytes, accuracy, or TOML with [[point]] tables of them.

    Accuracies are fractions, as in all files. Raises ConfigError.
    """
    expected = f"expected CSV with the columns {', '.join(REFERENCE_FIELDS)}, or TOML with them in [[point]] tables"
    try:
        text = read_bounded(path, MOST_REFERENCE_BYTES, ConfigError, f"--reference {path}", expected).decode()
        found = tomllib.loads(text)["point"] if path.suffix == ".toml" else list(csv.DictReader(io.StringIO(text)))
        points = [(str(entry["name"]), int(entry["weight_bytes"]), float(entry["accuracy"])) for entry in found]
        if not points:
            raise ValueError("it holds no points")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, csv.Error) as error:
        raise ConfigError(f"--reference {path}: {reason(error)}; {expected}") from None
    for name, size, accuracy in points:
        if not 0 <= accuracy <= 1 or size < 1:
            raise ConfigError(
                f"--reference {path}: '{name}' has accuracy {accuracy:g} and {size} bytes; allowed: accuracies as "
                "fractions, 0 to 1, and at least 1 byte"
            )
    return [dict(zip(REFERENCE_FIELDS, point, strict=True)) for point in points]
