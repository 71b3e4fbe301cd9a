"""The torch engine: the model itself, eager, with exact integer sums."""

import torch
from torch import Tensor

from qattrain.evaluation import Predictor
from qattrain.model import LeNet


def torch_engine(model: LeNet) -> Predictor:
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
