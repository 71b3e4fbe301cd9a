"""What a topic is, and the laboratory it works in: small data, a small network, one thread and seed 0.

The training loop is the tool's own. Everything stays in memory: no run folder, no checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from qattrain.config import DataConfig, ModelConfig, QuantConfig, TrainConfig
from qattrain.data import AUTO_NAME, DIGITS_NAME, Dataset, is_on_disk, load_dataset
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import torch_predictor
from qattrain.layers.network import LeNet, build_model, copy_weights
from qattrain.report import console
from qattrain.training.loop import Trainer
from qattrain.training.optimization import AUTO_BATCH_SMALL, settle_training
from qattrain.training.ptq import CALIBRATIONS, calibrate

MODEL = ModelConfig(name="lenet-nano")
TRAIN_IMAGES, TEST_IMAGES = 1500, 1000  # of a larger dataset than the digits: seconds, not minutes
CALIBRATION_IMAGES = 512
SEED = 0
AUGMENT = DataConfig().augment  # of a run that asks for nothing else

OnStep = Callable[[LeNet, int], None]  # the model after an optimizer step, and the epoch under way, from 1


@dataclass(frozen=True)
class Lab:
    """Where experiments get their data. dataset_name: a key of DATASETS, or "auto": MNIST if on disk, else digits."""

    data_dir: Path
    dataset_name: str = AUTO_NAME

    @cached_property
    def dataset(self) -> Dataset:
        """Loaded at the first use: not every topic needs it. Raises ConfigError, DataError."""
        name = self.dataset_name
        if name == AUTO_NAME:
            name = "mnist" if is_on_disk("mnist", self.data_dir) else DIGITS_NAME
        whole = load_dataset(name, self.data_dir)
        return Dataset(name, whole.class_names, whole.train.head(TRAIN_IMAGES), whole.test.head(TEST_IMAGES))

    @property
    def data_line(self) -> str:
        """The data of this lab, in words."""
        data = self.dataset
        return f"{len(data.train.labels):,} training and {len(data.test.labels):,} test images of {data.name}"

    def train(
        self,
        quant: QuantConfig,
        epochs: int,
        on_step: OnStep | None = None,
        augment: str = "none",
        settings: dict[str, Any] | None = None,
    ) -> LeNet:
        """A fresh lenet-nano trained as `qattrain train` would, with its defaults but for `settings` of TrainConfig."""
        torch.set_num_threads(1)  # results on a CPU are equal for equal numbers of threads
        torch.manual_seed(SEED)
        model = build_model(MODEL, quant, self.dataset.classes)
        config = TrainConfig(
            epochs=epochs,
            batch_size=AUTO_BATCH_SMALL,
            precision="fp32",
            device="cpu",
            threads=1,
        )
        images = len(self.dataset.train.labels)
        config = settle_training(config, quant, images).model_copy(update=settings)
        trainer = Trainer(model, self.dataset.train, config, augment, SEED)
        for _ in range(epochs):
            trainer.train_epoch(_Watcher(model, on_step), lambda: False)
        return model

    def accuracy(self, model: LeNet) -> float:
        """On all of the lab's test images, a fraction."""
        return evaluate(torch_predictor(model), self.dataset.test).accuracy

    def quantized_after_training(self, float_model: LeNet, quant: QuantConfig) -> LeNet:
        """Post-training quantization of `float_model`, calibrated by min and max on training images."""
        model = build_model(MODEL, quant, self.dataset.classes)
        copy_weights(float_model.state_dict(), model, "float network")
        calibrate(model, float_model, self.dataset.train.images[:CALIBRATION_IMAGES], CALIBRATIONS["minmax"])
        return model


Table = console.Table  # of measured numbers


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an experiment showed.

    numbers: for `--json`, plain values, nothing not finite. answer: paragraphs; every number in them is from this run.
    look: where in the code it stands, and what to change. paper: who described it. figure: the picture.
    """

    numbers: dict[str, Any]
    tables: list[Table]
    answer: list[str]
    look: list[str]
    paper: str
    figure: Figure


@dataclass(frozen=True)
class Topic:
    """A question, and the experiment that answers it."""

    question: str
    explain: Callable[[Lab], Explanation]


class _Watcher:
    def __init__(self, model: LeNet, on_step: OnStep | None) -> None:
        self.model, self.callback = model, on_step

    def on_step(self, epoch: int, _step: int, _steps: int, _loss: Callable[[], float]) -> None:
        if self.callback is not None:
            self.callback(self.model, epoch)
