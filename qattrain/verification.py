"""Is what torch evaluates what the integers compute? Counted, layer by layer, image by image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS
from qattrain.engines import ENGINES
from qattrain.evaluation import EVALUATION_BATCH
from qattrain.integer import IntegerModel
from qattrain.model import LeNet
from qattrain.quant import QTensor


@dataclass(frozen=True)
class Mismatches:
    """Against IntegerModel. predictions: images with another class. codes: hidden codes that differ, of all layers and
    images; None for an engine that does not show them. logits: images with any other logit."""

    predictions: int
    codes: int | None
    logits: int


def compare_with_integers(engine: str, model: LeNet, integers: IntegerModel, images: Tensor) -> Mismatches:
    """Run `model` through `engine`, and `integers`, on all `images` (uint8 (N, 1, 28, 28)), and count what differs."""
    predict = ENGINES[engine](model)
    seen: dict[str, Tensor] = {}
    handles = [
        getattr(model, name).register_forward_hook(_keep(seen, name)) for name in ACTIVATION_LAYERS if engine == "torch"
    ]
    predictions = codes = different = 0
    for start in range(0, len(images), EVALUATION_BATCH):
        batch = images[start : start + EVALUATION_BATCH]
        *hidden, logits = (torch.from_numpy(values) for values in integers.trace(batch.cpu().numpy()))
        # What torch returns are the accumulators times the scale: the division brings integers back.
        found = torch.round(predict(batch).double().cpu() / integers.logit_scale).long()
        different += int((found != logits).any(1).sum())
        predictions += int((found.argmax(1) != logits.argmax(1)).sum())
        for name, expected in zip(seen, hidden, strict=False):
            codes += int((seen[name].long() != expected).sum())
    for handle in handles:
        handle.remove()
    return Mismatches(predictions, codes if engine == "torch" else None, different)


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[Any, Any, QTensor], None]:
    def keep(_module: Any, _inputs: Any, output: QTensor) -> None:
        seen[name] = output.codes.cpu()

    return keep
