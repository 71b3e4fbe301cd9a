"""Bit packing, and the packed file: all integers of a network in one `model.safetensors`, weights at their own bits.

This is the whole description of the format, version 2. The file is a safetensors file: any reader of those gives its
tensors and its metadata. What it leaves out: real weights, their scales, training. Numbers are little-endian.

**Tensors**, each of one dimension and left out if empty. They hold all layers in order, one after the other:

    weights      uint8            packed codes; every layer starts at a new byte
    biases       smallest type    b_q, one for each output
    multipliers  smallest type    m, one for each output of a hidden layer, 0 .. 2^31 - 1
    shifts       smallest type    k, likewise, 1 .. 62

Smallest type: the first of uint8, int8, uint16, int16, uint32, int32 that holds all numbers. A layer for which `once`
names a tensor has a single number there, which is that of all its outputs. An average has one multiplier and one shift.

**Metadata** have one key, "qattrain". Its value is a JSON object:

    digest          SHA-256, 64 hexadecimal digits, of the whole file with zeros ("0") in the place of these digits,
                    which is where they occur first
    format_version  2
    input_shape     [channels, height, width] of the images, uint8
    logit_scale     the factor from logits to real ones, for loss and probabilities
    name, dataset   the network (a preset, or a chain as in qattrain/config/chain.py), the data it was trained on
    class_names     in the order of the logits; left out if they are "0", "1", ...
    test_accuracy   a fraction; left out if unknown
    layers          a list of objects; the last is a matrix product, and its sums are the logits

A layer is a matrix product, a convolution or an average. What is left out has the value on the right:

    name             of the layer: conv, dw, fc or avg, and a number
    shape            of a product [outputs, inputs], of a convolution [outputs, inputs / groups, rows, columns]
    pixels           of an average, in place of a shape: how many numbers it averages, height * width
    stride, padding  of a convolution: a number, or [vertical, horizontal]                      1 and 0
    groups           of a convolution: output d sees the inputs of group d * groups // outputs  1
    pool             side and stride of the max-pooling after a convolution; drops remainders  1, for none
    bits             1..8, of a weight                                                          as in the layer before
    quantizer        which one made the codes; for information                                  as in the layer before
    lowest           the smallest code the layer's weights can have                             as in the layer before
    zero_point       z_w, the code of the weight 0                                              as before; first 0
    activation_bits  1..8, of the codes that a hidden layer gives; the last layer has none      as in the layer before
    once             list of tensors, without weights, that hold one number for this layer      as before; first []

"As in the layer before" means: as in the nearest earlier layer that says it, an average included.

**A weight** is the code `lowest + step * i`, where i is its index on the grid, of `bits` bits: step is 2 if lowest is
1 - 2^bits (codes are odd numbers), else 1. If lowest is 1 - 2^(bits-1), codes go up to -lowest, else i to 2^bits - 1.
Bits i*b .. i*b + b - 1 of a layer's stream are index i, its least significant bit first, indices in the order of
`shape` (the last dimension fastest); bit j of the stream is bit j % 8 of byte j // 8, counted from the least
significant. So two 4-bit indices share a byte, the first in its low half. The last byte is padded with zeros.

**The logits** are defined by `qattrain.integer.model`, with x = the pixels at first:

    acc = sum (q_w - z_w) x + b_q           padding is x = 0; then the maximum over every pooling window
    acc = sum of x over a channel's map     for an average
    x = clip((acc * m + 2^(k - 1)) >> k, 0, 2^activation_bits - 1)      in 64 bits; not in the last layer

The first product after a map takes it flattened in the order (channel, row, column).

Version 1, which has no geometry and is still read: `packed_v1.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from qattrain.config import StrictModel
from qattrain.config.chain import MOST_WEIGHTS
from qattrain.errors import CheckpointError, ExportError
from qattrain.files import open_regular, read_bounded
from qattrain.files.escapes import visible
from qattrain.integer import packed_v1
from qattrain.integer.model import INT32_MAX, AverageLayer, IntegerLayer, IntegerModel, Requantization, weight_grid

FORMAT_VERSION = 2
FILE_NAME = "model.safetensors"
KEY = "qattrain"  # of the metadata
IMAGE_MAX = 255
NO_DIGEST = "0" * 64
MOST_BYTES = 2 * MOST_WEIGHTS  # of a file: weights of 8 bits, and as much for everything else
MOST_HEADER_BYTES = 2**22
MOST_LAYERS = 1000
LARGEST_SCALE = 2.0**100  # of the logits: their loss stays finite
LARGEST_MAP = 2**24  # numbers in a map of one image with its padding
KNOWN = "versions 1 and 2"
LARGEST_WORKING_SET = 2**27  # numbers copied for one image, see `IntegerLayer.working_set`
RANGES = {"biases": (-INT32_MAX, INT32_MAX), "multipliers": (0, INT32_MAX), "shifts": (1, 62)}
DEFAULTS = {"stride": 1, "padding": 0, "groups": 1, "pool": 1}  # left out where it is this
CARRIED = ("bits", "quantizer", "lowest", "zero_point", "activation_bits", "once")  # left out where it is as before
FIRST: dict[str, Any] = {"zero_point": 0, "once": ()}  # before the first layer

Tensors = Mapping[str, NDArray[Any]]
Bits = Annotated[int, Field(ge=1, le=8)]
Count = Annotated[int, Field(ge=1)]
Padding = Annotated[int, Field(ge=0)]
LONGEST_TEXT = 10_000  # letters of a name
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


def pack_codes(codes: NDArray[np.int64], bits: int, lowest: int) -> NDArray[np.uint8]:
    """codes: any shape, lowest .. lowest + 2^bits - 1, taken in C order -> uint8 (ceil(codes.size * bits / 8),)."""
    offsets = codes.reshape(-1).astype(np.int64) - lowest
    assert offsets.size == 0 or 0 <= offsets.min() <= offsets.max() < 2**bits, (offsets.min(), offsets.max(), bits)
    stream = (offsets[:, None] >> np.arange(bits)) & 1  # (codes, bits)
    return np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, lowest: int, count: int) -> NDArray[np.int64]:
    """The first `count` codes of what `pack_codes` returned: int64 (count,)."""
    stream = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes = np.full(count, lowest, np.int64)
    for bit in range(bits):  # one after the other: all at once would take 64 bytes for each bit
        codes += stream[:, bit].astype(np.int64) << bit
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
    """A layer without its tensors, as written: what is left out is None, or has the geometry's default."""

    name: Annotated[str, Field(pattern=r"^(conv|dw|fc|avg)[0-9]{1,4}$")]  # an identifier in the exported C
    shape: tuple[Count, Count] | tuple[Count, Count, Count, Count] | None = None
    pixels: Count | None = None
    stride: Count | tuple[Count, Count] = 1
    padding: Padding | tuple[Padding, Padding] = 0
    groups: Count = 1
    pool: Count = 1
    bits: Bits | None = None
    quantizer: Annotated[str, Field(pattern=r"^\w{0,100}$")] | None = None
    lowest: Annotated[int, Field(ge=-255, le=0)] | None = None
    zero_point: Annotated[int, Field(ge=0, le=255)] | None = None
    activation_bits: Bits | None = None
    once: tuple[Literal["biases", "multipliers", "shifts"], ...] | None = None

    @property
    def kind(self) -> str:
        """As in IntegerLayer and AverageLayer."""
        return "average" if self.shape is None else "conv" if len(self.shape) == 4 else "linear"


class Header(StrictModel):
    """The metadata."""

    digest: str
    format_version: Literal[2]
    input_shape: tuple[Count, Count, Count]
    logit_scale: Annotated[float, Field(gt=0, le=LARGEST_SCALE, allow_inf_nan=False)]
    name: Text
    dataset: Text
    class_names: tuple[Text, ...] | None = None
    test_accuracy: Annotated[float, Field(allow_inf_nan=False)] | None = None
    layers: Annotated[tuple[LayerHeader, ...], Field(min_length=1, max_length=MOST_LAYERS)]


def write_packed(model: IntegerModel, facts: ModelFacts) -> bytes:
    """The file's content. Raises ExportError for what no reader takes: maps or networks that are too large."""
    try:
        _check_maps(model)
    except ValueError as error:
        raise ExportError(f"{error}; use smaller images, or larger strides") from None
    weights = sum(layer.codes.size for layer in model.products)
    if len(model.layers) > MOST_LAYERS or weights > MOST_WEIGHTS:
        raise ExportError(
            f"{len(model.layers):,} layers with {weights:,} weights; allowed: {MOST_LAYERS:,} with {MOST_WEIGHTS:,}; "
            "use a smaller network"
        )
    layers: list[dict[str, Any]] = []
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("weights", *RANGES)}
    before = dict(FIRST)
    for layer in model.layers:
        columns, carried = _columns(layer), {}
        entry: dict[str, Any] = {"name": layer.name}
        if isinstance(layer, AverageLayer):
            entry["pixels"] = layer.pixels
        else:
            parts["weights"].append(pack_codes(layer.numbers, layer.bits, 0))
            entry["shape"] = layer.codes.shape
            geometry = {name: _shortest(getattr(layer, name)) for name in DEFAULTS}
            entry |= {name: value for name, value in geometry.items() if value != DEFAULTS[name]}
            carried = {name: getattr(layer, name) for name in ("bits", "quantizer", "lowest", "zero_point")}
            equal = {name: (values == values[0]).all() for name, values in columns.items()}
            carried["once"] = tuple(name for name in RANGES if equal.get(name, name in before["once"]))
            columns = {name: values[:1] if equal[name] else values for name, values in columns.items()}
        if layer.requantization is not None:
            carried["activation_bits"] = layer.requantization.bits
        layers.append(entry | {name: value for name, value in carried.items() if before.get(name) != value})
        before |= carried
        for name, values in columns.items():
            parts[name].append(values)
    numbers = tuple(map(str, range(model.classes)))
    content = {
        "digest": NO_DIGEST,
        "format_version": FORMAT_VERSION,
        "input_shape": model.input_shape,
        "logit_scale": model.logit_scale,
        # Half a surrogate pair, in the name of a folder of another encoding, cannot be written.
        "name": _written(facts.name),
        "dataset": _written(facts.dataset),
        "class_names": None if facts.class_names == numbers else tuple(map(_written, facts.class_names)),
        "test_accuracy": facts.test_accuracy,
        "layers": layers,
    }
    tensors = {name: _narrowed(np.concatenate(arrays)) for name, arrays in parts.items() if arrays}
    data = _signed({name: value for name, value in content.items() if value is not None}, tensors)
    texts = (facts.name, facts.dataset, *facts.class_names)
    if int.from_bytes(data[:8], "little") > MOST_HEADER_BYTES or max(map(len, texts)) > LONGEST_TEXT:
        raise ExportError(
            f"its names have {sum(map(len, texts)):,} letters; allowed: {LONGEST_TEXT:,} each, and "
            f"{MOST_HEADER_BYTES:,} bytes in all; give shorter ones"
        )
    return data


def _written(text: str) -> str:
    return "".join(visible(each) if "\ud800" <= each <= "\udfff" else each for each in text)


def load_packed(source: Path | bytes) -> tuple[IntegerModel, ModelFacts]:
    """The network in a packed file, or in its bytes.

    Raises CheckpointError if it is missing, truncated, altered, foreign, of a newer version, or inconsistent.
    """
    name = str(source) if isinstance(source, Path) else FILE_NAME
    data = source
    if isinstance(data, Path):
        data = read_bounded(data, MOST_BYTES, CheckpointError, f"the packed file {name}", f"give a {FILE_NAME} of ours")
    content, tensors = _read(data, name)
    try:
        if content["format_version"] == packed_v1.FORMAT_VERSION:
            content, tensors, intact = packed_v1.upgraded(content, tensors)
            header = Header.model_validate_json(json.dumps(content))
        else:
            header = Header.model_validate_json(json.dumps(content))
            intact = header.digest == _digest(data, header.digest)
        if not intact:
            raise CheckpointError(f"{name} was altered: its SHA-256 does not match; use a copy that is intact")
        model = _network(header, tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{name}: its metadata is not qattrain's: {where}: {first['msg']}") from None
    except (ValueError, KeyError, OverflowError, RecursionError) as error:
        reason = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{name} is not a valid network: {reason[:300]}; export it again") from None
    names = header.class_names or tuple(map(str, range(model.classes)))
    return model, ModelFacts(header.name, header.dataset, names, header.test_accuracy)


def is_packed(path: Path) -> bool:
    """Whether the file is meant to be a packed one, by its name or its first bytes. Raises CheckpointError."""
    with open_regular(path, CheckpointError, str(path), "give a file that qattrain wrote") as file:
        return path.suffix == Path(FILE_NAME).suffix or file.read(9)[8:] == b"{"


def _columns(layer: IntegerLayer | AverageLayer) -> dict[str, NDArray[np.int64]]:
    columns = {"biases": layer.bias} if isinstance(layer, IntegerLayer) else {}
    how = layer.requantization
    return columns if how is None else columns | {"multipliers": how.multiplier, "shifts": how.shift}


def _shortest(value: int | tuple[int, int]) -> int | tuple[int, int]:
    return value[0] if isinstance(value, tuple) and value[0] == value[1] else value


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _narrowed(values: NDArray[Any]) -> NDArray[Any]:
    extremes = (int(values.min()), int(values.max()))
    types = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)
    return values.astype(next(t for t in types if np.iinfo(t).min <= extremes[0] and extremes[1] <= np.iinfo(t).max))


def _signed(content: dict[str, Any], tensors: Tensors) -> bytes:
    """The file of these metadata and tensors, with its digest, which comes first in `content` and is all zeros."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    data: bytes = safetensors.numpy.save(dict(tensors), {KEY: text})
    return data.replace(NO_DIGEST.encode(), _digest(data, NO_DIGEST).encode(), 1)


def _digest(data: bytes, digest: str) -> str:
    """SHA-256 of a file in which the first `digest` is replaced by zeros."""
    return hashlib.sha256(data.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def _read(data: bytes, name: str) -> tuple[dict[str, Any], Tensors]:
    """Metadata of a known version, and tensors. Raises CheckpointError."""
    length = int.from_bytes(data[:8], "little")
    if MOST_HEADER_BYTES < length <= len(data):
        raise CheckpointError(
            f"{name}: its metadata have {length:,} bytes; allowed: {MOST_HEADER_BYTES:,}; export it again"
        )
    try:
        tensors = safetensors.numpy.load(data)
        content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        version, _ = content["format_version"], content["digest"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{name} ({len(data)} bytes) is not a complete packed file of qattrain: it is truncated, altered or from "
            f"another program ({reason[:120]}); give a {FILE_NAME} that qattrain wrote"
        ) from None
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version}, newer than this qattrain, which reads {KNOWN}; update qattrain"
        )
    if type(version) is not int or version < packed_v1.FORMAT_VERSION:
        raise CheckpointError(f"{name} has format version {version!r}; this qattrain reads {KNOWN}; export it again")
    return content, tensors


def _network(header: Header, tensors: Tensors) -> IntegerModel:
    """Raises KeyError or ValueError where the header makes no sense, or the tensors do not agree with it."""
    layers = _resolved(header.layers)
    _require(len({layer.name for layer in layers}) == len(layers), "two layers have the same name")
    weights = sum(prod(layer.shape) for layer in layers if layer.shape is not None)
    counts = [_counts(layer) for layer in layers]
    totals = {name: sum(count.get(name, 0) for count in counts) for name in ("weights", *RANGES)}
    expected = [name for name, total in totals.items() if total]
    _require(set(tensors) <= set(expected), f"tensors {', '.join(sorted(tensors))} for {', '.join(expected)}")
    parts = {}
    for name in expected:
        values = tensors[name]
        _require(values.shape == (totals[name],), f"{name} has shape {values.shape}, not ({totals[name]},)")
        _require(weights <= MOST_WEIGHTS, f"it has {weights} weights; allowed: {MOST_WEIGHTS}")
        _require(values.dtype == np.uint8 or (name in RANGES and values.dtype.kind in "iu"), f"{name}: {values.dtype}")
        low, high = RANGES.get(name, (0, IMAGE_MAX))
        _require(low <= values.min() and values.max() <= high, f"{name} has values outside {low}..{high}")
        parts[name] = np.split(values, np.cumsum([count.get(name, 0) for count in counts])[:-1])
    built: list[IntegerLayer | AverageLayer] = []
    input_max = IMAGE_MAX
    for i, layer in enumerate(layers):
        built.append(_layer(layer, {name: parts[name][i] for name in counts[i]}, input_max))
        input_max = 2 ** (layer.activation_bits or 0) - 1
    model = IntegerModel(tuple(built), header.logit_scale, header.input_shape)
    _check_maps(model)
    bounds = {layer.name: layer.accumulator_bound for layer in built}
    _require(max(bounds.values()) <= INT32_MAX, f"an accumulator is beyond int32: {bounds}")
    classes = model.classes if header.class_names is None else len(header.class_names)
    _require(classes == model.classes, f"{model.classes} logits for {classes} classes")
    return model


def _resolved(entries: tuple[LayerHeader, ...]) -> list[LayerHeader]:
    """The layers with what they take over from those before them. Raises ValueError."""
    layers, carried = [], dict(FIRST)
    for entry in entries:
        carried |= {name: getattr(entry, name) for name in CARRIED if getattr(entry, name) is not None}
        layer = entry.model_copy(update=carried | ({"activation_bits": None} if entry is entries[-1] else {}))
        _require((layer.shape is None) != (layer.pixels is None), f"{layer.name} needs a shape or pixels")
        plain = all(getattr(layer, name) == value for name, value in DEFAULTS.items())
        _require(layer.kind == "conv" or plain, f"{layer.name} is no convolution, but has {', '.join(DEFAULTS)}")
        needed = () if layer.kind == "average" else ("bits", "quantizer", "lowest")
        for name in (*needed, *(() if entry is entries[-1] else ("activation_bits",))):
            _require(getattr(layer, name) is not None, f"{layer.name} has no {name}")
        layers.append(layer)
    kinds = [layer.kind for layer in layers]
    _require(kinds[-1] == "linear" and entries[-1].activation_bits is None, "its last layer does not give logits")
    _require(set(kinds[kinds.index("linear") :]) == {"linear"}, "a layer that needs a map comes after a matrix product")
    return layers


def _counts(layer: LayerHeader) -> dict[str, int]:
    """How many numbers each tensor has for this layer."""
    if layer.shape is None:
        return {"multipliers": 1, "shifts": 1}
    assert layer.bits is not None
    assert layer.once is not None
    columns = ("biases",) if layer.activation_bits is None else tuple(RANGES)
    bits = prod(layer.shape) * layer.bits
    return {"weights": -(-bits // 8)} | {name: 1 if name in layer.once else layer.shape[0] for name in columns}


def _layer(header: LayerHeader, parts: Tensors, input_max: int) -> IntegerLayer | AverageLayer:
    """Raises ValueError for a code that is not on the grid. parts: the layer's part of every tensor."""
    outputs = 1 if header.shape is None else header.shape[0]
    columns = {name: np.resize(parts[name].astype(np.int64), outputs) for name in parts if name in RANGES}
    how = None
    if header.activation_bits is not None:
        how = Requantization(columns["multipliers"], columns["shifts"], header.activation_bits)
    if header.shape is None:
        assert header.pixels is not None
        assert how is not None
        return AverageLayer(header.name, header.pixels, input_max, how)
    assert header.bits is not None
    assert header.quantizer is not None
    assert header.lowest is not None
    assert header.zero_point is not None
    grid = weight_grid(header.lowest, header.bits)
    codes = grid.start + grid.step * unpack_codes(parts["weights"], header.bits, 0, prod(header.shape))
    _require(int(codes.max()) <= grid[-1], f"{header.name} has weights beyond {grid[-1]}")
    return IntegerLayer(
        header.name,
        "conv" if len(header.shape) == 4 else "linear",
        codes.reshape(header.shape),
        header.bits,
        header.quantizer,
        header.lowest,
        header.zero_point,
        columns["biases"],
        input_max,
        how,
        _pair(header.stride),
        _pair(header.padding),
        header.groups,
        header.pool,
    )


def _check_maps(model: IntegerModel) -> None:
    """Raises ValueError if layers do not fit each other, or if one image would take a gigabyte to compute."""
    for layer, inputs in zip(model.layers, model.shapes, strict=False):
        padding = layer.padding if isinstance(layer, IntegerLayer) else (0, 0)
        numbers = inputs[0] * (inputs[1] + 2 * padding[0]) * (inputs[2] + 2 * padding[1])
        copied = layer.working_set(inputs)
        fits = numbers <= LARGEST_MAP and copied <= LARGEST_WORKING_SET
        _require(
            fits,
            f"{layer.name} takes {numbers} numbers, {copied} with copies; allowed: {LARGEST_MAP}, "
            f"{LARGEST_WORKING_SET}",
        )


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ValueError(problem)
