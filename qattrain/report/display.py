"""A run or a sweep while it happens: live on a terminal, as plain lines elsewhere, and a run's for TensorBoard.

Nothing here imports torch at the top: the process that runs a sweep does without.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text
from tqdm import tqdm

from qattrain.config import ExperimentConfig, model_label
from qattrain.errors import optional_package
from qattrain.experiments.sweep import Status
from qattrain.files.escapes import visible
from qattrain.report.console import Console, Table, age, confidence, counted, laid_out, percent
from qattrain.report.tables import chain_lines, epoch_row, group_table, shared_columns, shared_line

if TYPE_CHECKING:
    from torch import nn

    from qattrain.runs.checkpoint import Checkpoint
    from qattrain.training.session import Display, RunResult

DEFAULTS = ExperimentConfig()
SECONDS_BETWEEN_UPDATES = 0.2
LOADING = "loading torch and the images"
LIVE_WIDTHS = {"epoch": 5, "train loss": 7, "test loss": 7, "time": 7}  # so wide that later rows stay in line
ROW_LINES = 4  # headings of two lines, a rule, and the row
CALM = "cyan"  # of bars
WIDE = 90  # a terminal with room for everything beside the bar
TENSORBOARD_FOLDER = "tensorboard"  # in the run's folder


class PlainDisplay:
    """One line per epoch, and a progress bar by tqdm if stderr is a terminal, however simple."""

    def __init__(self, console: Console) -> None:
        self.console, self.test_images = console, 0
        self.bar: tqdm[Any] | None = None
        self.shown_at = 0.0
        if console.progress.is_terminal and not console.is_live:
            console.status(LOADING)

    def on_start(self, run_dir: Path, checkpoint: "Checkpoint", train_images: int, test_images: int) -> None:
        """Say what is going to be trained, and on what."""
        self.test_images = test_images
        self.console.notice(checkpoint.notice)
        for line in describe(run_dir, checkpoint, train_images, test_images).split("\n"):
            self.console.status(line)

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        if self.bar is None:
            self.bar = tqdm(total=steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None, file=sys.stderr)
        self.bar.update(step - self.bar.n)
        if self.due() and not self.bar.disable:
            self.bar.set_postfix(loss=f"{loss():.4f}", refresh=False)
        if step == steps:
            self.close()

    def due(self) -> bool:
        """Whether to read the loss again. Not at every step: reading it makes a GPU wait."""
        now = time.monotonic()
        if now - self.shown_at < SECONDS_BETWEEN_UPDATES:
            return False
        self.shown_at = now
        return True

    def on_epoch(self, record: dict[str, Any], _model: "nn.Module") -> None:
        row = epoch_row(record)
        shown = ("train loss", "test loss", "test accuracy", "val accuracy")
        measured = "  ".join(f"{name} {row[name]}" for name in shown if name in row)
        self.console.status(f"epoch {record['epoch']:3d}  {measured}  {row['images/s']} images/s  {row['time']}")

    def on_warning(self, text: str) -> None:
        self.console.notice(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def farewell(self, result: "RunResult") -> None:
        """The last lines: the result and where it is saved."""
        from qattrain.evaluation.metrics import wilson_interval
        from qattrain.evaluation.networks import why_unusable

        last, run_dir = result.checkpoint.history[-1], result.run_dir
        epochs = counted(last["epoch"], "epoch")
        accuracy = f"test accuracy {percent(last['test_accuracy'])}"
        if not self.test_images:
            line = f"{run_dir} was already finished: {accuracy} after {epochs}; nothing was trained"
            self.console.text(line, strong=percent(last["test_accuracy"]))
            return
        interval = wilson_interval(round(last["test_accuracy"] * self.test_images), self.test_images)
        images = f"{self.test_images:,} images of {result.checkpoint.config.data.dataset}"
        line = f"{accuracy} after {epochs} ({confidence(interval)}, {images})"
        self.console.text(line, strong=percent(last["test_accuracy"]))
        self.console.saved(run_dir, why_unusable(result.checkpoint))


class LiveDisplay(PlainDisplay):
    """On a terminal: a row per epoch, and below the rows a bar with loss, speed and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.width = console.progress.width
        self.bar_shown = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(max(8, min(40, self.width - 66)), complete_style=CALM, finished_style=CALM, pulse_style=CALM),
            TextColumn("{task.fields[measured]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[unit]}"),
            console=console.progress,
            transient=True,
            redirect_stdout=False,
        )
        self.task = self.bar_shown.add_task(LOADING, total=None, measured="", unit="")
        self.bar_shown.start()
        self.epochs = self.batch_size = 0
        self.epoch_began = (0.0, 0)  # when, and at which step
        self.has_heading = False

    def on_start(self, run_dir: Path, checkpoint: "Checkpoint", train_images: int, test_images: int) -> None:
        super().on_start(run_dir, checkpoint, train_images, test_images)
        train = checkpoint.config.train
        assert isinstance(train.batch_size, int)  # "auto" is settled by now
        self.epochs, self.batch_size = train.epochs, train.batch_size
        for record in checkpoint.history:
            self.on_epoch(record)

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        # Steps of the whole run, so that the time left is the run's, not the epoch's.
        done, total, text = (epoch - 1) * steps + step, self.epochs * steps, f"epoch {epoch} of {self.epochs}"
        if self.bar_shown.tasks[0].total is None:
            self.bar_shown.reset(self.task, total=total, completed=done, description=text, measured="", unit="left")
        if self.epoch_began[1] == 0:
            self.epoch_began = (time.monotonic(), step)
        if step == steps or self.due():
            began, first = self.epoch_began
            speed = (step - first) * self.batch_size / max(time.monotonic() - began, 1e-9)
            measured = f"loss {loss():.4f}" + (f"  {speed:,.0f} images/s" if step > first else "")
            measured = measured if self.width < WIDE else f"{done}/{total}  {measured}"
            self.bar_shown.update(self.task, completed=done, description=text, measured=measured)
        if step == steps:
            self.epoch_began = (0.0, 0)

    def on_epoch(self, record: dict[str, Any], _model: "nn.Module | None" = None) -> None:
        row = {name: text for name, text in epoch_row(record).items() if name != "learning rate"}
        for name, width in LIVE_WIDTHS.items():
            row[name] = row[name].rjust(width)
        while len(lines := list(laid_out(Table.of("", [row], strong=("test accuracy",)), self.width))) > ROW_LINES:
            row.popitem()  # no room for the last column
        for line in lines[-1:] if self.has_heading else lines:
            self.console.progress.print(line, soft_wrap=True)
        self.has_heading = True

    def close(self) -> None:
        self.bar_shown.stop()


def describe(run_dir: Path, checkpoint: "Checkpoint", train_images: int, test_images: int) -> str:
    """What is trained, on which data, and how: a line each."""
    config, quant, train = checkpoint.config, checkpoint.config.quant, checkpoint.config.train
    placed = config.model.chain.place(checkpoint.input_shape, len(checkpoint.class_names))
    weights = sum(math.prod(layer.weight_shape) for layer in placed if layer.weight_shape)
    how = quant.quantizer + (f", n = {quant.n}" if quant.n is not None else "")
    how += f", {quant.surrogate} surrogate" if quant.surrogate != DEFAULTS.quant.surrogate else ""
    bits = f"{quant.bits}-bit weights, {quant.act_bits}-bit activations ({how})"
    if config.method == "float":
        bits = "float"
    bits += "".join(f", {layer} {bits} bits" for layer, bits in quant.layer_bits.items())
    bits += f", {config.model.ops} operators" if config.model.ops != DEFAULTS.model.ops else ""
    bits += f", {config.model.init} initialization" if config.model.init != DEFAULTS.model.init else ""
    chain = [] if config.model.is_preset else [f"{model_label(config.model)}: {config.model.chain.line}"]
    options = [config.data.image_size, "color" if config.data.color else None]
    pictures = "".join(f" {option}" for option in options if option)
    distill = config.distill
    teacher = f", distilled from {distill.teacher} (T {distill.temperature:g}, weight {distill.weight:g})"
    lines = [
        f"{run_dir.name}: {model_label(config.model)}, {weights:,} weights, {bits}",
        *chain,
        f"{config.data.dataset}: {train_images:,} training and {test_images:,} test images{pictures}, "
        f"{config.data.augment} augmentation{', flips' if config.data.flip else ''}",
        f"{counted(train.epochs, 'epoch')}, batch {train.batch_size}, {train.optimizer} {train.lr:g} {train.schedule}, "
        f"{train.precision} on {train.device}, {counted(train.threads or 0, 'thread')}, seed {config.seed}"
        f"{f', started from {train.init}' if train.init is not None else ''}"
        f"{teacher if distill.teacher is not None else ''}",
    ]
    return "\n".join(map(visible, lines))


def training_display(console: Console) -> AbstractContextManager[PlainDisplay]:
    """The display that suits the console; closed at the end, also after an error."""
    return closing(LiveDisplay(console) if console.is_live else PlainDisplay(console))


class TensorBoardDisplay:
    """Passes everything on to `shown`, and writes it to `<run>/tensorboard`.

    After every epoch: the values in `metrics.jsonl` as scalars, and each layer's weights, real and as codes, as
    histograms.
    """

    def __init__(self, shown: "Display", make_writer: Callable[..., Any]) -> None:
        self.shown, self.make_writer = shown, make_writer
        self.writer: Any = None

    def on_start(self, run_dir: Path, checkpoint: "Checkpoint", train_images: int, test_images: int) -> None:
        self.shown.on_start(run_dir, checkpoint, train_images, test_images)
        folder = run_dir / TENSORBOARD_FOLDER
        is_new = not folder.exists()
        # An epoch that was written here but not saved in the checkpoint is trained again: discard what was written.
        self.writer = self.make_writer(folder, purge_step=len(checkpoint.history) + 1)
        for record in checkpoint.history if is_new else ():
            self._write_scalars(record)

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        self.shown.on_step(epoch, step, steps, loss)

    def on_epoch(self, record: dict[str, Any], model: "nn.Module") -> None:
        self.shown.on_epoch(record, model)
        self._write_scalars(record)
        self._write_histograms(record["epoch"], model)
        self.writer.flush()

    def on_warning(self, text: str) -> None:
        self.shown.on_warning(text)

    def _write_scalars(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name not in ("epoch", "warnings"):
                self.writer.add_scalar(name, value, record["epoch"])

    def _write_histograms(self, epoch: int, model: "nn.Module") -> None:
        import numpy as np
        import torch

        from qattrain.layers.network import weight_layers

        for name, layer in weight_layers(model).items():
            self.writer.add_histogram(f"weights/{name}", layer.weight, epoch)
            quantizer = layer.weight_quantizer
            if quantizer is not None:  # a bin for every code
                step = quantizer.grid.step
                bins = np.arange(quantizer.qmin, quantizer.qmax + 2 * step, step) - step / 2
                with torch.no_grad():
                    codes = layer.quantized_weight().codes
                self.writer.add_histogram(f"codes/{name}", codes, epoch, bins=bins)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def tensorboard_display(shown: "Display") -> AbstractContextManager[TensorBoardDisplay]:
    """`shown`, with everything also written for TensorBoard. Raises TrainingError if that package is missing."""
    with optional_package("tensorboard", "--tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return closing(TensorBoardDisplay(shown, SummaryWriter))


class SweepWords(NamedTuple):
    """What a display says: of a cell that just ended, by its name and its accuracy or error line; and of the whole."""

    ended: Callable[[Status, str, float | str], str]
    status: Callable[[Status], str]


class PlainSweepDisplay:
    """A line for every cell that finishes or fails."""

    def __init__(self, console: Console, words: SweepWords) -> None:
        self.console, self.words = console, words

    def update(self, status: Status, ended: tuple[str, float | str] | None) -> None:
        """ended: of a cell that just ended, its name, and its accuracy or error line."""
        if ended is not None:
            self.console.status(self.words.ended(status, *ended))

    def close(self) -> None: ...


class LiveSweepDisplay(PlainSweepDisplay):
    """The same lines, above a table of the running cells and a line about the whole."""

    def __init__(self, console: Console, words: SweepWords) -> None:
        super().__init__(console, words)
        self.since: dict[str, float] = {}
        self.live = Live(console=console.progress, refresh_per_second=4, transient=True, redirect_stdout=False)
        self.live.start()

    def update(self, status: Status, ended: tuple[str, float | str] | None) -> None:
        super().update(status, ended)
        self.since = {name: self.since.get(name, time.monotonic()) for name in status.running}
        table = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("running", "done", "", "time"):
            table.add_column(column)
        for name, share in status.running.items():
            bar = ProgressBar(total=1, completed=share, width=20, complete_style=CALM, finished_style=CALM)
            table.add_row(Text(visible(name)), f"{100 * share:.0f} %", bar, age(time.monotonic() - self.since[name]))
        self.live.update(Group(table, Text(visible(self.words.status(status)))))

    def close(self) -> None:
        self.live.stop()


def ended_line(status: Status, name: str, outcome: float | str) -> str:
    """`[3 of 18] lenet-...: test accuracy 98.89 %; about 2 min left`, for a cell of a sweep that just ended."""
    what = f"test accuracy {percent(outcome)}" if isinstance(outcome, float) else f"failed: {outcome}"
    return f"[{status.finished + len(status.failed)} of {status.total}] {name}: {what}{time_left(status.seconds_left)}"


def status_line(status: Status) -> str:
    """`3 of 18 cells done, 2 running, 1 failed; best 98.89 %: lenet-...; about 2 min left`."""
    parts = [f"{status.finished} of {counted(status.total, 'cell')} done", f"{len(status.running)} running"]
    parts += [f"{len(status.failed)} failed"] if status.failed else []
    parts += [f"{status.elsewhere} with another sweep"] if status.elsewhere else []
    best = f"; best {percent(status.best[1])}: {status.best[0]}" if status.best else ""
    return ", ".join(parts) + best + time_left(status.seconds_left)


def time_left(seconds: float | None) -> str:
    """`; about 2 min left`; "" if nobody knows."""
    return f"; about {age(seconds)} left" if seconds else ""


SWEEP_WORDS = SweepWords(ended_line, status_line)


def sweep_display(console: Console, words: SweepWords = SWEEP_WORDS) -> AbstractContextManager[PlainSweepDisplay]:
    """The display that suits the console; closed at the end, also after an error."""
    return closing((LiveSweepDisplay if console.is_live else PlainSweepDisplay)(console, words))


def show_results(console: Console, document: dict[str, Any]) -> None:
    """The table of a sweep's groups; what all of them share is said once, above it."""
    if document["groups"]:
        shared = shared_columns(document["groups"])
        if shared:
            console.text(shared_line(shared))
        console.table(group_table(document["groups"], without=tuple(shared)))
        for line in chain_lines(group["model"] for group in document["groups"]):
            console.text(line)
