"""IntegerModel: the network as integers, and what it computes. NumPy only; this file *defines* the result.

    acc = sum (q_x - z_x)(q_w - z_w) + b_q                      int32; z_x = 0: images and codes after a ReLU
    q_y = clip((acc * m[c] + 2^(k[c] - 1)) >> k[c], 0, qmax)    in int64, per output channel
    logits = acc of the last layer

Convolutions take the largest acc of every 2x2 window before q_y; since multipliers are not negative, the order does
not matter.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
INT32_MAX = 2**31 - 1
EXACT_FLOAT32 = 2**24  # float32 holds every integer up to this
BATCH = 500  # images computed at a time


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
    """One layer: a convolution with its pooling, or a matrix product.

    codes: q_w, (D, C, K, J) or (D, C). bits, quantizer: of the weights, as recorded. lowest: the smallest code they can
    have. zero_point: z_w. bias: b_q, (D,). input_max: largest input code. requantization: None for the last layer.
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

    def accumulate(self, x: IntArray) -> IntArray:
        """x: codes, (N, C, H, W) or (N, C) -> pooled accumulators (N, D, H', W') or (N, D), exact.

        A product of floats is exact as long as every partial sum is an integer the float can hold.
        """
        dtype: type[np.float32 | np.float64] = np.float32 if self.accumulator_bound < EXACT_FLOAT32 else np.float64
        weight: NDArray[Any] = self.centered.reshape(len(self.codes), -1).T.astype(dtype)
        if self.kind == "linear":
            sums: NDArray[Any] = x.astype(dtype) @ weight
            return sums.astype(np.int64) + self.bias
        side = self.codes.shape[2]
        windows = sliding_window_view(x.astype(dtype), (side, side), axis=(2, 3))  # (N, C, H', W', K, J)
        n, _, height, width = windows.shape[:4]
        rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * height * width, len(weight))
        pooled: NDArray[Any] = (rows @ weight).reshape(n, height // 2, 2, width // 2, 2, len(self.codes)).max((2, 4))
        return pooled.transpose(0, 3, 1, 2).astype(np.int64) + self.bias[:, None, None]


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """conv1, conv2, fc1, fc2 as integers. logit_scale: of the real logits, for loss and probabilities only."""

    layers: tuple[IntegerLayer, ...]
    logit_scale: float

    @property
    def classes(self) -> int:
        return len(self.layers[-1].codes)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """images: uint8 (N, 1, 28, 28) -> logits int32 (N, classes)."""
        logits = [self.trace(images[start : start + BATCH])[-1] for start in range(0, len(images), BATCH)]
        return np.concatenate(logits).astype(np.int32) if logits else np.zeros((0, self.classes), np.int32)

    def trace(self, images: NDArray[np.uint8]) -> list[IntArray]:
        """Codes of every hidden layer, and the logits.

        [(N, c1, 12, 12), (N, c2, 4, 4), (N, features), (N, classes)]
        """
        assert images.dtype == np.uint8, images.dtype
        assert images.shape[1:] == (1, 28, 28), images.shape
        x, results = images.astype(np.int64), []
        for layer in self.layers:
            acc = layer.accumulate(x.reshape(len(x), layer.codes.shape[1]) if layer.kind == "linear" else x)
            x = acc if layer.requantization is None else layer.requantization.apply(acc)
            results.append(x)
        return results
