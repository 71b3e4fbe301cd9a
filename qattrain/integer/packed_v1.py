"""Reads version 1 of the packed file, which had no geometry: every network was a LeNet on images of 1x28x28.

Tensors <layer>.weight, .bias, and for hidden layers .multiplier and .shift, packed as in version 2. Metadata: a list of
layers, `logit_scale`, the facts, and a SHA-256 over all that and over names, types, shapes and bytes of the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config import StrictModel

FORMAT_VERSION = 1
INPUT_SHAPE, POOL = (1, 28, 28), 2  # of every network; convolutions had stride 1 and no padding
TENSORS = {"weight": "weights", "bias": "biases", "multiplier": "multipliers", "shift": "shifts"}

Tensors = Mapping[str, NDArray[Any]]


class LayerHeader(StrictModel):
    """A layer without its tensors. activation_bits: of its output codes; None for the last layer."""

    name: str
    shape: tuple[int, ...]
    bits: int
    quantizer: str
    lowest: int
    zero_point: int
    activation_bits: int | None


class Header(StrictModel):
    """The metadata."""

    format_version: int
    layers: tuple[LayerHeader, ...]
    logit_scale: float
    facts: dict[str, Any]
    digest: str


def upgraded(content: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], dict[str, NDArray[Any]], bool]:
    """Metadata and tensors of the same network in version 2, and whether the digest is right.

    Raises ValidationError for metadata of another form, KeyError or ValueError for tensors that do not fit them.
    """
    header = Header.model_validate_json(json.dumps(content))
    intact = header.digest == _digest(content, tensors)
    layers = []
    parts: dict[str, list[NDArray[Any]]] = {}
    for layer in header.layers:
        entry = layer.model_dump() | ({"pool": POOL} if len(layer.shape) == 4 else {})
        layers.append({name: value for name, value in entry.items() if value is not None})
        for kind in ("weight", "bias", *(() if layer.activation_bits is None else ("multiplier", "shift"))):
            values = tensors[f"{layer.name}.{kind}"]
            if values.ndim != 1 or (kind != "weight" and values.shape != layer.shape[:1]):
                raise ValueError(f"{layer.name}.{kind} has another shape")
            parts.setdefault(TENSORS[kind], []).append(values)
    if len(tensors) != sum(map(len, parts.values())):
        raise ValueError(f"{len(tensors)} tensors for {len(layers)} layers")
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    new = {"digest": "", "format_version": 2, "input_shape": INPUT_SHAPE, "logit_scale": header.logit_scale}
    return header.facts | new | {"layers": layers}, joined, intact


def _digest(content: dict[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps({name: value for name, value in content.items() if name != "digest"}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
