"""Run folders: where a run is kept, what its files are called, how to find it again. Needs no torch.

runs/<name>/  config.json   {"config": every value settled, "environment": versions, hardware, commit}
              metrics.jsonl one line per epoch
              last.pt       the checkpoint of the last epoch; best.pt beside it if a validation split chose one
"""

import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import ExperimentConfig, model_label, parse_config, short_name
from qattrain.errors import CheckpointError, ConfigError, TrainingError, reason, system_errors
from qattrain.files import write_atomically

CONFIG_FILE, METRICS_FILE, LAST_FILE, BEST_FILE = "config.json", "metrics.jsonl", "last.pt", "best.pt"
ADDED_DATA = {"image_size": None, "color": False, "flip": False, "digest": None}  # settings, with their defaults
CELLS_FOLDER, COMPARISON_FILE = "cells", "compare.json"  # of a sweep, of a comparison; both lie beside the runs


def default_name(config: ExperimentConfig) -> str:
    """`lenet-w4a4-lsq-mnist-s0`, or `chain-1a2b3c4d-...` for a chain. config: settled.

    `float` takes the place of the quantizer, or `lsq-ptq`, as the method is.
    """
    quant = config.quant
    how = {"float": "float", "qat": quant.quantizer, "ptq": f"{quant.quantizer}-ptq"}[config.method]
    model, dataset = model_label(config.model), short_name(config.data.dataset)
    return f"{model}-w{quant.bits}a{quant.act_bits}-{how}-{dataset}-s{config.seed}"


def create_run_dir(runs_dir: Path, name: str | None, default: str) -> Path:
    """Make and return a new folder: `name`, or the first of `default`, `default-2`, ... that is free.

    Raises ConfigError if `name` exists, TrainingError if the folder cannot be made.
    """
    failed, remedy = f"cannot make a run folder in {runs_dir}", "choose another --runs-dir"
    if runs_dir.exists() and not runs_dir.is_dir():
        raise TrainingError(f"{failed}: it is a file; {remedy}")
    with system_errors(TrainingError, failed, remedy):
        runs_dir.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            run_dir = runs_dir / (name or (default if number == 1 else f"{default}-{number}"))
            try:
                run_dir.mkdir()  # atomic: two processes never get the same folder
                break
            except FileExistsError:
                if name is not None:
                    remedy = f"choose another --name, or resume it with --resume {name}"
                    raise ConfigError(f"the run {run_dir} exists; {remedy}") from None
    return run_dir


def remove_without_checkpoint(run_dir: Path) -> None:
    """Remove a run folder that has no checkpoint yet."""
    if not (run_dir / LAST_FILE).exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def write_config(run_dir: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write `config.json`. Raises TrainingError."""
    text = json.dumps({"config": config, "environment": environment}, indent=2) + "\n"
    write_atomically(run_dir / CONFIG_FILE, text.encode())


def write_metrics(run_dir: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite all of `metrics.jsonl`, so that it always agrees with the checkpoint. Raises TrainingError."""
    text = "".join(json.dumps(record) + "\n" for record in history)
    write_atomically(run_dir / METRICS_FILE, text.encode())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """One dict per epoch, from `metrics.jsonl`; [] if it is missing or not what a run writes."""
    try:
        lines = (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def find_checkpoint(text: str, runs_dir: Path) -> Path:
    """The file that `text` means: a file, a run folder, or a run's name in `runs_dir`. Raises CheckpointError.

    If `runs_dir` is the cells folder of a sweep, runs beside that sweep are also found by name.
    """
    given = Path(text)
    folders = [given, runs_dir / text]
    if runs_dir.name == CELLS_FOLDER:
        folders.append(runs_dir.parent.parent / text)
    try:
        if given.is_file():
            return given
        for folder in folders:
            if (folder / LAST_FILE).is_file():
                return folder / LAST_FILE
        for folder in folders:
            if folder.is_dir():
                raise CheckpointError(f"{folder} holds no {LAST_FILE}; the run was stopped before its first checkpoint")
    except (OSError, ValueError) as error:  # too long, or not a path
        raise CheckpointError(f"no checkpoint {text[:40]!r}: {reason(error)}") from None
    known = ", ".join(run.name for run in list_runs(runs_dir)[:8]) or "none yet"
    raise CheckpointError(
        f"no checkpoint '{text}': neither a file, nor a run folder, nor a run in {runs_dir} ({known})"
    )


def read_record(run_dir: Path) -> dict[str, Any]:
    """`config.json`: {"config": ..., "environment": ...}; {} if it is missing or not what a run writes."""
    try:
        record = json.loads((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        return record if all(isinstance(record[key], dict) for key in ("config", "environment")) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def find_finished(config: dict[str, Any], runs_dir: Path) -> Path | None:
    """The checkpoint of a finished run whose settled config equals `config` apart from name and threads."""
    for path in sorted(runs_dir.glob(f"*/{CONFIG_FILE}")):
        run_dir = path.parent
        try:
            if comparable(read_record(run_dir)["config"]) != comparable(config):
                continue
        except (KeyError, TypeError):
            continue  # not a run, or of another version
        epochs_asked = 1 if config["ptq"] else config["train"]["epochs"]
        if len(read_metrics(run_dir)) == epochs_asked and (run_dir / LAST_FILE).is_file():
            return run_dir / LAST_FILE
    return None


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A settled configuration without name and threads, which do not change what is trained.

    Settings that older versions did not have are left out at their defaults, so that their runs count as the same.
    """
    data = {key: value for key, value in config["data"].items() if (key, value) not in ADDED_DATA.items()}
    return config | {"name": None, "train": config["train"] | {"threads": None}, "data": data}


@dataclass(frozen=True)
class RunSummary:
    """One line of `qattrain runs`. epochs: finished ones; accuracy: fraction, of the last; age_seconds: since then."""

    name: str
    dataset: str
    bits: int
    act_bits: int
    quantizer: str
    method: str
    epochs: int
    epochs_asked: int
    accuracy: float | None
    age_seconds: float


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """All runs of the folder, newest first. Folders that are not runs, or unreadable, are left out.

    Raises ConfigError if `runs_dir` is a file.
    """
    if runs_dir.exists() and not runs_dir.is_dir():
        raise ConfigError(f"--runs-dir {runs_dir} is a file; name the folder that holds the runs")
    found = [summary for path in sorted(runs_dir.glob(f"*/{CONFIG_FILE}")) if (summary := _summarize(path.parent))]
    return sorted(found, key=lambda run: run.age_seconds)


def _summarize(run_dir: Path) -> RunSummary | None:
    try:
        config = parse_config(read_record(run_dir)["config"], CONFIG_FILE)
        metrics = run_dir / METRICS_FILE
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        quant, is_ptq = config.quant, config.method == "ptq"
        assert quant.bits is not None, quant
        assert quant.act_bits is not None, quant
        return RunSummary(
            name=run_dir.name,
            dataset=config.data.dataset,
            bits=quant.bits,
            act_bits=quant.act_bits,
            quantizer=quant.quantizer,
            method=config.method,
            epochs=0 if is_ptq else len(lines),
            epochs_asked=0 if is_ptq else config.train.epochs,
            accuracy=json.loads(lines[-1])["test_accuracy"] if lines else None,
            age_seconds=time.time() - (metrics if lines else run_dir / CONFIG_FILE).stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError, AssertionError, ConfigError):
        return None
