"""Which layers can take few bits: how much the loss rises when a single tensor is quantized, and what follows from it.

Nothing is trained. One layer's weights, or one activation, are quantized after training while everything else stays as
it is, and the loss is compared image by image with that of the unchanged network. What a layer loses once it is trained
with few bits is less than that; the order of the layers is what counts.

Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 4 (sensitivity of single layers);
choosing bits by summed sensitivities: Dong et al. 2020, "HAWQ-V2", section 3.3.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.config import ExperimentConfig
from qattrain.data import Dataset, ImageSet, split_validation
from qattrain.errors import ConfigError, pick
from qattrain.evaluation.metrics import EVALUATION_BATCH, Z95, Predictor
from qattrain.evaluation.networks import Trained, torch_predictor
from qattrain.layers import QuantReLU
from qattrain.layers.network import Activation, activation_layers, packed_bytes, watched_activations, weight_layers
from qattrain.layers.quantized import WeightLayer
from qattrain.quant import QUANTIZERS, activation_quantizer, weight_quantizer
from qattrain.training.ptq import CALIBRATIONS, Calibration

BITS = (8, 4, 3, 2, 1)
IMAGES = 5000  # held out, to measure the loss on
CALIBRATION_IMAGES = 1024
TRAINED_ON = "The run held out no images (--val-split), so the loss was measured on images it was trained on."


@dataclass(frozen=True)
class Rise:
    """What quantizing one tensor costs. name: of the layer; bits: of that tensor alone.

    rise: mean cross-entropy, in nats, minus that of the unchanged network. margin: half of its 95 % interval, from the
    differences image by image.
    """

    name: str
    kind: Literal["weight", "activation"]
    bits: int
    rise: float
    margin: float


@dataclass(frozen=True)
class Sensitivity:
    """loss, accuracy: of the unchanged network on `images` held-out images. weights: number of weights by layer.

    rises: by tensor, in the order of the network, weights before the activation that follows; for each from many bits
    to few. notes: what to know about the images.
    """

    loss: float
    accuracy: float
    images: int
    weights: dict[str, int]
    rises: list[Rise]
    notes: Sequence[str] = ()


def held_out_images(config: ExperimentConfig, dataset: Dataset, count: int) -> tuple[Tensor, ImageSet, list[str]]:
    """Training images to calibrate on (uint8), other ones to measure the loss on, and notes about these.

    Those that the run held out for validation, if it did; otherwise the last training images, and a note says so.
    """
    train = dataset.train.head(config.data.limit_train)
    if config.data.val_split:
        train, held_out = split_validation(train, config.data.val_split, config.seed)
        return train.head(CALIBRATION_IMAGES).images, held_out.head(count), []
    total = len(train.labels)
    kept = min(count, total // 2)
    held_out = ImageSet(train.images[total - kept :], train.labels[total - kept :])
    return train.head(min(CALIBRATION_IMAGES, total - kept)).images, held_out, [TRAINED_ON]


def measure(
    network: Trained,
    dataset: Dataset,
    *,
    quantizer: str = "lsq",
    calibration: str = "mse",
    images: int = IMAGES,
) -> Sensitivity:
    """Quantize each tensor of `network` alone, at 8, 4, 3, 2 and 1 bits, and measure by how much the loss rises.

    A network that is quantized already keeps its own bits everywhere else. quantizer, calibration: keys of QUANTIZERS
    and CALIBRATIONS. images: how many held-out images, at most. The same arguments give the same numbers on the same
    machine. Raises ConfigError.
    """
    calibrate_one = pick(CALIBRATIONS, calibration, "--calibration")
    pick(QUANTIZERS, quantizer, "--quantizer")
    calibration_images, held_out, notes = held_out_images(network.checkpoint.config, dataset, images)
    found = measure_model(network.model, calibration_images, held_out, quantizer, calibrate_one)
    return replace(found, notes=notes)


def measure_model(
    model: nn.Module,
    calibration_images: Tensor,
    held_out: ImageSet,
    quantizer: str,
    calibrate_one: Calibration,
) -> Sensitivity:
    """As `measure`, for any network of this project's layers. calibration_images: uint8 (N, C, H, W)."""
    predict = torch_predictor(model.eval())
    before, accuracy = _losses(predict, held_out)
    with torch.no_grad(), watched_activations(model) as seen:
        model(calibration_images)
    layers, activations = weight_layers(model), activation_layers(model)
    rises = []
    for name in (name for name, _ in model.named_modules() if name in layers or name in activations):
        for bits in BITS:
            if name in layers:
                change = _weights_at(layers[name], name == list(layers)[-1], quantizer, bits, calibrate_one)
            else:
                change = _activation_at(activations[name], seen[name][0], quantizer, bits, calibrate_one)
            with change:
                after, _ = _losses(predict, held_out)
            rise = after - before
            margin = Z95 * rise.std().item() / math.sqrt(len(rise))
            rises.append(Rise(name, "weight" if name in layers else "activation", bits, rise.mean().item(), margin))
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    return Sensitivity(before.mean().item(), accuracy, len(before), weights, rises)


def _losses(predict: Predictor, images: ImageSet) -> tuple[Tensor, float]:
    """Cross-entropy of each image, float64 (N,), and the accuracy."""
    losses, correct = [], 0
    for pixels, labels in zip(
        images.images.split(EVALUATION_BATCH), images.labels.split(EVALUATION_BATCH), strict=True
    ):
        logits = predict(pixels).double().cpu()
        losses.append(F.cross_entropy(logits, labels.cpu(), reduction="none"))
        correct += int((logits.argmax(1) == labels.cpu()).sum())
    return torch.cat(losses), correct / len(images.labels)


@contextmanager
def _weights_at(
    layer: WeightLayer, is_last: bool, quantizer: str, bits: int, calibrate_one: Calibration
) -> Iterator[None]:
    """Within it the layer's weights have `bits`: one scale per output channel, in the last layer one in all."""
    shape = () if is_last else (len(layer.weight), *(1,) * (layer.weight.dim() - 1))
    kept, changed = layer.weight_quantizer, weight_quantizer(quantizer, bits, shape)
    assert changed is not None, bits
    with torch.no_grad():
        calibrate_one(changed.eval().to(layer.weight.device), layer.weight.detach().contiguous())
    layer.weight_quantizer = changed
    try:
        yield
    finally:
        layer.weight_quantizer = kept


@contextmanager
def _activation_at(
    activation: Activation, values: Tensor, quantizer: str, bits: int, calibrate_one: Calibration
) -> Iterator[None]:
    """Within it the activation has `bits`, its range found on `values`, which are not negative."""
    rectify = isinstance(activation, QuantReLU)  # an average follows a ReLU
    kept, changed = activation.quantizer, activation_quantizer(quantizer, bits, rectify=rectify)
    assert changed is not None, bits
    with torch.no_grad():
        calibrate_one(changed.eval().to(values.device), values.contiguous())
    activation.quantizer = changed
    try:
        yield
    finally:
        activation.quantizer = kept


def rise_of(found: Sensitivity, name: str, bits: int) -> Rise:
    """What that tensor costs at that width."""
    return next(rise for rise in found.rises if (rise.name, rise.bits) == (name, bits))


def uniform_bytes(weights: Mapping[str, int], bits: int) -> int:
    """Bytes of all weights at the same bits, packed layer by layer."""
    return sum(packed_bytes(count, bits) for count in weights.values())


def assign_bits(found: Sensitivity, most_bytes: int) -> dict[str, int]:
    """Bits for each layer's weights, with the smallest sum of rises among all assignments of at most `most_bytes`.

    A rise is taken as at least 0 and at least that at more bits: less is noise. Of equal sums the one with more bytes
    is taken, because bytes that are left over are worth nothing. Exact: all assignments are compared, except those
    that another one of the first layers beats in both bytes and sum. Raises ConfigError if 1 bit everywhere is more.
    """
    least = uniform_bytes(found.weights, min(BITS))
    if most_bytes < least:
        raise ConfigError(
            f"--bytes {most_bytes}: the weights take {least:,} bytes at {min(BITS)} bit; allowed: at least that many"
        )
    costs = {name: _rising_costs(found, name) for name in found.weights}
    best: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]  # (bytes, sum of rises, bits), of the first layers
    for name, count in found.weights.items():
        longer = [
            (taken + packed_bytes(count, bits), total + cost, (*chosen, bits))
            for taken, total, chosen in best
            for bits, cost in costs[name].items()
        ]
        best = []
        for taken, total, chosen in sorted(longer, key=lambda one: (one[1], -one[0])):
            # From the smallest sum up: a larger sum must save bytes.
            if taken <= most_bytes and (not best or taken < best[-1][0]):
                best.append((taken, total, chosen))
    return dict(zip(found.weights, best[0][2], strict=True))


def _rising_costs(found: Sensitivity, name: str) -> dict[int, float]:
    """Bits -> rise of the loss, from many bits to few, never falling."""
    costs, largest = {}, 0.0
    for rise in (one for one in found.rises if one.name == name):
        largest = max(largest, rise.rise)
        costs[rise.bits] = largest
    return costs
