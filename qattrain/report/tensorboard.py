"""A run's scalars and histograms for TensorBoard, in `<run>/tensorboard`; needs the extra of that name.

After every epoch: what `metrics.jsonl` says as scalars, and every layer's weights, real and as codes, as histograms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qattrain.config import WEIGHT_LAYERS
from qattrain.errors import ConfigError
from qattrain.layers.network import LeNet
from qattrain.runs.checkpoint import Checkpoint
from qattrain.training.run import Display

FOLDER = "tensorboard"


class TensorBoardDisplay:
    """Passes on all that `shown` is told, and writes it down, too."""

    def __init__(self, shown: Display) -> None:
        self.shown = shown
        self.writer: Any = None

    def on_start(self, run_dir: Path, checkpoint: Checkpoint, train_images: int, test_images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.shown.on_start(run_dir, checkpoint, train_images, test_images)
        folder = run_dir / FOLDER
        is_new = not folder.exists()
        # An epoch that was written down but not saved comes again: what was written of it is to be forgotten.
        self.writer = SummaryWriter(folder, purge_step=len(checkpoint.history) + 1)  # type: ignore[no-untyped-call]
        for record in checkpoint.history if is_new else ():
            self._write_scalars(record)

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None:
        self.shown.on_step(epoch, step, steps, loss)

    def on_epoch(self, record: dict[str, Any], model: LeNet) -> None:
        self.shown.on_epoch(record, model)
        self._write_scalars(record)
        self._write_histograms(record["epoch"], model)
        self.writer.flush()

    def _write_scalars(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, record["epoch"])

    @torch.no_grad()
    def _write_histograms(self, epoch: int, model: LeNet) -> None:
        for name in WEIGHT_LAYERS:
            layer = getattr(model, name)
            self.writer.add_histogram(f"weights/{name}", layer.weight, epoch)
            quantizer = layer.weight_quantizer
            if quantizer is not None:  # a bin for every code
                step = quantizer.grid.step
                bins = np.arange(quantizer.qmin, quantizer.qmax + 2 * step, step) - step / 2
                self.writer.add_histogram(f"codes/{name}", layer.quantized_weight().codes, epoch, bins=bins)


@contextmanager
def tensorboard_display(shown: Display) -> Iterator[TensorBoardDisplay]:
    """`shown`, with all it is told also written for TensorBoard. Raises ConfigError where that is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install 'qattrain[tensorboard]'")
    display = TensorBoardDisplay(shown)
    try:
        yield display
    finally:
        if display.writer is not None:
            display.writer.close()
