"""The integer engine: the lowered network, interpreted by NumPy."""

import torch
from torch import Tensor

from qattrain.evaluation import Predictor
from qattrain.lowering import lower
from qattrain.model import LeNet


def integer_engine(model: LeNet) -> Predictor:
    """Lower `model` and predict with integers: uint8 images (N, 1, 28, 28) -> logits float64 (N, classes).

    The logits are the int32 ones times `logit_scale`, so that the loss is that of the real ones. Raises ExportError if
    a layer is float.
    """
    integers = lower(model)

    def predict(images: Tensor) -> Tensor:
        logits = torch.from_numpy(integers.run(images.cpu().numpy()))
        return logits.double() * integers.logit_scale

    return predict
