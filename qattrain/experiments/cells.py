"""What workers do, on this machine or on a cluster: settle the grid's points into cells, and run a cell."""

import contextlib
import functools
import multiprocessing
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qattrain.config import FLOAT_BITS, ExperimentConfig, PtqConfig, QuantConfig, parse_config
from qattrain.data import AUTO_NAME, Dataset, choose_dataset, load_dataset
from qattrain.errors import CheckpointError, ConfigError, QattrainError, TrainingError
from qattrain.experiments.folder import RESULT_FILE, Cell, Report, cell_name
from qattrain.experiments.grid import Point
from qattrain.experiments.kinds import RESULT_KIND
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.sweep import Images
from qattrain.files import records, stopping
from qattrain.layers.network import build_model, weight_bytes
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint, restore_model
from qattrain.runs.creation import written_by_us
from qattrain.training.ptq import quantize, settle_ptq
from qattrain.training.run import Loader, continue_run, resolve, start
from qattrain.training.session import RunResult

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_BETWEEN_TRIES = 0.25  # to claim a cell, while others hold all that are left

# The cells of a sweep are trained on one or two datasets: a worker loads each once.
cached_load: Loader = functools.lru_cache(maxsize=2)(load_dataset)


def settle(points: list[Point], threads: int, data_dir: Path, load: Loader) -> list[Cell]:
    """The cells of the grid, each once, every value settled on this machine; float ones first, because PTQ needs them.

    The float network ignores the quantizer, so points that differ only in it are one cell; so are the float cells that
    PTQ points need. Any other two points that settle to the same configuration are an error.
    Raises ConfigError, DataError.
    """
    cells: dict[str, Cell] = {}
    labels: dict[str, str] = {}  # of the points whose cell is in the grid itself

    def added(config: ExperimentConfig, notice: str | None, source: str | None, dataset: Dataset) -> Cell:
        with torch.device("meta"):  # a wrong model is reported now, not in every cell
            build_model(config.model, config.quant, dataset.classes, dataset.shape)
        train = config.train.model_copy(update={"threads": threads})
        values = config.model_copy(update={"train": train}).model_dump(mode="json")
        name = cell_name(values)
        return cells.setdefault(name, Cell(name, values, notice, source))

    for point in points:
        try:
            config, dataset, notice = resolve(parse_config(point.config, "sweep"), data_dir, load)
            if config.method == "float":
                config = config.model_copy(update={"quant": QuantConfig(bits=FLOAT_BITS, act_bits=FLOAT_BITS)})
            cell = added(config, notice, None, dataset)
            if point.quant is not None and point.ptq is not None:
                quant, ptq = QuantConfig.model_validate(point.quant), PtqConfig.model_validate(point.ptq)
                derived = settle_ptq(config, config.train.epochs, cell.name, quant, ptq, None)
                added(derived, notice, cell.name, dataset)
            elif cell.method != "fp32" and cell.name in labels:
                raise ConfigError(
                    f"a duplicate cell: '{labels[cell.name]}' settles to the same configuration; leave one of them out"
                )
            else:
                labels[cell.name] = point.label
        except QattrainError as error:
            raise type(error)(f"{point.label}: {error}" if point.label else str(error)) from None
    return sorted(cells.values(), key=lambda cell: cell.method != "fp32")


def describe(data: dict[str, Any], data_dir: Path, load: Loader) -> Images:
    """The images of a `data` section, `auto` settled. Raises ConfigError, DataError."""
    config = parse_config({"data": data}, "data").data
    name = choose_dataset(data_dir)[0] if config.dataset == AUTO_NAME else config.dataset
    dataset = load(config.model_copy(update={"dataset": name}).spec, data_dir)
    count = len(dataset.train.head(config.limit_train).labels)
    return Images(name, dataset.shape, dataset.classes, count)


class Watch:
    """A display that shows nothing and reports the share of the training that is done."""

    def __init__(self, report: Report, epochs: int) -> None:
        self.report, self.epochs, self.reported_at = report, epochs, 0.0

    def on_start(self, run_dir: Path, checkpoint: Any, train_images: int, test_images: int) -> None: ...

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:  # noqa: ARG002
        now = time.monotonic()
        if now - self.reported_at >= SECONDS_BETWEEN_REPORTS:
            self.reported_at = now
            self.report((epoch - 1 + step / steps) / self.epochs)

    def on_epoch(self, record: dict[str, Any], model: nn.Module) -> None: ...

    def on_warning(self, text: str) -> None: ...


def run_cell(cell: Cell, cells_dir: Path, data_dir: Path, load: Loader, stop: threading.Event, report: Report) -> bool:
    """Run or resume a cell in `cells_dir`, which also holds a PTQ cell's source; the caller has claimed it.

    Its end is the epoch that the cell names as `until`, or the last. False if `stop` was set before; its state is saved
    then. Raises any QattrainError.
    """
    run_dir = cells_dir / cell.name
    last = run_dir / runs.LAST_FILE
    config = parse_config(cell.config | {"name": cell.name}, cell.name)
    watch = Watch(report, cell.until or config.train.epochs)
    if last.exists():
        with written_by_us(run_dir):
            result = continue_run(last, _checkpoint_of(cell, last), data_dir, watch, cell.until, stop=stop, load=load)
    else:
        shutil.rmtree(run_dir, ignore_errors=True)  # of an older version, killed before its first checkpoint
        if cell.source is not None:
            path = cells_dir / cell.source / runs.LAST_FILE
            dataset = load(config.data.spec, data_dir)
            result, _ = quantize(load_checkpoint(path), path, config, dataset, cells_dir)
        else:
            config, dataset, _ = resolve(config, data_dir, load)
            result = start(config, dataset, cell.notice, cells_dir, watch, cell.until, stop=stop)
    checkpoint = result.checkpoint
    has_ended = checkpoint.finished or (cell.until is not None and len(checkpoint.history) >= cell.until)
    if has_ended:
        records.write(run_dir / RESULT_FILE, RESULT_KIND, _outcome(result, cell))
    return has_ended


def _checkpoint_of(cell: Cell, path: Path) -> Checkpoint:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or remove {path.parent} to run the cell {cell.name} again") from None


def _outcome(result: RunResult, cell: Cell) -> dict[str, Any]:
    summary = result.summary()
    network = restore_model(result.checkpoint, cell.name)
    return {
        "epochs": summary["epochs"],
        "accuracy": summary["test_accuracy"],
        "loss": summary["test_loss"],
        "train_loss": summary["train_loss"],
        "weight_bytes": weight_bytes(network),
        "images_per_second": summary["images_per_second"],
        "warnings": summary["warnings"],
    }


def error_line(error: Exception) -> str:
    """One line to record for a cell that failed."""
    text = " ".join(str(error).split())
    return text if isinstance(error, QattrainError) else f"{type(error).__name__}: {text}"


def work(ledger: Ledger, owner: str, data_dir: Path) -> None:
    """A worker process: `claim_and_run` with `run_cell`, until the end, a signal, or its parent's death.

    ledger: a copy of its own. owner: the name under which it claims cells.
    """
    ledger.folder.owner = owner
    stop = threading.Event()
    for number in stopping.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()

    def run(cell: Cell, report: Report) -> None:
        run_cell(cell, ledger.folder.cells, data_dir, cached_load, stop, report)

    with contextlib.suppress(TrainingError):  # the folder was removed: the parent says so
        claim_and_run(ledger, run, stop)


def _stop_with_parent(stop: threading.Event) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.set()


def claim_and_run(ledger: Ledger, run: Callable[[Cell, Report], None], stop: threading.Event) -> None:
    """Claim an open cell and run it, again and again, until no cell is open or `stop` is set.

    Waits while others hold all cells: they may die, or finish the float network of a PTQ cell.
    """
    while not stop.is_set():
        list(ledger.ended())
        if not ledger.open and not ledger.grows:
            return
        if not any(_attempt(ledger, cell, run) for cell in ledger.ready()):
            time.sleep(SECONDS_BETWEEN_TRIES)  # not stop.wait(): its lock and that of the signal handler are the same


def _attempt(ledger: Ledger, cell: Cell, run: Callable[[Cell, Report], None]) -> bool:
    """Whether the cell could be claimed, and so was run."""
    with ledger.folder.claimed(cell.name) as report:
        if report is None or ledger.outcome(cell) is not None:  # another worker may have ended it just now
            return False
        try:
            run(cell, report)
        except Exception as error:  # a mistake in one cell does not stop the others
            ledger.folder.set_failure(cell.name, error_line(error))
        else:
            ledger.folder.set_failure(cell.name, None)
    return True
