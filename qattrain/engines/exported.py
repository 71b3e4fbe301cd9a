"""Engines that run the files of an exporter: what is measured is what would be shipped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qattrain.evaluation import Predictor
from qattrain.export import Exporter, Runner, settled_layout
from qattrain.integer import IntegerModel
from qattrain.networks import Network


def integer_predictor(run: Runner, integers: IntegerModel) -> Predictor:
    """uint8 images (N, 1, 28, 28) -> logits float64 (N, classes): those of `run` times `logit_scale`.

    The scale makes the loss that of the real logits.
    """

    def predict(images: Tensor) -> Tensor:
        logits = torch.from_numpy(run(images.cpu().numpy())).to(images.device)
        return logits.double() * integers.logit_scale

    return predict


@contextmanager
def exported_engine(exporter: Exporter, network: Network) -> Iterator[Predictor]:
    """Export `network` in memory, in the exporter's default layout, and run that. Raises ExportError.

    For a line in ENGINES: `partial(exported_engine, EXPORTERS["onnx"])`.
    """
    integers = network.integers()
    files = exporter.write(integers, network.facts, settled_layout(exporter, None))
    with exporter.run(files) as run:
        yield integer_predictor(run, integers)
