"""What a sweep found: a row a cell, a group for all seeds of the same settings; as JSON and CSV. No torch in here.

`sweep.json` holds, at the top level:

    kind         "sweep"
    name         of the sweep's folder
    version      of qattrain
    axes         dotted names of the settings that vary
    cells, finished, failed, unfinished     counts of rows
    notice       set where a dataset is a stand-in for MNIST, else null
    rows[]       one a cell: run_dir (relative to the sweep's folder), method ("fp32", "qat" or "ptq"), bits, act_bits,
                 quantizer ("float" for fp32), model, dataset, seed, epochs (0 for ptq), accuracy, loss, weight_bytes,
                 images_per_second (null for ptq), status ("finished", "failed" or "unfinished"), error (of a failed
                 one, else null), settings (name -> value, of those axes that have no field of their own)
    groups[]     one for all finished rows that are equal but for the seed: method, bits, act_bits, quantizer, model,
                 dataset, epochs, settings, n, accuracy_mean, accuracy_std (of n - 1 degrees of freedom; null if n is
                 1), loss_mean, weight_bytes, images_per_second (mean; null for ptq)
    reference[]  points of others, as given with --reference: name, weight_bytes, accuracy

Accuracies are fractions. What an unfinished row does not know is null. `sweep.csv` has the rows, a column a setting.
"""

import csv
import io
import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

from qattrain.errors import ConfigError
from qattrain.files import replace_files
from qattrain.sweeps.folder import Cell, Plan, SweepFolder

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
