"""One layer in model.c: how it is computed, its weights as they lie there, its geometry, and the call that runs it.

A form is how a layer is computed, by a kernel in `qattrain/export/c`:

    packed          any product; its weights are unpacked row by row
    rows            int8: each row padded with zeros to whole vectors, several rows multiplied at a time
    columns         int8: without padding, in columns; for groups and for sums of few inputs
    average

Processors without vectors have kernels of their own for the convolutions of either layout, which read the same tables:
`depthwise.c` if every output reads one channel, `convolve_pairs.c` if a window has few inputs, else `convolve.c`.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ExportError
from qattrain.export.base import pixels_first
from qattrain.export.c_requantize import Scaling, scaling
from qattrain.integer import INT32_MAX, AverageLayer, IntegerLayer

LAYOUTS = ("packed", "int8")
ALIGN = 32  # bytes: rows in layout int8 are multiples of one 256-bit vector
WINDOWS = 16  # as in taps.c
MOST_TAPS = 128  # of 8 bytes each: where a window has no more inputs, weights are turned into taps
CONV_ROWS, LINEAR_ROWS = 2, 8  # weight rows that layout int8 multiplies at once, with four inputs or with one
BUFFERS = ("even", "odd")

GEOMETRY = {  # the fields of `struct convolution` after the first
    "rows": "of the map it reads",
    "columns": "and its pixels in a row",
    "depth": "channels that a group reads",
    "output_rows": "of the map it writes, after pooling",
    "output_columns": "and its pixels in a row",
    "kernel_rows": "of the window under the kernel",
    "kernel_columns": "and its pixels in a row",
    "down": "stride: pixels from window to window",
    "right": "and to the side",
    "pad_top": "rows of code 0 above and below the map",
    "pad_left": "columns of them on both sides",
    "pool": "of pool x pool windows the largest sum is kept",
    "groups": "of channels, each convolved by itself",
    "together": "channels that a group writes; 0 without groups",
    "pairs": "1 where two channels are computed at a time: no sum leaves 16 bits",
}
OF_MAPS = tuple(GEOMETRY)[:5]  # fields of the struct in any network; the others are constants where all agree

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CLayer:
    """A layer in one layout. inputs: the shape it reads; number: its place, from 0."""

    layer: IntegerLayer | AverageLayer
    layout: str
    inputs: Shape
    number: int

    @property
    def name(self) -> str:
        assert self.layer.name.isidentifier(), self.layer.name
        return self.layer.name

    @property
    def product(self) -> IntegerLayer:
        assert isinstance(self.layer, IntegerLayer), self.layer
        return self.layer

    @property
    def outputs(self) -> Shape:
        return self.layer.output_shape(self.inputs)

    @property
    def row_length(self) -> int:
        """Inputs of a sum."""
        return int(self.product.codes[0].size)

    @cached_property
    def scaling(self) -> Scaling | None:
        """What turns its sums into codes; None for the last layer."""
        return scaling(self.layer)

    @property
    def stride(self) -> int:
        """Bytes from row to row."""
        return multiple(self.row_length, ALIGN)

    @cached_property
    def form(self) -> str:
        """packed, rows, columns or average; columns where rows would be at least half zeros."""
        if isinstance(self.layer, AverageLayer):
            return "average"
        if self.layout == "packed":
            return "packed"
        return "columns" if self.layer.groups > 1 or 2 * self.row_length <= self.stride else "rows"

    @property
    def pools_by_four(self) -> bool:
        """Whether it is a convolution that multiplies the four windows of a 2x2 maximum at once."""
        return self.form == "rows" and self.layer.kind == "conv" and self.product.pool == 2

    @property
    def pairs(self) -> bool:
        """Whether two channels of a convolution share numbers."""
        layer = self.product
        if layer.kind != "conv" or layer.groups > 1:
            return False
        return self.sums_fit_16_bits and (self.layout == "packed" or self.int8_codes[1:] == (1, 0))

    @property
    def depthwise(self) -> bool:
        """Whether it is a convolution whose outputs read one channel each, with a maximum that depthwise.c can hold."""
        if self.layer.kind != "conv" or self.product.pool > WINDOWS:
            return False
        return self.product.groups > 1 and self.product.codes.shape[1] == 1

    @property
    def taps(self) -> int:
        """How many taps its weights become: the inputs of a window, in a depthwise layer with those of a second one
        below it; 0 for a layer that has none.
        """
        if self.depthwise:
            return self.row_length + self.product.stride[0] * int(self.product.codes.shape[3])
        return self.row_length if self.joins_channels else 0

    @property
    def joins_rows(self) -> bool:
        """Whether two windows of a depthwise layer, one under the other, may share a number of 32 bits.

        The windows must overlap.
        """
        return self.depthwise and self.sums_fit_16_bits and self.product.stride[0] < self.product.codes.shape[2]

    @property
    def joins_channels(self) -> bool:
        """Whether a convolution has so few weights that those of two channels are turned into taps together."""
        layer = self.product
        plain = layer.kind == "conv" and layer.groups == 1 and layer.padding == (0, 0) and layer.pool <= 2
        return plain and self.sums_fit_16_bits and self.row_length <= MOST_TAPS

    @property
    def needs_row(self) -> bool:
        """Whether `convolve.c` computes it, for which layout packed unpacks its weights row by row."""
        return self.layer.kind == "conv" and not self.taps

    @cached_property
    def sums_fit_16_bits(self) -> bool:
        """Whether no sum of any part of a window can leave 16 bits, with the bias or without."""
        layer = self.product
        weights = layer.centered.reshape(len(layer.codes), -1)
        most = weights.clip(0).sum(1) * layer.input_max + layer.bias.clip(0)
        least = weights.clip(None, 0).sum(1) * layer.input_max + layer.bias.clip(None, 0)
        return int(most.max()) < 2**15 and int(least.min()) >= -(2**15)

    @property
    def copies_image(self) -> bool:
        """Whether it reads whole vectors, which may end beyond the caller's image."""
        return self.number == 0 and self.form == "rows" and self.layer.kind == "linear"

    @property
    def rows(self) -> int:
        """Rows of weights in form rows, and sums in any form of layout int8."""
        count = len(self.product.codes)
        return multiple(count, CONV_ROWS if self.pools_by_four else LINEAR_ROWS)

    @property
    def weight_bytes(self) -> int:
        match self.form:
            case "average":
                return 0
            case "packed":
                return math.ceil(self.product.codes.size * self.product.bits / 8)
            case "columns":
                return self.product.codes.size
            case _:
                return self.rows * self.stride

    @cached_property
    def int8_codes(self) -> tuple[IntArray, int, int]:
        """(codes of the weights' shape, step, rest) with q_w - z_w = step * code + rest, and codes that fit a byte.

        Affine weights of 8 bits can be -255 .. 255 away from their zero point: then rest is not 0. The odd numbers of 8
        bits span more than a byte by themselves: then step is 2, and rest 1.
        """
        layer = self.product
        low, high = int(layer.codes.min()), int(layer.codes.max())
        step = 1 if high - low <= 255 else layer.grid.step
        center = int(np.clip(layer.zero_point, high - 127 * step, low + 128 * step))
        center += (low - center) % step
        return (layer.codes - center) // step, step, center - layer.zero_point

    @property
    def largest_byte(self) -> int:
        """The largest magnitude of the bytes that vector functions multiply: codes, or numbers that were packed."""
        if self.form == "packed":
            return 128 if self.product.bits == 8 else (1 << self.product.bits) - 1  # those of 8 bits are -128 .. 127
        return int(np.abs(self.int8_codes[0]).max())

    @property
    def int8_weights(self) -> IntArray:
        """The weights in rows or columns. Raises ExportError.

        In rows the kernel adds rest times the sum of the inputs, which can exceed the layer's own bound.
        """
        layer, (codes, step, rest) = self.product, self.int8_codes
        if self.form == "columns":
            if layer.kind == "linear":
                return pixels_first(layer, codes, self.inputs).T
            grouped = codes.reshape(layer.groups, -1, *codes.shape[1:])  # (groups, together, depth, K, J)
            return grouped.transpose(3, 4, 0, 2, 1)
        rows = pixels_first(layer, codes, self.inputs)
        sums = step * np.abs(rows).sum(1) + abs(rest) * rows.shape[1]
        bound = int((sums * layer.input_max + np.abs(layer.bias)).max())
        if bound > INT32_MAX:
            raise ExportError(f"{self.name}: a sum in layout int8 could reach {bound}, beyond int32; use layout packed")
        return np.pad(rows, ((0, self.rows - len(rows)), (0, self.stride - rows.shape[1])))

    @cached_property
    def geometry(self) -> dict[str, int]:
        """The fields of GEOMETRY."""
        layer, (channels, rows, columns), (_, output_rows, output_columns) = self.product, self.inputs, self.outputs
        groups = layer.groups
        together = len(layer.codes) // groups if groups > 1 else 0
        kernel_rows, kernel_columns = layer.codes.shape[2:]
        maps = (rows, columns, channels // groups, output_rows, output_columns)
        window = (kernel_rows, kernel_columns, *layer.stride, *layer.padding, layer.pool)
        numbers = (*maps, *window, groups, together, int(self.pairs))
        return dict(zip(GEOMETRY, numbers, strict=True))

    @property
    def kernels(self) -> tuple[str, ...]:
        """The files of C that it needs besides its layout's own."""
        if self.form == "average":
            return ("average.c",)
        columns = ("int8_columns.c",) if self.form == "columns" else ()
        if self.layer.kind == "linear":
            return columns
        taps: tuple[str, ...] = ()
        if self.taps:
            taps = ("taps.c", f"{self.layout}_taps.c", "depthwise.c" if self.depthwise else "convolve_pairs.c")
        if self.form == "packed":
            return (*(taps or ("convolve.c", "packed_convolve.c")), "packed_vectors_convolve.c")
        small = taps or (() if self.product.groups > 1 else ("convolve.c", "int8_small.c"))
        return (*columns, *small, "int8_convolve_columns.c" if columns else "int8_convolve.c")

    @property
    def summary(self) -> str:
        """One line about it."""
        return f"{self.name:8}{self._what:40} -> {self.output_text}"

    @property
    def output_text(self) -> str:
        """rows x columns x channels, or the number of outputs."""
        channels, *sides = self.outputs
        return " x ".join(map(str, (*sides, channels) if math.prod(sides) > 1 else (channels,)))

    @property
    def _what(self) -> str:
        if isinstance(self.layer, AverageLayer):
            return "average of the map"
        if self.layer.kind == "linear":
            return "fully connected" + ("" if self.layer.requantization else "; its sums are the logits")
        g = self.geometry
        words = [f"{g['kernel_rows']}x{g['kernel_columns']} convolution"]
        words += [f"stride {g['down']}x{g['right']}"] if self.layer.stride != (1, 1) else []
        words += [f"padding {g['pad_top']}x{g['pad_left']}"] if self.layer.padding != (0, 0) else []
        words += [f"{self.layer.groups} groups"] if self.layer.groups > 1 else []
        words += [f"{g['pool']}x{g['pool']} maximum"] if self.layer.pool > 1 else []
        return ", ".join(words)

    def call(self, last: bool, row: str) -> tuple[str, ...]:
        """The lines of C that compute it. row: where layout packed unpacks weights."""
        source = "image" if self.number == 0 else f"arena->{BUFFERS[(self.number - 1) % 2]}"
        target = f"arena->{BUFFERS[self.number % 2]}"
        lines = []
        if self.copies_image:
            source = f"arena->{BUFFERS[1]}"
            lines = [f"copy({source}, image, {self.row_length});"]
        both = f"&{self.name}, {source}"
        finish = "0, logits" if last else f"{target}, 0"
        match self.form, self.layer.kind:
            case "average", _:
                call = f"average_map({both}, {target});"
            case "packed", "conv":
                call = f"convolve({both}, {target}, {row if self.needs_row else '0'});"
            case "packed", _:
                call = f"connect({both}, {finish});"
            case "rows", "conv":
                name = "convolve_2x2" if self.pools_by_four else "convolve"
                call = f"{name}({both}, arena->sums, arena->patches, {target});"
            case "columns", "conv":
                window = "arena->window" if self.product.pool > 1 else "0"
                call = f"convolve_columns({both}, arena->sums, {window}, {target});"
            case form, _:
                name = "connect" if form == "rows" else "connect_columns"
                call = f"{name}({both}, arena->sums, {finish});"
        if self.layer.kind == "conv" and self.taps:
            name = "convolve_depthwise" if self.depthwise else "convolve_pairs"
            small = f"{name}({both}, {target}, arena->taps);"
            return ("#ifndef VECTORS" if self.layout == "packed" else "#ifdef SMALL"), small, "#else", call, "#endif"
        if self.layer.kind == "conv" and self.layout == "int8" and self.product.groups == 1:
            small = f"convolve_small({both}, {target}, {int(self.form == 'rows')});"
            return "#ifdef SMALL", small, "#else", call, "#endif"
        return *lines, call


def multiple(count: int, of: int) -> int:
    return math.ceil(count / of) * of
