"""A run in progress: train, evaluate and save after every epoch, and whenever it is stopped.

What `qattrain.training.run` starts and resumes. A display shows it; what a display cannot show is no reason to lose
what is trained.
"""

import math
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from qattrain.config import ExperimentConfig
from qattrain.data import Dataset, ImageSet, split_validation
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import torch_predictor
from qattrain.files.stopping import FirstSignal
from qattrain.layers.network import plan_layers
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, save_checkpoint
from qattrain.training.distillation import Teacher
from qattrain.training.health import warnings_about, watched_codes
from qattrain.training.loop import EpochResult, Observer, Trainer


class Display(Observer, Protocol):
    """Shows a run's progress."""

    def on_start(self, run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> None: ...

    def on_epoch(self, record: dict[str, Any], model: nn.Module) -> None: ...

    def on_warning(self, text: str) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """A run folder and its last checkpoint. interrupted: stopped before its last epoch; signal: by which, if by one."""

    run_dir: Path
    checkpoint: Checkpoint
    interrupted: bool = False
    signal: int | None = None

    def summary(self) -> dict[str, Any]:
        """The fields of `train --json` and `ptq --json`."""
        config, history = self.checkpoint.config, self.checkpoint.history
        last = history[-1] if history else dict.fromkeys(("train_loss", "test_loss", "test_accuracy"))
        trained = [] if config.ptq else history
        speeds = [record["images_per_second"] for record in trained]
        return {
            "run_dir": str(self.run_dir),
            "checkpoint": str(self.run_dir / runs.LAST_FILE),
            "dataset": config.data.spec,
            "model": config.model.name,
            "bits": config.quant.bits,
            "act_bits": config.quant.act_bits,
            "quantizer": config.quant.quantizer,
            "weight_quantizer": plan_layers(config.model, config.quant).weight_quantizer,
            "epochs": len(trained),
            "seed": config.seed,
            "train_loss": last["train_loss"],
            "test_loss": last["test_loss"],
            "test_accuracy": last["test_accuracy"],
            "epoch_seconds": [record["epoch_seconds"] for record in trained],
            "images_per_second": statistics.median(speeds) if speeds else None,
            "warnings": self.checkpoint.warnings,
        }


class _Shown:
    """A display that, where it fails, only sets `stop`: if its terminal is gone, what is trained can still be saved.

    error: what failed.
    """

    def __init__(self, display: Display, stop: threading.Event) -> None:
        self.display, self.stop = display, stop
        self.error: OSError | None = None

    def _try(self, show: Callable[..., None], *arguments: Any) -> None:
        try:
            show(*arguments)
        except OSError as error:
            self.error = error
            self.stop.set()

    def on_start(self, *arguments: Any) -> None:
        self._try(self.display.on_start, *arguments)

    def on_step(self, *arguments: Any) -> None:
        self._try(self.display.on_step, *arguments)

    def on_epoch(self, *arguments: Any) -> None:
        self._try(self.display.on_epoch, *arguments)

    def on_warning(self, text: str) -> None:
        self._try(self.display.on_warning, text)


class Session:
    """A run in progress: model, data and trainer on their device, and the history so far."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        notice: str | None,
        model: nn.Module,
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
        self.trainer = Trainer(
            self.model, train.to(device), config.train, config.data.augment, config.seed, teacher, config.data.flip
        )
        self.config, self.notice, self.dataset = config, notice, dataset
        self.history: list[dict[str, Any]] = []

    def checkpoint(self) -> Checkpoint:
        model = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        trainer = self.trainer.state_dict()
        about = self.config, self.dataset.class_names, model, self.history, self.notice, trainer
        return Checkpoint(*about, self.dataset.shape)

    def save(self, run_dir: Path) -> None:
        save_checkpoint(run_dir / runs.LAST_FILE, self.checkpoint())
        runs.write_metrics(run_dir, self.history)

    def run(
        self, run_dir: Path, display: Display, stop_after: int | None, stop: threading.Event | None = None
    ) -> RunResult:
        """Train to the last epoch, to the end of epoch `stop_after`, or until a signal comes or `stop` is set.

        Saves after every epoch and when it stops.
        """
        display.on_start(run_dir, self.checkpoint(), len(self.trainer.data.labels), len(self.test.labels))
        last = min(self.config.train.epochs, stop_after or self.config.train.epochs)
        interrupted = False
        with FirstSignal(stop or threading.Event()) as first:
            shown = _Shown(display, first.stop)
            while self.trainer.epoch < last and not interrupted:
                result = self.trainer.train_epoch(shown, first.stop.is_set)
                if result is not None:
                    self._finish_epoch(run_dir, result)
                    shown.on_epoch(self.history[-1], self.model)
                    self._warn(shown)
                self.save(run_dir)
                interrupted = first.stop.is_set() and self.trainer.epoch < last
        if shown.error is not None and first.number is None:
            raise shown.error
        return RunResult(run_dir, self.checkpoint(), interrupted, first.number)

    def _finish_epoch(self, run_dir: Path, result: EpochResult) -> None:
        with watched_codes(self.model) as single:
            test = evaluate(self.predict, self.test)
        if not math.isfinite(test.loss):  # the training loss was last checked before the last update
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
        labels = self.test.labels.cpu()
        if found := warnings_about(self.model, single, test, labels, self.config, result.epoch):
            record["warnings"] = found
        best_before = max((r["val_accuracy"] for r in self.history if "val_accuracy" in r), default=-1.0)
        if self.validation is not None:
            held_out = evaluate(self.predict, self.validation)
            record |= {"val_loss": held_out.loss, "val_accuracy": held_out.accuracy}
        self.history.append(record)
        if self.validation is not None and record["val_accuracy"] > best_before:
            save_checkpoint(run_dir / runs.BEST_FILE, self.checkpoint())

    def _warn(self, display: _Shown) -> None:
        """Show a warning when it appears, and after the last epoch; not after every epoch between."""
        is_new = "warnings" not in (self.history[-2] if len(self.history) > 1 else {})
        if is_new or self.trainer.epoch == self.config.train.epochs:
            for text in self.checkpoint().warnings:
                display.on_warning(text)
