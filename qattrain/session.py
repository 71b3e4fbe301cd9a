"""A run under way: train an epoch, evaluate, save, show; until the last epoch or Ctrl-C."""

import math
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from qattrain import runs
from qattrain.checkpoint import Checkpoint, save_checkpoint
from qattrain.config import ExperimentConfig
from qattrain.data import Dataset, ImageSet, split_validation
from qattrain.distillation import Teacher
from qattrain.engines import torch_predictor
from qattrain.evaluation import evaluate
from qattrain.model import LayerPlan, LeNet, plan_layers
from qattrain.training import EpochResult, Observer, Trainer


class Display(Observer, Protocol):
    """Shows a run to a person."""

    def on_start(self, run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> None: ...

    def on_epoch(self, record: dict[str, Any], model: LeNet) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """A run folder and its last checkpoint. interrupted: stopped before its last epoch, by Ctrl-C."""

    run_dir: Path
    checkpoint: Checkpoint
    interrupted: bool = False

    @property
    def plan(self) -> LayerPlan:
        return plan_layers(self.checkpoint.config.quant)

    def summary(self) -> dict[str, Any]:
        """The fields of `train --json` and `ptq --json`."""
        config, history, plan = self.checkpoint.config, self.checkpoint.history, self.plan
        last = history[-1] if history else dict.fromkeys(("train_loss", "test_loss", "test_accuracy"))
        trained = [] if config.ptq else history
        speeds = [record["images_per_second"] for record in trained]
        return {
            "run_dir": str(self.run_dir),
            "checkpoint": str(self.run_dir / runs.LAST_FILE),
            "dataset": config.data.dataset,
            "model": config.model.name,
            "bits": plan.bits,
            "act_bits": plan.act_bits,
            "quantizer": plan.quantizer,
            "weight_quantizer": plan.weight_quantizer,
            "epochs": len(trained),
            "seed": config.seed,
            "train_loss": last["train_loss"],
            "test_loss": last["test_loss"],
            "test_accuracy": last["test_accuracy"],
            "epoch_seconds": [record["epoch_seconds"] for record in trained],
            "images_per_second": statistics.median(speeds) if speeds else None,
        }


class Session:
    """A run under way: its model, data and trainer on their device, and its history so far."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        notice: str | None,
        model: LeNet,
        teacher: Teacher | None = None,
    ) -> None:
        device = torch.device(config.train.device)
        train = dataset.train.head(config.data.limit_train)
        self.validation: ImageSet | None = None
        if config.data.val_split:
            train, held_out = split_validation(train, config.data.val_split, config.seed)
            self.validation = held_out.to(device)
        self.test = dataset.test.head(config.data.limit_test).to(device)
        self.model = model.to(device)
        self.predict = torch_predictor(self.model)
        self.trainer = Trainer(self.model, train.to(device), config.train, config.data.augment, config.seed, teacher)
        self.config, self.notice, self.class_names = config, notice, dataset.class_names
        self.history: list[dict[str, Any]] = []

    def checkpoint(self) -> Checkpoint:
        model = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        trainer = self.trainer.state_dict()
        return Checkpoint(self.config, self.class_names, model, self.history, self.notice, trainer)

    def save(self, run_dir: Path) -> None:
        save_checkpoint(run_dir / runs.LAST_FILE, self.checkpoint())
        runs.write_metrics(run_dir, self.history)

    def run(
        self, run_dir: Path, display: Display, stop_after: int | None, stop: threading.Event | None = None
    ) -> RunResult:
        """Train to the last epoch, or to the end of epoch `stop_after`, or until Ctrl-C or somebody sets `stop`.

        Saves after every epoch, and where it stops.
        """
        display.on_start(run_dir, self.checkpoint(), len(self.trainer.data.labels), len(self.test.labels))
        last = min(self.config.train.epochs, stop_after or self.config.train.epochs)
        interrupted = False
        with _interrupt_flag(stop or threading.Event()) as should_stop:
            while self.trainer.epoch < last and not interrupted:
                result = self.trainer.train_epoch(display, should_stop)
                if result is not None:
                    self._finish_epoch(run_dir, result)
                    display.on_epoch(self.history[-1], self.model)
                self.save(run_dir)
                interrupted = should_stop() and self.trainer.epoch < last
        return RunResult(run_dir, self.checkpoint(), interrupted)

    def _finish_epoch(self, run_dir: Path, result: EpochResult) -> None:
        test = evaluate(self.predict, self.test)
        if not math.isfinite(test.loss):  # its last update came after its last check of the training loss
            raise self.trainer.diverged("test", test.loss, result.epoch, len(self.trainer.slices))
        record: dict[str, Any] = {
            "epoch": result.epoch,
            "train_loss": result.train_loss,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "learning_rate": result.learning_rate,
            "epoch_seconds": result.seconds,
            "images_per_second": result.images_per_second,
        }
        best_before = max((r["val_accuracy"] for r in self.history if "val_accuracy" in r), default=-1.0)
        if self.validation is not None:
            held_out = evaluate(self.predict, self.validation)
            record |= {"val_loss": held_out.loss, "val_accuracy": held_out.accuracy}
        self.history.append(record)
        if self.validation is not None and record["val_accuracy"] > best_before:
            save_checkpoint(run_dir / runs.BEST_FILE, self.checkpoint())


@contextmanager
def _interrupt_flag(stop: threading.Event) -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C only sets `stop`, to be asked for between steps; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
