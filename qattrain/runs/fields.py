"""What the fields of a checkpoint must be, beyond their types: what a run writes, and nothing that only looks like it.

Every function raises ValueError with the reason. A digest proves that a file is whole, not that it makes sense.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qattrain.config.chain import Chain, Shape

Record = dict[str, Any]

MEASURED = ("test_loss", "test_accuracy")  # after every epoch, and after a quantization
TRAINED = ("train_loss", *MEASURED, "learning_rate", "epoch_seconds", "images_per_second")  # after every epoch
FRACTIONS = ("test_accuracy", "val_accuracy")
LARGEST_IMAGE = 2**24  # numbers in one image
LONGEST_TEXT = 10_000  # letters of a name or a notice
MOST_CLASSES = 10_000
MOST_SETTINGS = 5_000  # values in a configuration
DEEPEST_SETTING = 8
LARGEST_SCALE = 2.0**40  # so that sums times two scales are numbers of 32 bits
LEARNED_SCALES = (".scale", ".alpha")  # what quantizers learn that must be positive
RANGES = {".low": -1.0, ".high": 1.0, ".largest": 1.0, ".running_var": 1.0}  # sign of what they observe


def check_settings(value: Any) -> None:
    """That a configuration is tables of plain values; what they mean is checked by `qattrain.config`."""
    left = MOST_SETTINGS

    def walk(part: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST_SETTING:
            raise ValueError("its configuration is too large")
        if isinstance(part, dict):
            if not all(isinstance(key, str) for key in part):
                raise ValueError("a setting in its configuration has no text as its name")
            part = part.values()
        elif isinstance(part, str):
            if len(part) > LONGEST_TEXT:
                raise ValueError(f"its configuration has a text of more than {LONGEST_TEXT:,} letters")
            return
        elif type(part) is int and abs(part) >= 2**64:
            raise ValueError("its configuration has a number of more than 64 bits")
        elif part is None or type(part) in (bool, int, float):
            return
        elif not isinstance(part, list | tuple):
            raise ValueError(f"its configuration has a {type(part).__name__} in it")
        for each in part:
            walk(each, depth + 1)

    walk(value, 0)


def check_history(history: list[Record], is_ptq: bool, epochs: int) -> None:
    """epochs: how many the run has; a quantization after training has one record, of epoch 0."""
    most = 1 if is_ptq else epochs
    if len(history) > most:
        raise ValueError(f"its history has {len(history)} records, its run {most}")
    for number, record in enumerate(history):
        epoch = 0 if is_ptq else number + 1
        at = f"record {number + 1} of its history"
        if type(record.get("epoch")) is not int or record["epoch"] != epoch:
            raise ValueError(f"{at} is of epoch {_short(record.get('epoch'))}, not {epoch}")
        for name in MEASURED if is_ptq else TRAINED:
            if name not in record:
                raise ValueError(f"{at} has no {name}")
        for name, value in record.items():
            _check_measured(name, value, at, is_ptq)


def _check_measured(name: Any, value: Any, at: str, is_ptq: bool) -> None:
    """One value of a record; there may be more names than this version writes, if they have numbers, too."""
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier():
        raise ValueError(f"{at} has a value named {_short(name)}")
    if name == "warnings":
        if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise ValueError(f"the warnings in {at} are not texts")
        return
    if value is None and is_ptq and name == "train_loss":  # nothing was trained
        return
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} in {at} is {_short(value)}, not a finite number")
    if name in FRACTIONS and not 0 <= value <= 1:
        raise ValueError(f"{name} in {at} is {value:g}; allowed: 0 to 1")


def check_names(class_names: list[str], notice: str | None, input_shape: Shape) -> None:
    """The data's own: classes, the notice about them, and the shape of an image."""
    if not 1 <= len(class_names) <= MOST_CLASSES:
        raise ValueError(f"it has {len(class_names):,} class names; allowed: 1 to {MOST_CLASSES:,}")
    longest = max(map(len, [*class_names, notice or ""]))
    if longest > LONGEST_TEXT:
        raise ValueError(f"it has a name or a notice of {longest:,} letters; allowed: {LONGEST_TEXT:,}")
    if math.prod(input_shape) > LARGEST_IMAGE:
        raise ValueError(f"its images would be {'x'.join(map(str, input_shape))}; allowed: {LARGEST_IMAGE:,} numbers")


def check_tensors(model: Mapping[Any, Tensor], file_bytes: int) -> None:
    """That a state dict holds plain tensors of finite numbers, and no more of them than the file has bytes."""
    total = 0
    for key, tensor in model.items():
        if not isinstance(key, str):
            raise ValueError(f"a tensor of its network is named {_short(key)}, which is no text")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{key} is no plain tensor")
        total += tensor.numel() * tensor.element_size()
        if total > file_bytes:
            raise ValueError(f"the tensors of its network claim more bytes than the file has, {key} the last")
    for key, tensor in model.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{_layer(key)}: its {_part(key)} is not finite (NaN or infinite)")


def check_scales(model: Mapping[str, Tensor]) -> None:
    """That scales, and the ranges they follow from, are positive: a network with another is broken, if computable."""
    for key, tensor in model.items():
        if "quantizer." in key and key.endswith(LEARNED_SCALES) and bool((tensor <= 0).any()):
            raise ValueError(f"{_layer(key)}: its {_part(key)} is {float(tensor.min()):g}; allowed: above 0")
        if "quantizer." in key and tensor.is_floating_point() and bool((tensor.abs() > LARGEST_SCALE).any()):
            raise ValueError(f"{_layer(key)}: its {_part(key)} is {float(tensor.abs().max()):g}; allowed: up to 2^40")
        sign = next((sign for end, sign in RANGES.items() if key.endswith(end)), None)
        if sign is not None and bool((tensor * sign < 0).any()):
            wrong = float((tensor * sign).min() * sign)
            raise ValueError(f"{_layer(key)}: its {_part(key)} is {wrong:g}, which has the wrong sign")


def check_weights(model: Mapping[str, Tensor], chain: Chain, classes: int, input_shape: Shape) -> None:
    """That the weights are those of the chain on such images, before a network of that size is built."""
    for placed in chain.place(input_shape, classes):
        key = f"{placed.layer.name}.weight"
        if placed.weight_shape:
            found = tuple(model[key].shape) if key in model else None
            if found != placed.weight_shape:
                raise ValueError(f"{key} has shape {found}, expected {placed.weight_shape}")


def check_state(model: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: frozenset[str]) -> None:
    """That a state dict has exactly the tensors that the network has. optional: keys that older files lack."""
    for key in model:
        if key not in own:
            raise ValueError(f"the network has no {key[:80]}")
    for key, tensor in own.items():
        if key not in model:
            if key not in optional:
                raise ValueError(f"it has no {key}")
        elif (model[key].shape, model[key].dtype) != (tensor.shape, tensor.dtype):
            found, expected = (f"{one.dtype} {tuple(one.shape)}" for one in (model[key], tensor))
            raise ValueError(f"{key} is {found}, expected {expected}")


def _layer(key: str) -> str:
    return key.partition(".")[0]


def _part(key: str) -> str:
    return key.partition(".")[2].replace("_", " ").replace(".", " ") or "tensor"


def _short(value: object) -> str:
    """A value of whatever kind in a message."""
    if isinstance(value, str | int | float | bool | None):
        try:
            return f"{value!r:.40}"
        except ValueError:  # a number of thousands of digits
            pass
    return f"a {type(value).__name__}"
