"""What differs from network to network in model.c: types, tables, memory, and the calls that run the layers in turn.

Types are the smallest that hold the values of all layers.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qattrain.export.base import fits_16_bits, pixels_first
from qattrain.export.c_layers import (
    ALIGN,
    BUFFERS,
    GEOMETRY,
    LAYOUTS,
    LINEAR_ROWS,
    OF_MAPS,
    CLayer,
    IntArray,
    multiple,
)
from qattrain.integer import AverageLayer, IntegerModel, pack_codes

BLOCK = 2**14  # bytes of weights that the vector functions of layout packed unpack at once, if eight rows are fewer
BYTES = {f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32)} | {"struct tap": 8}


@dataclass(frozen=True)
class Table:
    """A layer's constants in model.c. arrays: field, C type, numbers. initializer: the lines of its struct."""

    name: str
    note: str
    struct: str
    arrays: tuple[tuple[str, str, list[Any]], ...]
    initializer: tuple[str, ...]


@dataclass(frozen=True)
class Arena:
    """All memory that model.c writes to. fields: C type, name, count, comment; none needs padding before it."""

    fields: tuple[tuple[str, str, int, str], ...]

    @property
    def align(self) -> int:
        """Bytes."""
        return max(min(BYTES[ctype], 4) for ctype, *_ in self.fields)

    @property
    def total_bytes(self) -> int:
        total = sum(BYTES[ctype] * count for ctype, _, count, _ in self.fields)
        return multiple(total, self.align)  # a struct ends where the next one could begin


@dataclass(frozen=True, eq=False)
class CNetwork:
    """A model in one layout."""

    model: IntegerModel
    layout: str

    @cached_property
    def layers(self) -> list[CLayer]:
        assert self.layout in LAYOUTS, self.layout
        shapes = self.model.shapes
        return [CLayer(layer, self.layout, shapes[i], i) for i, layer in enumerate(self.model.layers)]

    @cached_property
    def products(self) -> list[CLayer]:
        return [layer for layer in self.layers if layer.form != "average"]

    @property
    def convolutions(self) -> list[CLayer]:
        return [layer for layer in self.products if layer.layer.kind == "conv"]

    @property
    def kernels(self) -> tuple[str, ...]:
        """The files of C it needs, each once; what a file uses comes before it."""
        own = [kernel for layer in self.layers for kernel in layer.kernels]
        layout = ("packed.c", "packed_vectors.c") if self.layout == "packed" else ("int8.c",)
        return tuple(dict.fromkeys(("requantize.c", "sums.c", "vectors.c", *layout, *own)))

    @property
    def depthwise(self) -> list[CLayer]:
        return [layer for layer in self.convolutions if layer.depthwise]

    @property
    def taps(self) -> int:
        """How many taps the arena has room for."""
        count = max((layer.taps for layer in self.convolutions), default=0)
        return count if self.layout == "packed" else multiple(count, ALIGN // BYTES["struct tap"])

    @property
    def row(self) -> int:
        """How many unpacked weights the arena of layout packed has room for."""
        rows = [layer.row_length * (1 + layer.pairs) for layer in self.convolutions if layer.needs_row]
        return max(rows, default=0)

    @property
    def row_in_taps(self) -> bool:
        """Whether they are in the memory of the taps, which C allows for bytes."""
        return self.layout == "packed" and self.taps > 0 and self.weight_type == "int8_t"

    @property
    def depthwise_in_16_bits(self) -> bool:
        """Whether all depthwise layers compute two windows at a time."""
        return all(layer.joins_rows for layer in self.depthwise)

    @property
    def calls(self) -> list[str]:
        row = "(weight_t *)arena->taps" if self.row_in_taps else "arena->row"
        lines = [line for layer in self.layers for line in layer.call(layer is self.layers[-1], row)]
        return lines if any("arena->" in line for line in lines) else [*lines, "(void)arena;"]

    @property
    def weight_type(self) -> str:
        return _smallest_type(np.concatenate([layer.product.centered.ravel() for layer in self.products]))

    @cached_property
    def channel_types(self) -> tuple[str, str]:
        """The types of biases and of multipliers."""
        biases = np.concatenate([layer.product.bias for layer in self.products])
        scalings = [layer.scaling for layer in self.products]
        multipliers = [how.multiplier for how in scalings if how] or [np.zeros(1, np.int64)]
        return _smallest_type(biases), _smallest_type(np.concatenate(multipliers), "u")

    @property
    def wide_products(self) -> int:
        """Bits of the products that turn sums into codes: 48, in two halves, or 64; 0 if 32 are enough."""
        wide = [layer.scaling for layer in self.layers if layer.scaling is not None and layer.scaling.wide]
        return (48 if all(how.in_halves for how in wide) else 64) if wide else 0

    @property
    def count_type(self) -> str:
        """The type of numbers of inputs and outputs."""
        return _smallest_type(np.array([(layer.stride, len(layer.product.codes)) for layer in self.products]), "u")

    @property
    def side_type(self) -> str:
        """The type of what describes a convolution; "" if there is none."""
        values = [value for layer in self.convolutions for value in layer.geometry.values()]
        return _smallest_type(np.array(values), "u") if values else ""

    @cached_property
    def shared(self) -> dict[str, int]:
        """The fields of GEOMETRY that all convolutions have in common, those of maps left out: constants in model.c."""
        shared = {}
        for name in GEOMETRY:
            users = [layer for layer in self.convolutions if name != "pairs" or layer.needs_row]
            values = {layer.geometry[name] for layer in users}
            if name not in OF_MAPS and len(values) == 1:
                shared[name] = values.pop()
        return shared

    @property
    def channel_bytes(self) -> int:
        """Bytes of all biases, multipliers and shifts in model.c."""
        bias, multiplier = (BYTES[name] for name in self.channel_types)
        scalings = [layer.scaling for layer in self.layers]
        multipliers = sum(how.multiplier.size * multiplier + how.shift.size for how in scalings if how)
        averages = len(self.layers) - len(self.products)  # their only multiplier has 32 bits
        return multipliers + (4 - multiplier) * averages + sum(len(each.product.bias) for each in self.products) * bias

    @property
    def weights(self) -> int:
        return sum(layer.product.codes.size for layer in self.products)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.layer.macs(layer.inputs) for layer in self.layers)

    @property
    def two_products_fit_16_bits(self) -> bool:
        """Whether vector instructions may add two neighbouring products of any row in 16 bits."""
        rows = [layer for layer in self.products if layer.form in ("packed", "rows")]
        return all(fits_16_bits(each.largest_byte, each.product.input_max) for each in rows)

    @property
    def vector_room(self) -> tuple[tuple[str, int, str], ...]:
        """What the vector functions of layout packed have on the stack: constant, bytes, comment."""
        inputs = [layer.stride for layer in self.products if layer.layer.kind == "linear"]
        windows = [layer.stride for layer in self.convolutions]
        room = [("LONGEST_INPUT", max(inputs), "of a fully connected layer, in whole vectors")]
        if windows:
            room.append(("LONGEST_WINDOW", max(windows), "of a convolution, in whole vectors"))
            room.append(("BLOCK", max(BLOCK, LINEAR_ROWS * max(windows)), "bytes of weights unpacked at a time"))
        return tuple(room)

    @property
    def plain_bytes(self) -> bool:
        """Whether the bytes of layout int8 are the weights themselves."""
        return all(layer.int8_codes[1:] == (1, 0) for layer in self.products)

    @property
    def arena(self) -> Arena:
        buffers = [0, 0]
        for layer in self.layers[:-1]:
            buffers[layer.number % 2] = max(buffers[layer.number % 2], math.prod(layer.outputs))
        own: list[tuple[str, str, int, str]] = []
        if self.layout == "packed":
            if self.row and not self.row_in_taps:
                own = [(self.weight_type, "row", self.row, "the weights of one or two output channels, unpacked")]
        else:
            for layer in self.products:  # whole vectors are read
                if layer.form == "rows" and layer.layer.kind == "linear":
                    buffers[(layer.number - 1) % 2] = max(buffers[(layer.number - 1) % 2], layer.stride)
            buffers = [multiple(count, ALIGN) for count in buffers]  # every field at a multiple of ALIGN
            own = self._int8_fields()
        if self.taps:
            count = max(self.taps, math.ceil(self.row / BYTES["struct tap"]) if self.row_in_taps else 0)
            own = [("struct tap", "taps", count, "the weights of one output channel, or of two"), *own]
        notes = ("the outputs of the first layer, of the third, and so on", "those of the second, of the fourth, ...")
        maps = [("uint8_t", *field) for field in zip(BUFFERS, buffers, notes, strict=True) if field[1]]
        return Arena((*own, *maps) or (("uint8_t", "unused", 1, "nothing: the only layer writes the logits"),))

    def _int8_fields(self) -> list[tuple[str, str, int, str]]:
        sums = max(multiple(layer.rows, LINEAR_ROWS) for layer in self.products)
        fields = [("int32_t", "sums", sums, "of one pixel, or of a fully connected layer")]
        pooled = [layer.rows for layer in self.convolutions if layer.form == "columns" and layer.product.pool > 1]
        if pooled:
            fields.append(("int32_t", "window", multiple(max(pooled), LINEAR_ROWS), "the sums of one window"))
        rows = [layer for layer in self.convolutions if layer.form == "rows"]
        patches = max(((4 if layer.pools_by_four else 1) * layer.stride for layer in rows), default=0)
        if patches:
            fields.append(("uint8_t", "patches", patches, "the pixels under the kernel, at each window that is pooled"))
        return fields

    def table(self, layer: CLayer) -> Table:
        """Raises ExportError where layout int8 cannot hold the layer."""
        if isinstance(layer.layer, AverageLayer):
            return self._average_table(layer, layer.layer)
        product = layer.product
        arrays: list[tuple[str, str, list[Any]]]
        counts = {"inputs": layer.row_length, "outputs": len(product.codes)}
        if self.layout == "packed":
            packed = pack_codes(pixels_first(product, product.numbers, layer.inputs), product.bits, 0)
            arrays = [("codes", "uint8_t", [f"0x{value:02x}" for value in packed.tolist()])]
            step, lowest = product.grid.step, product.grid.start - product.zero_point
            fields = counts | {"bits": product.bits, "step": step, "lowest": lowest}
        else:
            weights, (_, step, rest) = layer.int8_weights, layer.int8_codes
            in_rows = layer.form == "rows"
            arrays = [("weights", "ALIGNED int8_t" if in_rows else "int8_t", weights.ravel().tolist())]
            fields = counts | {"stride": layer.stride if in_rows else 0, "step": step, "rest": rest}
        arrays.append(("bias", "bias_t", product.bias.tolist()))
        pointers = [f"{layer.name}_{field}" for field, *_ in arrays]
        how = layer.scaling
        wide = how is not None and how.wide
        if how:
            arrays.append(("multiplier", "multiplier_t", _unsigned(how.multiplier)))
        pointers.append(f"{layer.name}_multiplier" if how else "0")
        if how and wide:
            arrays.append(("shifts", "uint8_t", how.shift.tolist()))
        if self.wide_products:
            pointers.append(f"{layer.name}_shifts" if wide else "0")
        fields |= {"shift": int(how.shift) if how and not wide else 0}
        fields |= {"largest": product.requantization.qmax if product.requantization else 0}
        lines = [
            *(f"{pointer}," for pointer in pointers),
            *(f"{value}, /* {name} */" for name, value in fields.items()),
        ]
        if product.kind == "conv":
            own = {name: value for name, value in layer.geometry.items() if name not in self.shared}
            geometry = [f"{value}, /* {name} */" for name, value in own.items()]
            lines = ["{", *(f"    {line}" for line in lines), "},", *geometry]
        struct = "convolution" if product.kind == "conv" else "layer"
        note = f"{' x '.join(map(str, product.codes.shape))} weights, {product.quantizer}, {product.bits} bits"
        note += f", zero point {product.zero_point}" if product.zero_point else ""
        return Table(layer.name, note, struct, tuple(arrays), tuple(lines))

    def _average_table(self, layer: CLayer, average: AverageLayer) -> Table:
        how = layer.scaling
        assert how is not None, average
        fields = {"multiplier": _unsigned(how.multiplier)[0], "shift": int(how.shift.max())}
        fields |= {"largest": average.requantization.qmax}
        fields |= {"wide": int(how.wide)} if self.wide_products else {}
        fields |= {"pixels": average.pixels, "channels": layer.inputs[0]}
        lines = tuple(f"{value}, /* {name} */" for name, value in fields.items())
        return Table(layer.name, "the average of every channel", "average", (), lines)


def _unsigned(numbers: IntArray) -> list[str]:
    suffix = "u" if int(numbers.max()) > 2**15 - 1 else ""
    return [f"{number}{suffix}" for number in numbers.tolist()]


def _smallest_type(values: IntArray, sign: str = "") -> str:
    kinds = [np.iinfo(f"{sign}int{bits}") for bits in (8, 16, 32)]
    return next(f"{kind.dtype}_t" for kind in kinds if kind.min <= values.min() and values.max() <= kind.max)
