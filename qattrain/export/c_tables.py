"""What differs from model to model in model.c: types, sizes and tables, as C text.

Types are the smallest that hold the values of all layers. A multiplier and its shift lose the factors of two they share
(down to a shift of 1): (sum m + 2^(k-1)) >> k stays the same number, and the multipliers of `pow2` become 1.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError
from qattrain.export.c_kernels_int8 import CONV_ROWS, LINEAR_ROWS
from qattrain.integer import INT32_MAX, IntegerLayer, IntegerModel, pack_codes

ALIGN = 32  # bytes; of rows in layout int8: one 256-bit vector
SIDE = 5  # of the kernels
SIDE2 = 4  # of the map behind conv2
LINE = 116  # characters of numbers in a line
BYTES = {f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32)}

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Arena:
    """All static memory of model.c. fields: C type, name, count, comment; none needs a gap before it."""

    fields: tuple[tuple[str, str, int, str], ...]
    attribute: str = ""

    @property
    def total_bytes(self) -> int:
        widest = max(BYTES[ctype] for ctype, *_ in self.fields)
        total = sum(BYTES[ctype] * count for ctype, _, count, _ in self.fields)
        return _multiple(total, widest)  # a struct ends where the next one could begin

    @property
    def text(self) -> str:
        lines = "".join(
            f"    {f'{ctype} {name}[{count}];':<28}/* {comment} */\n" for ctype, name, count, comment in self.fields
        )
        return (
            "\n/* All memory that is written to. Every layer reads even and writes odd, or the other way round. */\n"
            f"static struct {{\n{lines}}} arena{self.attribute};\n\n"
            "/* Refuses to compile where the arena has another size than model.h says. */\n"
            "typedef char arena_has_the_stated_size[sizeof arena == QATTRAIN_ARENA_BYTES ? 1 : -1];\n"
        )


def arena_of(model: IntegerModel, layout: str) -> Arena:
    """The static memory of a layout."""
    conv1, conv2, fc1, fc2 = model.layers
    map1, map2, features = 12 * 12 * len(conv1.codes), SIDE2 * SIDE2 * len(conv2.codes), len(fc1.codes)
    if layout == "packed":
        longest = max(layer.codes[0].size for layer in model.layers)
        row = (_weight_type(model), "row", longest, "the weights of one output channel, unpacked")
        return Arena((row, *_maps(max(map1, features), map2)))
    rows = max(_multiple(len(layer.codes), LINEAR_ROWS) for layer in model.layers)
    sums = ("int32_t", "sums", rows, "of one pixel, or of a fully connected layer")
    stride = max(_stride(conv1), _stride(conv2))
    patches = ("uint8_t", "patches", 4 * stride, "what lies under the kernel at the four positions of a window")
    maps = _maps(_multiple(max(map1, _stride(fc2)), ALIGN), _stride(fc1))
    return Arena((sums, patches, *maps), " ALIGNED")  # every field at a multiple of ALIGN


def _maps(even: int, odd: int) -> tuple[tuple[str, str, int, str], ...]:
    notes = ("what conv1, later fc1 computed", "what conv2 computed")
    return ("uint8_t", "even", even, notes[0]), ("uint8_t", "odd", odd, notes[1])


def types(model: IntegerModel, layout: str) -> str:
    """Typedefs of weights as unpacked, biases and multipliers, and what else the kernels ask of the numbers."""
    bias, multiplier = _channel_types(model)
    if layout == "packed":
        own = f"typedef {_weight_type(model)} weight_t;\n"
    else:
        fit = two_products_fit_16_bits(model)
        own = f"#define TWO_PRODUCTS_FIT_16_BITS {fit:d} /* of inputs and weights, added */\n"
    return (
        f"\n#define KERNEL {SIDE} /* rows and columns of a convolution's kernel */\n\n"
        "/* The smallest types that hold the numbers below. */\n"
        f"{own}typedef {bias} bias_t;\ntypedef {multiplier} multiplier_t;\n"
    )


def tables(model: IntegerModel, layout: str) -> Iterator[str]:
    """Arrays and `struct layer` of every layer. Raises ExportError where a sum could leave int32."""
    for layer in model.layers:
        shape = " x ".join(map(str, layer.codes.shape))
        zero = f", zero point {layer.zero_point}" if layer.zero_point else ""
        yield f"\n/* {layer.name}: {shape} weights, {layer.quantizer}, {layer.bits} bits{zero} */\n"
        fields: dict[str, Any]
        if layout == "packed":
            packed = pack_codes(ordered_rows(layer, layer.numbers), layer.bits, 0)
            yield _array("uint8_t", f"{layer.name}_codes", (f"0x{value:02x}" for value in packed.tolist()))
            fields = {"codes": f"{layer.name}_codes"}
            own = {"bits": layer.bits, "step": layer.grid.step, "lowest": layer.grid.start - layer.zero_point}
        else:
            rows, step, rest = int8_rows(layer)
            yield _array("int8_t", f"{layer.name}_weights", map(str, rows.ravel().tolist()), "ALIGNED ")
            fields = {"weights": f"{layer.name}_weights"}
            own = {"stride": rows.shape[1], "step": step, "rest": rest}
        yield _array("bias_t", f"{layer.name}_bias", map(str, layer.bias.tolist()))
        fields["bias"] = f"{layer.name}_bias"
        pair = reduced(layer)
        if pair is not None and layer.requantization is not None:
            suffix = "u" if int(pair[0].max()) > 2**15 - 1 else ""
            yield _array("multiplier_t", f"{layer.name}_multiplier", (f"{m}{suffix}" for m in pair[0].tolist()))
            yield _array("uint8_t", f"{layer.name}_shift", map(str, pair[1].tolist()))
            fields |= {"multiplier": f"{layer.name}_multiplier", "shift": f"{layer.name}_shift"}
            own["largest"] = layer.requantization.qmax
        fields |= {"inputs": layer.codes[0].size, "outputs": len(layer.codes)} | own
        text = "".join(f"    .{name} = {value},\n" for name, value in fields.items())
        yield f"static const struct layer {layer.name} = {{\n{text}}};\n"


def ordered_rows(layer: IntegerLayer, codes: IntArray) -> IntArray:
    """codes, as in the layer -> (D, inputs) in the order in which maps are stored: row, column, channel.

    fc1's inputs are conv2's map, flattened channel by channel in the IntegerModel.
    """
    if layer.kind == "conv":
        return codes.transpose(0, 2, 3, 1).reshape(len(codes), -1)
    if layer.name != "fc1":
        return codes
    return codes.reshape(len(codes), -1, SIDE2, SIDE2).transpose(0, 2, 3, 1).reshape(len(codes), -1)


def int8_rows(layer: IntegerLayer) -> tuple[IntArray, int, int]:
    """Rows of bytes (D or more, stride), and (step, rest) with q_w - z_w = step * byte + rest. Raises ExportError.

    Affine weights of 8 bits can be -255 .. 255 away from their zero point: then rest is not 0, and the kernel adds
    rest times the sum of the inputs. That takes room in int32 beyond the layer's own bound. The odd numbers of 8 bits
    span more than a byte by themselves: then step is 2, and rest 1.
    """
    low, high = int(layer.codes.min()), int(layer.codes.max())
    step = 1 if high - low <= 255 else layer.grid.step
    center = int(np.clip(layer.zero_point, high - 127 * step, low + 128 * step))
    center += (low - center) % step
    rest = center - layer.zero_point
    rows = ordered_rows(layer, (layer.codes - center) // step)
    sums = step * np.abs(rows).sum(1) + abs(rest) * rows.shape[1]
    bound = int((sums * layer.input_max + np.abs(layer.bias)).max())
    if bound > INT32_MAX:
        raise ExportError(f"{layer.name}: a sum in layout int8 could reach {bound}, beyond int32; use layout packed")
    return np.pad(rows, ((0, _rows(layer) - len(rows)), (0, _stride(layer) - rows.shape[1]))), step, rest


def two_products_fit_16_bits(model: IntegerModel) -> bool:
    """Whether layout int8 may add two neighbouring products of any row in 16 bits."""
    return all(2 * int(np.abs(int8_rows(layer)[0]).max()) * layer.input_max < 2**15 for layer in model.layers)


def reduced(layer: IntegerLayer) -> tuple[IntArray, IntArray] | None:
    """Multipliers and shifts without the factors of two they share; None for the last layer."""
    if layer.requantization is None:
        return None
    m, k = layer.requantization.multiplier, layer.requantization.shift
    twos = np.where(m == 0, 62, np.log2(np.maximum(m & -m, 1))).astype(np.int64)  # m & -m: its largest power of two
    common = np.minimum(twos, k - 1)
    return m >> common, k - common


def weight_bytes(layer: IntegerLayer, layout: str) -> int:
    """Bytes of a layer's weights in model.c."""
    if layout == "packed":
        return math.ceil(layer.codes.size * layer.bits / 8)
    return _rows(layer) * _stride(layer)


def channel_bytes(model: IntegerModel) -> int:
    """Bytes of all biases, multipliers and shifts in model.c."""
    bias, multiplier = (BYTES[name] for name in _channel_types(model))
    return sum(len(layer.codes) * (bias + (multiplier + 1 if layer.requantization else 0)) for layer in model.layers)


def _stride(layer: IntegerLayer) -> int:
    return _multiple(int(layer.codes[0].size), ALIGN)


def _rows(layer: IntegerLayer) -> int:
    """Rows in layout int8."""
    return _multiple(len(layer.codes), CONV_ROWS if layer.kind == "conv" else LINEAR_ROWS)


def _multiple(count: int, of: int) -> int:
    return math.ceil(count / of) * of


def _channel_types(model: IntegerModel) -> tuple[str, str]:
    biases = np.concatenate([layer.bias for layer in model.layers])
    multipliers = np.concatenate([pair[0] for pair in map(reduced, model.layers) if pair])
    return _smallest_type(biases), _smallest_type(multipliers, "u")


def _weight_type(model: IntegerModel) -> str:
    return _smallest_type(np.concatenate([layer.centered.ravel() for layer in model.layers]))


def _smallest_type(values: IntArray, sign: str = "") -> str:
    low, high = int(values.min()), int(values.max())
    for bits in (8, 16):
        limits = np.iinfo(f"{sign}int{bits}")
        if int(limits.min) <= low and high <= int(limits.max):
            return f"{sign}int{bits}_t"
    return f"{sign}int32_t"


def _array(ctype: str, name: str, values: Iterable[str], attribute: str = "") -> str:
    texts = list(values)
    each = LINE // (max(map(len, texts)) + 2)
    lines = (", ".join(texts[start : start + each]) for start in range(0, len(texts), each))
    return f"static const {attribute}{ctype} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(lines) + "\n};\n"
