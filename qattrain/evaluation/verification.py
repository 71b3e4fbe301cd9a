"""Is what an engine computes what the integers compute? Counted, layer by layer, image by image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qattrain.config import ACTIVATION_LAYERS
from qattrain.evaluation.metrics import EVALUATION_BATCH, Predictor
from qattrain.integer import IntegerModel
from qattrain.layers.network import LeNet
from qattrain.quant import QTensor


@dataclass(frozen=True)
class Mismatches:
    """Against IntegerModel. predictions: images with another class. codes: hidden codes that differ, of all layers and
    images; None for an engine that does not show them. logits: images with any other logit.

    integer_predictions: int64 (N,), the classes that IntegerModel gives.
    """

    predictions: int
    codes: int | None
    logits: int
    integer_predictions: Tensor


def compare_with_integers(
    predict: Predictor, integers: IntegerModel, images: Tensor, shown: LeNet | None = None
) -> Mismatches:
    """Run `predict`, and `integers`, on all `images` (uint8 (N, 1, 28, 28)), and count what differs.

    shown: the model that `predict` calls, to look at its hidden codes, too.
    """
    codes = different = 0
    found_classes, classes = [], []
    with _hidden_codes(shown) as seen:
        for start in range(0, len(images), EVALUATION_BATCH):
            batch = images[start : start + EVALUATION_BATCH]
            *hidden, logits = (torch.from_numpy(values) for values in integers.trace(batch.cpu().numpy()))
            # What engines return are the accumulators times the scale: the division brings integers back.
            found = torch.round(predict(batch).double().cpu() / integers.logit_scale).long()
            different += int((found != logits).any(1).sum())
            found_classes.append(found.argmax(1))
            classes.append(logits.argmax(1))
            if shown is not None:
                for name, expected in zip(ACTIVATION_LAYERS, hidden, strict=True):
                    codes += int((seen[name].long() != expected).sum())
    none = torch.zeros(0, dtype=torch.int64)
    predicted, expected_classes = torch.cat([none, *found_classes]), torch.cat([none, *classes])
    return Mismatches(
        predictions=int((predicted != expected_classes).sum()),
        codes=None if shown is None else codes,
        logits=different,
        integer_predictions=expected_classes,
    )


@contextmanager
def _hidden_codes(model: LeNet | None) -> Iterator[dict[str, Tensor]]:
    """Filled, at every call of `model`, with the codes behind each activation by its name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any, Any, QTensor], None]:
        return lambda _module, _inputs, output: seen.update({name: output.codes.cpu()})

    names = () if model is None else ACTIVATION_LAYERS
    handles = [getattr(model, name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
