"""What a topic is, and the lab it experiments in: small data, a small network, one thread, seed 0.

Training uses the tool's own loop. Everything stays in memory: no run folder, no checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from qattrain.config import DataConfig, ModelConfig, QuantConfig, TrainConfig
from qattrain.config.chain import MNIST_SHAPE
from qattrain.data import AUTO_NAME, DIGITS_NAME, Dataset, is_on_disk, load_dataset
from qattrain.errors import ConfigError
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import torch_predictor
from qattrain.layers.network import build_model, copy_weights, plan_layers
from qattrain.report import console
from qattrain.report.drawing import finding
from qattrain.training.loop import Trainer
from qattrain.training.optimization import AUTO_BATCH_SMALL, settle_training
from qattrain.training.ptq import CALIBRATIONS, calibrate

MODEL = ModelConfig(name="lenet-nano")
# Six layers with weights, two of them depthwise: harder to train, and to quantize, than lenet-nano.
DEEP = ModelConfig(
    name="conv 8 5x5 stride 2 bn, dw 3x3 stride 2 bn, conv 16 1x1 bn, dw 3x3 bn, conv 32 1x1 bn, avgpool, fc"
)
TRAIN_IMAGES, TEST_IMAGES = 1500, 1000  # at most, so that training takes seconds
CALIBRATION_IMAGES = 512
SEED = 0
AUGMENT = DataConfig().augment  # the default of `qattrain train`

OnStep = Callable[[nn.Sequential, int], None]  # (model after an optimizer step, current epoch from 1)
Prepare = Callable[[nn.Sequential], None]  # changes a new model before it is trained or calibrated


@dataclass(frozen=True)
class Lab:
    """Gives experiments their data. dataset_name: a key of DATASETS, or "auto": MNIST if it is on disk, else digits."""

    data_dir: Path
    dataset_name: str = AUTO_NAME

    @cached_property
    def dataset(self) -> Dataset:
        """Loaded when first used, because not every topic needs it. Raises ConfigError, DataError."""
        name = self.dataset_name
        if name == AUTO_NAME:
            name = "mnist" if is_on_disk("mnist", self.data_dir) else DIGITS_NAME
        whole = load_dataset(name, self.data_dir)
        if whole.shape != MNIST_SHAPE:
            raise ConfigError(
                f"--dataset {name}: its images are {'x'.join(map(str, whole.shape))}, but the experiments are made for "
                "grey images of 28x28; allowed: auto, digits, mnist and others of that shape"
            )
        train, test = whole.train.head(TRAIN_IMAGES), whole.test.head(TEST_IMAGES)
        return Dataset(name, whole.class_names, lambda: train, lambda: test, whole.shape)

    @property
    def data_line(self) -> str:
        """The lab's data in words."""
        data = self.dataset
        return f"{len(data.train.labels):,} training and {len(data.test.labels):,} test images of {data.name}"

    def train(
        self,
        quant: QuantConfig,
        epochs: int,
        on_step: OnStep | None = None,
        augment: str = "none",
        settings: dict[str, Any] | None = None,
        network: ModelConfig = MODEL,
        prepare: Prepare | None = None,
    ) -> nn.Sequential:
        """A new network, trained as `qattrain train` does with its defaults; `settings` replace TrainConfig's."""
        torch.set_num_threads(1)  # results depend on the number of threads
        torch.manual_seed(SEED)
        model = self._new(network, quant, prepare)
        asked = TrainConfig(epochs=epochs, batch_size=AUTO_BATCH_SMALL, precision="fp32", device="cpu", threads=1)
        plan, images = plan_layers(network, quant), len(self.dataset.train.labels)
        config = settle_training(asked, plan, images).model_copy(update=settings)
        trainer = Trainer(model, self.dataset.train, config, augment, SEED)
        for _ in range(epochs):
            trainer.train_epoch(_Watcher(model, on_step) if on_step else None, lambda: False)
        return model

    def accuracy(self, model: nn.Sequential) -> float:
        """The fraction of the lab's test images that `model` classifies correctly."""
        return evaluate(torch_predictor(model), self.dataset.test).accuracy

    def quantized_after_training(
        self,
        float_model: nn.Sequential,
        quant: QuantConfig,
        network: ModelConfig = MODEL,
        prepare: Prepare | None = None,
    ) -> nn.Sequential:
        """`float_model` quantized after training, its ranges the minimum and maximum over some training images."""
        model = self._new(network, quant, prepare)
        copy_weights(float_model.state_dict(), model, "float network")
        calibrate(model, float_model, self.dataset.train.images[:CALIBRATION_IMAGES], CALIBRATIONS["minmax"])
        return model

    def _new(self, network: ModelConfig, quant: QuantConfig, prepare: Prepare | None) -> nn.Sequential:
        model = build_model(network, quant, self.dataset.classes)
        if prepare is not None:
            prepare(model)
        return model


Table = console.Table  # of measured numbers


@dataclass(frozen=True, eq=False)
class Explanation:
    """The result of an experiment.

    numbers: for `--json`, plain values, all finite. answer: paragraphs; every number in them was measured in this run.
    look: where to read the code, by dotted paths, and what to try. paper: the sources.
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


def panels(
    title: str, rows: int = 1, columns: int = 2, size: tuple[float, float] = (11, 4.6), **shared: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure with that title, and its panels, (rows, columns), with a light grid each. shared: of Figure.subplots."""
    figure = Figure(figsize=size, layout="constrained")
    finding(figure, title, int(10 * size[0]))
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for each in axes.flat:
        each.grid(alpha=0.25)
    return figure, axes


class _Watcher:
    def __init__(self, model: nn.Sequential, on_step: OnStep) -> None:
        self.model, self.callback = model, on_step

    def on_step(self, epoch: int, _step: int, _steps: int, _loss: Callable[[], float]) -> None:
        self.callback(self.model, epoch)
