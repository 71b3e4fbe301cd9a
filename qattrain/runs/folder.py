"""Run folders: where a run is kept, what its files are called, how to find it again. Needs no torch.

runs/<name>/  config.json   {"config": every value settled, "environment": versions, hardware, commit}
              metrics.jsonl one line per epoch
              last.pt       the checkpoint of the last epoch; best.pt beside it if a validation split chose one
"""

import itertools
import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import ExperimentConfig, model_label, parse_config, short_name
from qattrain.errors import CheckpointError, ConfigError, TrainingError, did_you_mean, reason, system_errors
from qattrain.files import write_atomically

CONFIG_FILE, METRICS_FILE, LAST_FILE, BEST_FILE = "config.json", "metrics.jsonl", "last.pt", "best.pt"
ADDED_DATA = {"image_size": None, "color": False, "flip": False, "digest": None}  # settings, with their defaults
DEFAULTS = ExperimentConfig()
DEFAULT_SIZE = "28x28"  # of a folder's images, which a run's name leaves out: MNIST's
MOST_LAYER_PARTS = 3
CELLS_FOLDER, COMPARISON_FILE = "cells", "compare.json"  # of a sweep, of a comparison; both lie beside the runs


def default_name(config: ExperimentConfig) -> str:
    """`lenet-w4a4-lsq-mnist-s0`, and a part more for what differs in kind from the defaults. config: settled.

    A part follows what it is about: `lenet-w2a2-conv1w8-lsq-tanh-init-pets-32x32-affine-s0`. Numbers and switches of
    the recipe, such as epochs and flip, are left to `config.json`. `float` takes the place of the quantizer, or
    `lsq-ptq`, as the method is.
    """
    quant, data = config.quant, config.data
    how = {"float": "float", "qat": quant.quantizer, "ptq": f"{quant.quantizer}-ptq"}[config.method]
    parts = [model_label(config.model), f"w{quant.bits}a{quant.act_bits}", *_layer_parts(quant.layer_bits), how]
    if config.method == "qat" and quant.surrogate != DEFAULTS.quant.surrogate:
        parts.append(quant.surrogate)
    parts += [f"n{quant.n}"] if quant.n is not None else []
    for section, key in (("model", "ops"), ("model", "init"), ("train", "optimizer"), ("train", "schedule")):
        value = getattr(getattr(config, section), key)
        parts += [value] if value != getattr(getattr(DEFAULTS, section), key) else []
    parts += ["init"] if config.train.init is not None else []
    parts += ["teacher"] if config.distill.teacher is not None else []
    parts.append(short_name(data.dataset))
    parts += [data.image_size] if data.image_size not in (None, DEFAULT_SIZE) else []
    parts += ["color"] if data.color else []
    parts += [data.augment] if data.augment != DEFAULTS.data.augment else []
    return "-".join([*parts, f"s{config.seed}"])


def _layer_parts(layer_bits: dict[str, int]) -> list[str]:
    """`conv1w8`, `act2a4`; `mixed` if that would be too many."""
    if len(layer_bits) > MOST_LAYER_PARTS:
        return ["mixed"]
    return [f"{layer}{'a' if layer.startswith(('act', 'avg')) else 'w'}{n}" for layer, n in layer_bits.items()]


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
    """The file that `text` means: a file, a run folder, a run's name in `runs_dir`, or a cell of a sweep in there.

    A cell is meant by its name, or by `sweep/cell` if several sweeps have one of that name. If `runs_dir` is the cells
    folder of a sweep, what lies beside that sweep is found as well. Raises CheckpointError.
    """
    given = Path(text)
    places = [runs_dir, *([runs_dir.parent.parent] if runs_dir.name == CELLS_FOLDER else [])]
    folders = [given, *(place / text for place in places)]
    try:
        if given.is_file():
            return given
        for folder in folders:
            if (folder / LAST_FILE).is_file():
                return folder / LAST_FILE
        cells = [cell for place in places for cell in _cells(place) if text in (cell.name, _full_name(cell))]
        found = [cell for cell in cells if (cell / LAST_FILE).is_file()]
        if len(found) == 1:
            return found[0] / LAST_FILE
        for folder in (*folders, *cells) if not found else ():
            if folder.is_dir():
                raise CheckpointError(f"{folder} {_why_no_run(folder)}")
    except (OSError, ValueError) as error:  # too long, or not a path
        raise CheckpointError(f"no checkpoint {text[:40]!r}: {reason(error)}") from None
    if found:
        full_names = ", ".join(map(_full_name, found))
        raise CheckpointError(f"'{text}' is a cell of {len(found)} sweeps; name one of them: {full_names}")
    names = [run.name for run in list_runs(runs_dir)]
    listed = ", ".join(names[:8]) or "none yet"
    hint = did_you_mean(text, [*names, *(cell.name for place in places for cell in _cells(place))])
    raise CheckpointError(
        f"no checkpoint '{text}': {hint}it is neither a file, nor a run folder, nor a run or a sweep's cell in "
        f"{runs_dir}{'' if hint else f' ({listed})'}"
    )


def _cells(runs_dir: Path) -> list[Path]:
    """The folders of all cells of the sweeps in `runs_dir`."""
    return sorted(runs_dir.glob(f"*/{CELLS_FOLDER}/*/"))


def _full_name(cell: Path) -> str:
    """`sweep/cell`."""
    return f"{cell.parent.parent.name}/{cell.name}"


def _why_no_run(folder: Path) -> str:
    """What a folder without a checkpoint is instead of a run, and what to do."""
    if (folder / CELLS_FOLDER).is_dir():
        cells = sorted(path.parent.name for path in (folder / CELLS_FOLDER).glob(f"*/{LAST_FILE}"))
        if not cells:
            return "is a sweep, not a run, and none of its cells has started; run it with: qattrain sweep"
        names = ", ".join([*cells[:3], *(["..."] if len(cells) > 3 else [])])
        listing = f"qattrain runs --runs-dir {shlex.quote(str(folder / CELLS_FOLDER))}"
        return f"is a sweep, not a run; name one of its cells: {names}; list them with: {listing}"
    if (folder / COMPARISON_FILE).is_file():
        return f"is a comparison, not a run; name one of its runs, or show it with: qattrain report {folder}"
    if (folder / CONFIG_FILE).is_file():
        return f"holds no {LAST_FILE}; the run was stopped before its first checkpoint"
    runs = [path.parent.name for path in sorted(folder.glob(f"*/{LAST_FILE}"))[:3]]
    inside = f"; name one of the runs in it: {', '.join(runs)}" if runs else ""
    return f"is not a run: it holds no {LAST_FILE}{inside}"


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
