"""IntegerModel: the network as integers, and what it computes. NumPy only; this file *defines* the result.

    acc = sum (q_x - z_x)(q_w - z_w) + b_q                      int32; z_x = 0: images and codes after a ReLU
    q_y = clip((acc * m[c] + 2^(k[c] - 1)) >> k[c], 0, qmax)    in int64, per output channel
    logits = acc of the last layer

A convolution with pooling takes the largest acc of every window before q_y; since multipliers are not negative, the
order does not matter. An average adds up the codes of a map, acc = sum q_x, and its multiplier contains the division.
A batch normalization is nothing of its own: it lies in multipliers and biases.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qattrain.config.chain import Shape, output_side

IntArray = NDArray[np.int64]
INT32_MAX = 2**31 - 1
EXACT_FLOAT32 = 2**24  # float32 holds every integer up to this
BATCH = 500  # images computed at a time, fewer if a layer is large
WORKING_SET = 2**25  # numbers that a layer may copy at a time


def weight_grid(lowest: int, bits: int) -> range:
    """All codes, ascending, that weights of `bits` 1..8 can have if `lowest` is the smallest.

    1 - 2^bits: the odd numbers evenly around 0 (binary, dorefa). 1 - 2^(bits-1): the numbers evenly around 0 (ternary).
    Any other: 2^bits numbers from there up.
    """
    if lowest == 1 - 2**bits:
        return range(lowest, 1 - lowest, 2)
    if lowest == 1 - 2 ** (bits - 1):
        return range(lowest, 1 - lowest)
    return range(lowest, lowest + 2**bits)


@dataclass(frozen=True, eq=False)
class Requantization:
    """Accumulators to the next codes: multiplier and shift per output channel, the largest code."""

    multiplier: IntArray  # (C,), 0 .. 2^31 - 1
    shift: IntArray  # (C,), 1 .. 62
    bits: int  # of the codes, 1..8

    @property
    def qmax(self) -> int:
        return int(2**self.bits - 1)

    def apply(self, acc: IntArray) -> IntArray:
        """acc: (N, C, ...) -> codes 0..qmax of the same shape."""
        channels = (1, -1, *(1,) * (acc.ndim - 2))
        m, k = self.multiplier.reshape(channels), self.shift.reshape(channels)
        codes: IntArray = np.clip((acc * m + (np.int64(1) << (k - 1))) >> k, 0, self.qmax)
        return codes


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A convolution with its pooling, or a matrix product.

    codes: q_w, (D, C / groups, K, J) or (D, C). bits, quantizer: of the weights, as recorded. lowest: the smallest code
    they can have. zero_point: z_w. bias: b_q, (D,). input_max: largest input code. requantization: None for the last
    layer. stride, padding: (height, width); the padding is code 0. pool: side and stride of the windows, 1 for none.
    """

    name: str
    kind: Literal["conv", "linear"]
    codes: IntArray
    bits: int
    quantizer: str
    lowest: int
    zero_point: int
    bias: IntArray
    input_max: int
    requantization: Requantization | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    pool: int = 1

    @property
    def grid(self) -> range:
        """All codes its weights can have, ascending."""
        return weight_grid(self.lowest, self.bits)

    @property
    def numbers(self) -> IntArray:
        """Index of each weight in the grid, 0 .. 2^bits - 1, as files store it. Of the shape of `codes`."""
        return (self.codes - self.grid.start) // self.grid.step

    @property
    def centered(self) -> IntArray:
        """q_w - z_w."""
        return self.codes - self.zero_point

    @property
    def accumulator_bound(self) -> int:
        """The largest magnitude any accumulator, or partial sum of one, can have."""
        rows = np.abs(self.centered).reshape(len(self.codes), -1).sum(1)
        return int((rows * self.input_max + np.abs(self.bias)).max())

    def map_shape(self, inputs: Shape) -> Shape:
        """(D, H, W) of the sums before pooling, for an input (C, H, W). Raises ValueError if they do not fit."""
        channels, *sides = inputs
        if self.kind == "linear":
            if prod(inputs) != self.codes.shape[1]:
                raise ValueError(f"{self.name} takes {self.codes.shape[1]} inputs, not {prod(inputs)}")
            return len(self.codes), 1, 1
        if self.codes.shape[1] * self.groups != channels or len(self.codes) % self.groups:
            raise ValueError(f"{self.name} has {self.codes.shape[1]} channels in {self.groups} groups for {channels}")
        height, width = map(output_side, sides, self.codes.shape[2:], self.stride, self.padding)
        if min(height, width) < self.pool:
            raise ValueError(f"{self.name} does not fit a map of {sides[0]}x{sides[1]}")
        return len(self.codes), height, width

    def output_shape(self, inputs: Shape) -> Shape:
        """(D, H', W') after pooling, or (D, 1, 1). Raises ValueError if they do not fit."""
        outputs, height, width = self.map_shape(inputs)
        return outputs, height // self.pool, width // self.pool

    def macs(self, inputs: Shape) -> int:
        """Multiply-accumulates for one image."""
        return prod(self.map_shape(inputs)[1:]) * self.codes.size

    def working_set(self, inputs: Shape) -> int:
        """How many numbers `accumulate` copies for one image: the inputs of every sum, side by side."""
        return self.macs(inputs) * self.groups // len(self.codes)

    def accumulate(self, x: IntArray) -> IntArray:
        """x: codes, (N, C, H, W) or (N, C) -> pooled accumulators (N, D, H', W') or (N, D), exact.

        A product of floats is exact as long as every partial sum is an integer the float can hold.
        """
        dtype: type[np.float32 | np.float64] = np.float32 if self.accumulator_bound < EXACT_FLOAT32 else np.float64
        groups, outputs = self.groups, len(self.codes)
        weight: NDArray[Any] = self.centered.reshape(groups, outputs // groups, -1).transpose(0, 2, 1).astype(dtype)
        if self.kind == "linear":
            sums: NDArray[Any] = x.astype(dtype) @ weight[0]
            return sums.astype(np.int64) + self.bias
        (rows, columns), (down, right) = self.padding, self.stride
        padded = np.pad(x.astype(dtype), ((0, 0), (0, 0), (rows, rows), (columns, columns)))
        windows = sliding_window_view(padded, self.codes.shape[2:], axis=(2, 3))[:, :, ::down, ::right]
        pool = self.pool
        height, width = (side // pool * pool for side in windows.shape[2:4])  # pooling drops a remainder
        windows = windows[:, :, :height, :width]  # (N, C, H', W', K, J)
        grouped = windows.reshape(len(x), groups, -1, *windows.shape[2:]) if groups > 1 else windows[:, None]
        columns_first = grouped.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, -1, weight.shape[1])
        sums = columns_first @ weight  # (groups, N H' W', D / groups)
        blocks = sums.reshape(groups, len(x), height // pool, pool, width // pool, pool, outputs // groups)
        pooled: NDArray[Any] = blocks.max((3, 5)) if pool > 1 else blocks[:, :, :, 0, :, 0]
        maps = pooled.transpose(1, 0, 4, 2, 3).reshape(len(x), outputs, height // pool, width // pool)
        return maps.astype(np.int64) + self.bias[:, None, None]


@dataclass(frozen=True, eq=False)
class AverageLayer:
    """The average of each channel's map. input_max: largest input code. requantization: with a single multiplier.

    The multiplier contains the division by the number of pixels. It is rounded up, so that a sum that lies exactly
    between two codes, as happens with power-of-two scales, gives the larger one.
    """

    name: str
    pixels: int  # of a channel
    input_max: int
    requantization: Requantization
    kind: Literal["average"] = "average"

    @property
    def accumulator_bound(self) -> int:
        """The largest sum."""
        return self.pixels * self.input_max

    def output_shape(self, inputs: Shape) -> Shape:
        """(C, 1, 1). Raises ValueError if the map has another size than it was made for."""
        if inputs[1] * inputs[2] != self.pixels:
            raise ValueError(f"{self.name} averages {self.pixels} pixels, not {inputs[1]}x{inputs[2]}")
        return inputs[0], 1, 1

    def macs(self, inputs: Shape) -> int:  # noqa: ARG002
        """None: it only adds."""
        return 0

    def working_set(self, inputs: Shape) -> int:
        return prod(inputs)

    def accumulate(self, x: IntArray) -> IntArray:
        """x: codes (N, C, H, W) -> sums (N, C, 1, 1)."""
        sums: IntArray = x.sum((2, 3), keepdims=True)
        return sums


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A chain of layers on images of one shape. logit_scale: of the real logits, for loss and probabilities only."""

    layers: tuple[IntegerLayer | AverageLayer, ...]
    logit_scale: float
    input_shape: Shape

    @property
    def products(self) -> tuple[IntegerLayer, ...]:
        """The layers that have weights."""
        return tuple(layer for layer in self.layers if isinstance(layer, IntegerLayer))

    @property
    def classes(self) -> int:
        return len(self.products[-1].codes)

    @cached_property
    def shapes(self) -> list[Shape]:
        """The input's shape, then every layer's output shape. Raises ValueError if they do not fit."""
        shapes = [self.input_shape]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes

    @cached_property
    def batch(self) -> int:
        """How many images are computed at a time."""
        largest = max(layer.working_set(inputs) for layer, inputs in zip(self.layers, self.shapes, strict=False))
        return max(1, min(BATCH, WORKING_SET // largest))

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """images: uint8 (N, *input_shape) -> logits int32 (N, classes)."""
        starts = range(0, len(images), self.batch)
        logits = [self.trace(images[start : start + self.batch])[-1] for start in starts]
        return np.concatenate(logits).astype(np.int32) if logits else np.zeros((0, self.classes), np.int32)

    def trace(self, images: NDArray[np.uint8]) -> list[IntArray]:
        """Codes of every hidden layer, (N, C, H, W) or (N, features), and the logits (N, classes)."""
        assert images.dtype == np.uint8, images.dtype
        assert images.shape[1:] == self.input_shape, (images.shape, self.input_shape)
        x, results = images.astype(np.int64), []
        for layer in self.layers:
            acc = layer.accumulate(x.reshape(len(x), prod(x.shape[1:])) if layer.kind == "linear" else x)
            x = acc if layer.requantization is None else layer.requantization.apply(acc)
            results.append(x)
        return results
