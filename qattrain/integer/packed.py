"""Bit packing, and the packed file: all integers of a network in one `model.safetensors`, weights at their own bits.

Tensors <layer>.weight (uint8: the packed codes), .bias, and for hidden layers .multiplier and .shift, each in the
smallest type that holds it. One metadata key, "qattrain": JSON with the version, each layer's shape, bits and
quantizer, `logit_scale`, the facts, and a SHA-256 over all that and over names, types, shapes and bytes of the tensors.

A weight's code is `lowest + step * stored`: step 2 at one bit and for `dorefa`, where codes are odd numbers, else 1.
Any safetensors reader can read it. Left out: real weights, scales, training.

Bit order: code i takes the bits i*b .. i*b + b - 1 of the stream, its least significant bit first; bit j of the stream
is bit j % 8 of byte j // 8, counted from the least significant. So two 4-bit codes share a byte, the first in its low
half. What is stored is the index of the code in its grid, from 0; the last byte is padded with zeros.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from qattrain.config import StrictModel
from qattrain.errors import CheckpointError, system_errors
from qattrain.integer.model import INT32_MAX, IntegerLayer, IntegerModel, Requantization, weight_grid

FORMAT_VERSION = 1
FILE_NAME = "model.safetensors"
KEY = "qattrain"  # of the metadata
IMAGE_MAX = 255

Tensors = dict[str, NDArray[Any]]
Bits = Annotated[int, Field(ge=1, le=8)]
Count = Annotated[int, Field(ge=1)]


def pack_codes(codes: NDArray[np.int64], bits: int, lowest: int) -> NDArray[np.uint8]:
    """codes: any shape, lowest .. lowest + 2^bits - 1, taken in C order -> uint8 (ceil(codes.size * bits / 8),)."""
    offsets = codes.reshape(-1).astype(np.int64) - lowest
    assert offsets.size == 0 or 0 <= offsets.min() <= offsets.max() < 2**bits, (offsets.min(), offsets.max(), bits)
    stream = (offsets[:, None] >> np.arange(bits)) & 1  # (codes, bits)
    return np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, lowest: int, count: int) -> NDArray[np.int64]:
    """The first `count` codes of what `pack_codes` returned: int64 (count,)."""
    stream = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits).astype(np.int64)
    codes: NDArray[np.int64] = (stream << np.arange(bits)).sum(1) + lowest
    return codes


@dataclass(frozen=True)
class ModelFacts:
    """What the integers do not contain, for the files' documentation.

    test_accuracy: a fraction, as recorded by the run, or None if unknown.
    """

    name: str
    dataset: str
    class_names: tuple[str, ...]
    test_accuracy: float | None


class LayerHeader(StrictModel):
    """A layer without its tensors. activation_bits: of its output codes; None for the last layer."""

    name: str
    shape: tuple[Count, Count] | tuple[Count, Count, Count, Count]
    bits: Bits
    quantizer: str
    lowest: Annotated[int, Field(ge=-255, le=0)]
    zero_point: Annotated[int, Field(ge=0, le=255)]
    activation_bits: Bits | None

    @property
    def step(self) -> int:
        return weight_grid(self.lowest, self.bits).step

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=object))


class Header(StrictModel):
    """Everything in the metadata except the digest, which covers it."""

    format_version: int
    layers: Annotated[tuple[LayerHeader, ...], Field(min_length=1)]
    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    facts: ModelFacts


def write_packed(model: IntegerModel, facts: ModelFacts) -> bytes:
    """The file's content: at most bits / 8 bytes per weight, 9 per channel, and about 3 KiB of names."""
    layers: list[LayerHeader] = []
    tensors: Tensors = {}
    for layer in model.layers:
        entry = LayerHeader(
            name=layer.name,
            shape=layer.codes.shape,
            bits=layer.bits,
            quantizer=layer.quantizer,
            lowest=layer.lowest,
            zero_point=layer.zero_point,
            activation_bits=layer.requantization.bits if layer.requantization else None,
        )
        layers.append(entry)
        tensors[f"{layer.name}.weight"] = pack_codes(layer.numbers, layer.bits, 0)
        tensors[f"{layer.name}.bias"] = _narrowed(layer.bias)
        if layer.requantization:
            tensors[f"{layer.name}.multiplier"] = _narrowed(layer.requantization.multiplier)
            tensors[f"{layer.name}.shift"] = _narrowed(layer.requantization.shift)
    header = Header(format_version=FORMAT_VERSION, layers=tuple(layers), logit_scale=model.logit_scale, facts=facts)
    content: bytes = safetensors.numpy.save(tensors, {KEY: _metadata(header, tensors)})
    return content


def load_packed(source: Path | bytes) -> tuple[IntegerModel, ModelFacts]:
    """The network in a packed file, or in its bytes.

    Raises CheckpointError if it is missing, truncated, altered, foreign, of another version, or inconsistent.
    """
    name = str(source) if isinstance(source, Path) else FILE_NAME
    with system_errors(CheckpointError, f"cannot read the packed file {name}", "give a readable file"):
        data = source.read_bytes() if isinstance(source, Path) else source
    header, tensors = _verified(data, name)
    try:
        layers, input_max = [], IMAGE_MAX
        for layer_header in header.layers:
            layers.append(_layer(layer_header, tensors, input_max))
            input_max = 2 ** (layer_header.activation_bits or 0) - 1
        model = IntegerModel(tuple(layers), header.logit_scale)
        _check(model, header, tensors)
    except (ValueError, KeyError) as error:
        reason = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{name} is not a valid network: {reason}; export it again") from None
    return model, header.facts


def is_packed(path: Path) -> bool:
    """Whether the file is meant to be a packed one, by its name or its first bytes. Raises CheckpointError."""
    with system_errors(CheckpointError, f"cannot read {path}", "give a readable file"), path.open("rb") as file:
        return path.suffix == Path(FILE_NAME).suffix or file.read(9)[8:] == b"{"


def _narrowed(values: NDArray[np.int64]) -> NDArray[Any]:
    extremes = (int(values.min()), int(values.max()))
    types = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)
    return values.astype(next(t for t in types if np.iinfo(t).min <= extremes[0] and extremes[1] <= np.iinfo(t).max))


def _metadata(header: Header, tensors: Tensors) -> str:
    content = header.model_dump()
    digest = hashlib.sha256(json.dumps(content).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(tensor.tobytes())
    return json.dumps(content | {"digest": digest.hexdigest()})


def _verified(data: bytes, name: str) -> tuple[Header, Tensors]:
    """Header and tensors of a file that is exactly as it was written. Raises CheckpointError."""
    length = int.from_bytes(data[:8], "little")
    try:
        tensors = safetensors.numpy.load(data)
        text = json.loads(data[8 : 8 + length])["__metadata__"][KEY]
        content = json.loads(text)
        version, _ = content["format_version"], content.pop("digest")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{name} ({len(data)} bytes) is not a complete packed file of qattrain: it is truncated, altered or from "
            f"another program ({reason[:120]}); give a {FILE_NAME} that qattrain wrote"
        ) from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version!r}; this qattrain reads {FORMAT_VERSION}; use the one that wrote it"
        )
    try:
        header = Header.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{name}: its metadata is not qattrain's: {where}: {first['msg']}") from None
    if text != _metadata(header, tensors):
        raise CheckpointError(f"{name} was altered: its SHA-256 does not match; use a copy that is intact")
    return header, tensors


def _layer(header: LayerHeader, tensors: Tensors, input_max: int) -> IntegerLayer:
    """Raises KeyError or ValueError where tensors and header do not agree."""
    channels = header.shape[0]

    def column(kind: str, low: int, high: int) -> NDArray[np.int64]:
        values = tensors[f"{header.name}.{kind}"]
        _require(values.shape == (channels,) and values.dtype.kind in "iu", f"{header.name}.{kind} has another shape")
        _require(low <= values.min() and values.max() <= high, f"{header.name}.{kind} has values outside {low}..{high}")
        return values.astype(np.int64)

    packed = tensors[f"{header.name}.weight"]
    expected = (-(-header.count * header.bits // 8),)
    _require(packed.dtype == np.uint8 and packed.shape == expected, f"{header.name}.weight has another size")
    stored = unpack_codes(packed, header.bits, 0, header.count).reshape(header.shape)
    requantization = None
    if header.activation_bits is not None:
        columns = column("multiplier", 0, INT32_MAX), column("shift", 1, 62)
        requantization = Requantization(*columns, header.activation_bits)
    return IntegerLayer(
        header.name,
        "conv" if len(header.shape) == 4 else "linear",
        header.lowest + header.step * stored,
        header.bits,
        header.quantizer,
        header.lowest,
        header.zero_point,
        column("bias", -INT32_MAX, INT32_MAX),
        input_max,
        requantization,
    )


def _check(model: IntegerModel, header: Header, tensors: Tensors) -> None:
    """Raises ValueError unless `model` can be run: the digest proves that nothing changed, not that it makes sense."""
    *hidden, last = model.layers
    names = [f"{layer.name}.{kind}" for layer in model.layers for kind in ("weight", "bias")]
    names += [f"{layer.name}.{kind}" for layer in hidden for kind in ("multiplier", "shift")]
    _require(sorted(names) == sorted(tensors), f"tensors {', '.join(sorted(tensors))} for {', '.join(sorted(names))}")
    ends = last.requantization is None and last.kind == "linear"
    _require(ends and all(layer.requantization for layer in hidden), "its last layer does not give logits")
    bounds = {layer.name: layer.accumulator_bound for layer in model.layers}
    _require(max(bounds.values()) <= INT32_MAX, f"an accumulator is beyond int32: {bounds}")
    classes = model.run(np.zeros((1, 1, 28, 28), np.uint8)).shape[1]  # raises ValueError where shapes do not fit
    _require(classes == len(header.facts.class_names), f"{classes} logits for {len(header.facts.class_names)} classes")


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ValueError(problem)
