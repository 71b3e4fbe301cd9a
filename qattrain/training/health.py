"""Networks that train without an error and are dead all the same: how that shows, and what to try.

It shows in the evaluation that runs after every epoch anyway: a layer gives one code only, so that nothing passes it;
or the accuracy is that of a guess. Looking changes nothing: no random numbers, no state, and next to no time.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qattrain.config import ExperimentConfig
from qattrain.evaluation.metrics import Evaluation
from qattrain.quant import QTensor, Quantizer
from qattrain.quant.grid import nearest_power_of_two
from qattrain.quant.quantizers import Pow2Quantizer
from qattrain.training.optimization import OPTIMIZERS

FEWEST_CODES = 16  # fewer may all be the same by chance
FEW_IMAGES = 50  # on which a network that works may look like a guess
FIRST = 8  # rows of codes that are looked at first: in a healthy layer they differ already

SingleCodes = dict[tuple[str, str], int]  # (role, name of the layer) -> its only code


@contextmanager
def watched_codes(model: nn.Module) -> Iterator[SingleCodes]:
    """Within it, calls of `model` fill the dict with the layers that gave one code only, in all calls together.

    A layer that has given two codes is not looked at again.
    """
    single: SingleCodes = {}
    handles: dict[tuple[str, str], RemovableHandle] = {}

    def watch(key: tuple[str, str], quantizer: Quantizer) -> RemovableHandle:
        def look(_quantizer: nn.Module, _inputs: Any, q: QTensor) -> None:
            code = _only_code(q.codes[:FIRST])
            code = code if code is None else _only_code(q.codes)
            if q.codes.numel() >= FEWEST_CODES and code is not None and single.setdefault(key, code) == code:
                return
            single.pop(key, None)
            handles[key].remove()

        return quantizer.register_forward_hook(look)

    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            key = module.role, name.rpartition(".")[0]
            handles[key] = watch(key, module)
    try:
        yield single
    finally:
        for handle in handles.values():
            handle.remove()


def _only_code(codes: Tensor) -> int | None:
    low, high = torch.aminmax(codes)
    return int(low) if bool(low == high) else None


def guessing_accuracy(test: Evaluation, labels: Tensor) -> float | None:
    """Accuracy of always answering the most frequent class, if that of `test` is not better beyond its 95 % interval.

    labels: int64 (N,). None if it is better, or if all images are of one class, so that nobody can tell.
    """
    share = int(torch.bincount(labels).max()) / len(labels)
    return share if share < 1 and test.interval[0] <= share else None


def warnings_about(
    model: nn.Module, single: SingleCodes, test: Evaluation, labels: Tensor, config: ExperimentConfig, epoch: int
) -> list[str]:
    """What is wrong with `model` after `epoch` (0: after post-training quantization) and what to try; [] if nothing is.

    single: from `watched_codes`, during the evaluation `test` on images with these labels. config: settled.
    """
    guess = guessing_accuracy(test, labels)
    if guess is None and not single:
        return []
    found = []
    for role, what, where in (("weight", "weights", ""), ("activation", "activations", f" on {test.total:,} images")):
        layers = {layer: code for (kind, layer), code in single.items() if kind == role}
        if layers:
            codes = ", ".join(map(str, sorted(set(layers.values()))))
            found.append(f"{', '.join(layers)}: all {what} of a layer have the same code ({codes}){where}.")
    if guess is not None:
        better = "no better" if test.accuracy <= guess else f"on {test.total:,} images not clearly better"
        found.append(
            f"The test accuracy, {100 * test.accuracy:.2f} %, is {better} than always answering the most frequent "
            f"class ({100 * guess:.2f} %)."
        )
    may_pass = not single and 0 < epoch < config.train.epochs
    found.append(f"Epoch {epoch} of {config.train.epochs}: this may pass. If not, try" if may_pass else "Try")
    remedy = _remedy(model, config) if single or test.total >= FEW_IMAGES else "more test images: so few tell little"
    return [f"{' '.join(found)} {remedy}."]


def _remedy(model: nn.Module, config: ExperimentConfig) -> str:
    quant = config.quant
    if quant.n is not None:
        return f"--set quant.n={fitting_n(model)}, which fits these weights (it is {quant.n}), or leave n out"
    if config.ptq is not None:
        return f"more bits, --calibration mse, or training at these bits: qattrain train --bits {quant.bits}"
    assert config.train.lr != "auto", config
    rate, usual = config.train.lr, OPTIMIZERS[config.train.optimizer].lr
    if rate > usual:
        return f"a lower --lr: it is {rate:g}, the default is {usual:g}"
    if rate < usual / 10:
        return f"a higher --lr: it is {rate:g}, the default is {usual:g}"
    if config.method == "float" or config.train.init is not None:
        return "more epochs, or another --lr"
    return "more epochs, a start from a float network (train --bits 32, then --init RUN), or more bits"


def fitting_n(model: nn.Module) -> int:
    """The n of 2^n at which the weights of a network with a fixed n would fit their codes: the median of its layers."""
    quantizers = [module for module in model.modules() if isinstance(module, Pow2Quantizer) and module.role == "weight"]
    scales = [nearest_power_of_two(one.fitting_scale(one.low, one.high)).max() for one in quantizers]
    return statistics.median_low(-int(scale.log2()) for scale in scales)
