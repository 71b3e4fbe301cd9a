"""Run folders: where a run is kept, what its files are called, how to find it again. Needs no torch.

runs/<name>/  config.json   {"config": every value settled, "environment": versions, hardware, commit}
              metrics.jsonl one line per epoch; missing while none is finished
              last.pt       the checkpoint of the last epoch; best.pt beside it if a validation split chose one

`qattrain.runs.creation` makes such a folder, and locks it while somebody writes into it.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import ExperimentConfig, model_label, recorded_config, short_name
from qattrain.errors import (
    CheckpointError,
    ConfigError,
    RecordError,
    TrainingError,
    did_you_mean,
    reason,
    write_errors,
)
from qattrain.files import records
from qattrain.files.locks import folder_lock, is_in_the_making

CONFIG_FILE, METRICS_FILE, LAST_FILE, BEST_FILE = "config.json", "metrics.jsonl", "last.pt", "best.pt"
ADDED_DATA = {"image_size": None, "color": False, "flip": False, "digest": None}  # settings, with their defaults
DEFAULTS = ExperimentConfig()
DEFAULT_SIZE = "28x28"  # of a folder's images, which a run's name leaves out: MNIST's
MOST_LAYER_PARTS = 3
CELLS_FOLDER, COMPARISON_FILE = "cells", "compare.json"  # of a sweep, of a comparison; both lie beside the runs


def _rewritten_by_resume(path: Path) -> str:
    return f"write it again from the checkpoint with: qattrain train --resume {shlex.quote(str(path.parent))}"


def _compared_again(_path: Path) -> str:
    return "make it again with: qattrain compare"


_SECTION = {"*": object}
CONFIG_KIND = records.Kind(
    {"config": {"data": _SECTION, "train": _SECTION}, "environment": _SECTION}, _rewritten_by_resume, indent=2
)
METRICS_KIND = records.Kind(
    {
        "epoch": records.count,
        "test_accuracy": records.fraction,
        "train_loss?": (float, None),
        "test_loss?": (float, None),
        "warnings?": [str],
    },
    _rewritten_by_resume,
    most_bytes=64 << 20,
)
COMPARISON_KIND = records.Kind(
    {"test_images": records.count, "rows": [{"method": str, "run_dir": str, "accuracy": records.fraction}]},
    _compared_again,
    most_bytes=16 << 20,
    indent=2,
)


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


def write_config(run_dir: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write `config.json`. Raises TrainingError."""
    records.write(run_dir / CONFIG_FILE, CONFIG_KIND, {"config": config, "environment": environment})


def write_metrics(run_dir: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite all of `metrics.jsonl`, so that it always agrees with the checkpoint. Raises TrainingError.

    Before the first epoch is finished there is no such file: so an empty one is known to be damaged.
    """
    if history:
        records.write_lines(run_dir / METRICS_FILE, METRICS_KIND, history)
    else:
        with write_errors(TrainingError, f"cannot remove {run_dir / METRICS_FILE}", "choose another --runs-dir"):
            (run_dir / METRICS_FILE).unlink(missing_ok=True)


def read_record(run_dir: Path) -> dict[str, Any]:
    """`config.json`: {"config": ..., "environment": ...}; {} if it is missing. Raises RecordError if it is damaged."""
    return records.read(run_dir / CONFIG_FILE, CONFIG_KIND) or {}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """One dict per epoch, from `metrics.jsonl`; [] if it is missing. Raises RecordError if it is damaged."""
    path = run_dir / METRICS_FILE
    found = records.read_lines(path, METRICS_KIND)
    if found == []:  # older versions began with an empty file
        about = records.read_versioned(run_dir / CONFIG_FILE, CONFIG_KIND)
        if about is not None and about[1] != records.UNSEALED:
            raise records.damaged(path, METRICS_KIND, "it is empty")
    return found or []


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
    names = [run_dir.name for _, run_dir in _folders(runs_dir)]
    listed = ", ".join(names[:8]) or "none yet"
    hint = did_you_mean(text, [*names, *(cell.name for place in places for cell in _cells(place))])
    raise CheckpointError(
        f"no checkpoint '{text}': {hint}it is neither a file, nor a run folder, nor a run or a sweep's cell in "
        f"{runs_dir}{'' if hint else f' ({listed})'}"
    )


def _cells(runs_dir: Path) -> list[Path]:
    """The folders of all cells of the sweeps in `runs_dir`."""
    return [cell for sweep in subfolders(runs_dir) for cell in subfolders(sweep / CELLS_FOLDER)]


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, by name, without those in the making; [] if it is not there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted(folder / one.name for one in entries if not is_in_the_making(one.name) and one.is_dir())
    return []


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


def find_finished(
    config: dict[str, Any], runs_dir: Path, say: Callable[[str], None] = lambda _line: None
) -> Path | None:
    """The checkpoint of a finished run whose settled config equals `config` apart from name and threads.

    say: called with a line on every run that is damaged, so that nobody can tell whether it is the one.
    """
    epochs_asked = 1 if config["ptq"] else config["train"]["epochs"]
    return next((path for path, epochs in _runs_of(config, runs_dir, say) if epochs == epochs_asked), None)


def find_begun(config: dict[str, Any], runs_dir: Path) -> Path | None:
    """The folder of such a run that is not finished, and that no process is writing; to be trained, not quantized."""
    for path, epochs in _runs_of(config, runs_dir, lambda _line: None):
        with contextlib.suppress(OSError), folder_lock(path.parent) as locked:
            if locked is not False and epochs < config["train"]["epochs"]:
                return path.parent
    return None


def _runs_of(config: dict[str, Any], runs_dir: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, int]]:
    """The checkpoint, and the number of epochs, of every run with this configuration."""
    for run_dir in subfolders(runs_dir):
        try:
            if comparable(read_record(run_dir)["config"]) != comparable(config):
                continue
            history = read_metrics(run_dir)
        except KeyError:
            continue  # not a run, or of another version
        except RecordError as error:
            if (run_dir / LAST_FILE).is_file():
                say(f"{error}; it is not reused")
            continue
        if (run_dir / LAST_FILE).is_file():
            yield run_dir / LAST_FILE, len(history)


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A settled configuration without name and threads, which do not change what is trained.

    Settings that older versions did not have are left out at their defaults, so that their runs count as the same.
    """
    data = {key: value for key, value in config["data"].items() if (key, value) not in ADDED_DATA.items()}
    return config | {"name": None, "train": config["train"] | {"threads": None}, "data": data}


@dataclass(frozen=True)
class RunSummary:
    """One line of `qattrain runs`. epochs: finished ones; accuracy: fraction, of the last; age_seconds: since then.

    damaged: what is wrong with its files and what to do, else None; then only its name and age are known.
    """

    name: str
    dataset: str | None = None
    bits: int | None = None
    act_bits: int | None = None
    quantizer: str | None = None
    method: str | None = None
    epochs: int | None = None
    epochs_asked: int | None = None
    accuracy: float | None = None
    age_seconds: float = 0.0
    damaged: str | None = None


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """All runs of the folder, newest first, damaged ones included; folders that are no runs are left out.

    Raises ConfigError if `runs_dir` is a file.
    """
    return newest_runs(runs_dir, None)[0]


def newest_runs(runs_dir: Path, most: int | None) -> tuple[list[RunSummary], int]:
    """As `list_runs`, but of the files of at most `most` runs, and the number of all. Raises ConfigError."""
    if runs_dir.exists() and not runs_dir.is_dir():
        raise ConfigError(f"--runs-dir {runs_dir} is a file; name the folder that holds the runs")
    folders, now = _folders(runs_dir), time.time()
    found = (_summarize(run_dir, now - written) for written, run_dir in folders[:most])
    return [summary for summary in found if summary is not None], len(folders)


def _folders(runs_dir: Path) -> list[tuple[float, Path]]:
    """When an epoch was last finished, or else the run began, and its path, of every run in the folder; newest first.

    A folder with a checkpoint is a run, whatever became of its other files.
    """
    found: list[tuple[float, Path]] = []
    for run_dir in subfolders(runs_dir):
        written = _written(run_dir / METRICS_FILE) or _written(run_dir / CONFIG_FILE)
        with contextlib.suppress(PermissionError):
            if (run_dir / LAST_FILE).is_file() or (written and _summarize(run_dir, 0) is not None):
                found.append((written or 0.0, run_dir))
    return sorted(found, key=lambda one: -one[0])


def _written(path: Path) -> float | None:
    """When the file was written; None if it is missing or empty."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime if about.st_size else None


def _recorded(values: dict[str, Any], path: Path) -> ExperimentConfig:
    """A run's configuration, from its file. Raises RecordError."""
    try:
        return recorded_config(values, "its configuration")
    except ConfigError as error:
        raise records.damaged(path, CONFIG_KIND, str(error)) from None


def _summarize(run_dir: Path, age_seconds: float) -> RunSummary | None:
    """None if the folder is no run."""
    try:
        record = read_record(run_dir)
        if not record:
            raise RecordError(f"{run_dir / CONFIG_FILE} is missing; {_rewritten_by_resume(run_dir / CONFIG_FILE)}")
        config = _recorded(record["config"], run_dir / CONFIG_FILE)
        history, quant, is_ptq = read_metrics(run_dir), config.quant, config.method == "ptq"
    except RecordError as error:
        return (
            RunSummary(run_dir.name, age_seconds=age_seconds, damaged=str(error))
            if (run_dir / LAST_FILE).is_file()
            else None
        )
    return RunSummary(
        name=run_dir.name,
        dataset=config.data.dataset,
        bits=quant.bits,
        act_bits=quant.act_bits,
        quantizer=quant.quantizer,
        method=config.method,
        epochs=0 if is_ptq else len(history),
        epochs_asked=0 if is_ptq else config.train.epochs,
        accuracy=history[-1]["test_accuracy"] if history else None,
        age_seconds=age_seconds,
    )
