"""A run as it happens: a live table and a progress bar on a terminal, one plain line an epoch elsewhere."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tqdm import tqdm

from qattrain.checkpoint import Checkpoint
from qattrain.config import FLOAT_BITS
from qattrain.evaluation import wilson_interval
from qattrain.model import LeNet
from qattrain.report.console import Console, counted, percent
from qattrain.session import RunResult

SECONDS_BETWEEN_UPDATES = 0.2


class PlainDisplay:
    """One line an epoch, through tqdm, whose bar shows only if stderr is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.test_images = console, 0
        self.bar: tqdm[Any] | None = None
        self.shown_at = 0.0

    def on_start(self, run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> None:
        """Say what is about to be trained, and what it is trained on."""
        self.test_images = test_images
        if checkpoint.notice:
            self.console.notice(checkpoint.notice)
        self.console.text(describe(run_dir, checkpoint, train_images, test_images))

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        if self.bar is None:
            self.bar = tqdm(total=steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None, file=sys.stderr)
        self.bar.update(step - self.bar.n)
        if self.due() and not self.bar.disable:
            self.bar.set_postfix(loss=f"{loss():.4f}", refresh=False)
        if step == steps:
            self.close()

    def due(self) -> bool:
        """Whether it is time to read the loss again: reading it makes a GPU wait."""
        now = time.monotonic()
        if now - self.shown_at < SECONDS_BETWEEN_UPDATES:
            return False
        self.shown_at = now
        return True

    def on_epoch(self, record: dict[str, Any], _model: LeNet) -> None:
        validation = f"  val accuracy {percent(record['val_accuracy'])}" if "val_accuracy" in record else ""
        self.console.text(
            f"epoch {record['epoch']:3d}  train loss {record['train_loss']:.4f}  test loss {record['test_loss']:.4f}  "
            f"test accuracy {percent(record['test_accuracy'])}{validation}  "
            f"{record['images_per_second']:,.0f} images/s  {record['epoch_seconds']:.1f} s"
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def farewell(self, result: RunResult) -> str:
        """The last line: the result and where it lies."""
        last, run_dir = result.checkpoint.history[-1], result.run_dir
        epochs = counted(last["epoch"], "epoch")
        accuracy = f"test accuracy {percent(last['test_accuracy'])}"
        if not self.test_images:
            return f"{run_dir} is finished: {accuracy} after {epochs}; nothing was left to train"
        low, high = wilson_interval(round(last["test_accuracy"] * self.test_images), self.test_images)
        return (
            f"{accuracy} after {epochs} (95 % interval {percent(low)} to {percent(high)}, "
            f"{self.test_images:,} images of {result.checkpoint.config.data.dataset})\n"
            f"saved in {run_dir}; see it again with:  qattrain eval {shlex.quote(str(run_dir))}"
        )


class LiveDisplay(PlainDisplay):
    """The same on a terminal: a table that grows by a row an epoch, and a bar with loss and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("epoch", "train loss", "test loss", "test accuracy", "images/s", "time"):
            self.table.add_column(column, justify="right")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console.rich,
        )
        self.live = Live(Group(self.table, self.progress), console=console.rich, refresh_per_second=8, transient=False)
        self.task = self.progress.add_task("", total=None, loss="-", visible=False)
        self.epochs = 0

    def on_start(self, run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> None:
        super().on_start(run_dir, checkpoint, train_images, test_images)
        self.epochs = checkpoint.config.train.epochs
        for record in checkpoint.history:
            self._add_row(record)
        self.live.start()

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        if step == steps or self.due():
            # Counted over the whole run, so that the time left is the run's.
            done, total = (epoch - 1) * steps + step, self.epochs * steps
            text = f"epoch {epoch} of {self.epochs}"
            if self.progress.tasks[0].total is None:
                self.progress.reset(self.task, total=total, completed=done, description=text, visible=True)
            self.progress.update(self.task, completed=done, description=text, loss=f"{loss():.4f}")

    def on_epoch(self, record: dict[str, Any], _model: LeNet) -> None:
        self._add_row(record)

    def _add_row(self, record: dict[str, Any]) -> None:
        self.table.add_row(
            str(record["epoch"]),
            f"{record['train_loss']:.4f}",
            f"{record['test_loss']:.4f}",
            percent(record["test_accuracy"]),
            f"{record['images_per_second']:,.0f}",
            f"{record['epoch_seconds']:.1f} s",
        )

    def close(self) -> None:
        self.progress.update(self.task, visible=False)
        self.live.stop()


def describe(run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> str:
    """What is trained, on what, how."""
    config, quant, train = checkpoint.config, checkpoint.config.quant, checkpoint.config.train
    weights = sum(tensor.numel() for name, tensor in checkpoint.model.items() if name.endswith(".weight"))
    bits = f"{quant.bits}-bit weights, {quant.act_bits}-bit activations ({quant.quantizer})"
    if quant.bits == quant.act_bits == FLOAT_BITS:
        bits = "float"
    bits += "".join(f", {layer} {bits} bits" for layer, bits in quant.layer_bits.items())
    distill = config.distill
    teacher = f", distilled from {distill.teacher} (T {distill.temperature:g}, weight {distill.weight:g})"
    return (
        f"{run_dir.name}: {config.model.name}, {weights:,} weights, {bits}\n"
        f"{config.data.dataset}: {train_images:,} training and {test_images:,} test images, "
        f"{config.data.augment} augmentation\n"
        f"{counted(train.epochs, 'epoch')}, batch {train.batch_size}, {train.optimizer} {train.lr:g} {train.schedule}, "
        f"{train.precision} on {train.device}, {counted(train.threads or 0, 'thread')}, seed {config.seed}"
        f"{teacher if distill.teacher is not None else ''}"
    )


@contextmanager
def training_display(console: Console) -> Iterator[PlainDisplay]:
    """The display that suits where the text goes; closed whatever happens."""
    display = LiveDisplay(console) if console.is_terminal else PlainDisplay(console)
    try:
        yield display
    finally:
        display.close()
