"""How model.c turns sums into codes: the cheapest multipliers and shifts that give the code of every possible sum.

IntegerModel's form has 31-bit multipliers and needs 64 bits, about a hundred instructions on a processor of 32 bits
without long multiplication. But a layer's sums are bounded, and its codes are few. The code is at least j from a sum
t_j on, its threshold; two forms are the same function where their thresholds up to the largest sum are the same. The
narrow form

    code = min((max(sum, 0) * multiplier + 2^(shift - 1)) >> shift, largest)

with one shift for the whole layer is looked for so that no product leaves 32 bits. Where there is none, as with most
activations of 8 bits, the layer keeps the exact multipliers, and a shift per channel. If its sums stay below 2^16 and
its shifts are 17 to 48, each product is computed in two halves of 32 bits; if not, in 64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qattrain.integer import AverageLayer, IntegerLayer, Requantization

IntArray = NDArray[np.int64]
UINT32_MAX = 2**32 - 1
HALVES = (17, 48)  # shifts of products that are computed in two halves


@dataclass(frozen=True, eq=False)
class Scaling:
    """Multipliers (C,) and shifts: (C,), each below 63, or a single one, below 32, if 32 bits are enough."""

    multiplier: IntArray
    shift: IntArray
    largest_sum: int

    @property
    def wide(self) -> bool:
        """Whether its products have more than 32 bits, and channels shifts of their own."""
        return self.shift.ndim > 0

    @property
    def in_halves(self) -> bool:
        """Whether such products can be computed in two halves of 32 bits."""
        return self.largest_sum < 2**16 and HALVES[0] <= int(self.shift.min()) and int(self.shift.max()) <= HALVES[1]


def scaling(layer: IntegerLayer | AverageLayer) -> Scaling | None:
    """The narrow form if there is one, the exact one otherwise; None for the last layer, whose sums are the logits."""
    how = layer.requantization
    if how is None:
        return None
    most = largest_sums(layer)
    return narrow(how, most) or exact(how, int(most.max()))


def exact(how: Requantization, largest_sum: int) -> Scaling:
    """The multipliers and shifts of `how`: with shifts that allow halves if possible, else the smallest."""
    always_0 = (how.multiplier == 0) | (how.shift > HALVES[1])  # with sums below 2^16 and multipliers below 2^31
    form = Scaling(np.where(always_0, 0, how.multiplier), np.where(always_0, HALVES[0], how.shift), largest_sum)
    return form if form.in_halves else Scaling(*reduced(how), largest_sum)


def largest_sums(layer: IntegerLayer | AverageLayer) -> IntArray:
    """The largest sum of each channel, bias included: the largest input wherever the weight is positive. (C,)"""
    if isinstance(layer, AverageLayer):
        return np.array([layer.accumulator_bound])
    positive = np.maximum(layer.centered.reshape(len(layer.codes), -1), 0)
    sums: IntArray = positive.sum(1) * layer.input_max + layer.bias
    return sums


def narrow(how: Requantization, most: IntArray) -> Scaling | None:
    """Scaling in 32 bits that gives the codes of `how` for every sum up to most, (C,) below 2^31; None if none does.

    At a shift k, multiplier m reaches code j at the threshold t_j and not before it exactly if, with half = 2^(k - 1),

        t_j m + half >= j 2^k    and    (t_j - 1) m + half < j 2^k.

    So all allowed multipliers of a channel lie between two bounds, which the closest thresholds give. A threshold that
    no sum reaches only bounds from above, at the largest sum. The first shift with room between the bounds in every
    channel gives the smallest products; a larger one only doubles them.
    """
    reached = thresholds(how, most)  # (C, codes)
    last_before = np.minimum(reached - 1, most[:, None])
    for shift in range(1, 32):
        half = 1 << (shift - 1)
        starts = (np.arange(1, how.qmax + 1) << shift) - half  # smallest product with each code; (codes,)
        at_least = np.where(reached <= most[:, None], -(-starts // reached), 0).max(1)
        allowed = np.where(last_before > 0, (starts - 1) // np.maximum(last_before, 1), UINT32_MAX).min(1)
        in_32_bits = np.minimum((UINT32_MAX - half) // np.maximum(most, 1), UINT32_MAX)
        if (at_least > in_32_bits).any():
            return None
        if (at_least <= allowed).all():
            return Scaling(at_least, np.array(shift), int(most.max()))
    return None


def thresholds(how: Requantization, most: IntArray) -> IntArray:
    """The smallest sum with a code of at least j = 1 .. qmax, or `most` + 1 (at least 1) if that is smaller. (C, qmax)

    From sum * m + 2^(k - 1) >= j 2^k: the ceiling of (2 j - 1) 2^(k - 1) / m, in Python's integers of any length.
    """
    doubled = np.arange(1, 2 * how.qmax, 2).astype(object)
    beyond = np.maximum(most, 0) + 1
    rows = [
        np.minimum(-(-(doubled << (k - 1)) // m), end) if m else np.full(how.qmax, end)
        for m, k, end in zip(how.multiplier.tolist(), how.shift.tolist(), beyond.tolist(), strict=True)
    ]
    return np.array(rows).astype(np.int64)


def reduced(how: Requantization) -> tuple[IntArray, IntArray]:
    """Multipliers and shifts without the factors of two they share (down to a shift of 1): the codes stay the same."""
    m, k = how.multiplier, how.shift
    twos = np.where(m == 0, 62, np.log2(np.maximum(m & -m, 1))).astype(np.int64)  # m & -m: its largest power of two
    common = np.minimum(twos, k - 1)
    return m >> common, k - common
