"""The torch engine: the model itself, eager, with exact integer sums."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qattrain.errors import ConfigError
from qattrain.evaluation import Predictor
from qattrain.model import LeNet
from qattrain.networks import Network, Packed


def torch_predictor(model: LeNet) -> Predictor:
    """Predict with `model` on its own device: uint8 images (N, 1, 28, 28) -> logits (N, classes).

    Puts the model into evaluation mode at every call. TF32 is off: its ten bits of mantissa cannot hold sums of codes.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        model.eval()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        logits: Tensor = model(images.to(device))
        return logits

    return predict


@contextmanager
def torch_engine(network: Network) -> Iterator[Predictor]:
    """Predict with what was trained. Raises ConfigError for a packed file, which has no real weights."""
    if isinstance(network, Packed):
        raise ConfigError("--engine torch: a packed file holds only integers; leave it out, or take --engine integer")
    yield torch_predictor(network.model)
