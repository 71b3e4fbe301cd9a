"""Codes of 1 to 8 bits without gaps.

Bit order: code i takes the bits i*b .. i*b + b - 1 of the stream, its least significant bit first; bit j of the stream
is bit j % 8 of byte j // 8, counted from the least significant. So two 4-bit codes share a byte, the first in its low
half. Stored is which code of its grid it is, counted from 0; the last byte is filled up with zeros.
"""

import numpy as np
from numpy.typing import NDArray


def weight_grid(quantizer: str, bits: int) -> range:
    """All codes that weights of that quantizer and width can have, ascending. bits: 1..8.

    `dorefa`, and every quantizer at one bit, has the odd numbers, 2^bits of them evenly around 0.
    """
    if quantizer == "dorefa" or bits == 1:
        return range(1 - 2**bits, 2**bits, 2)
    if quantizer == "ternary":
        return range(-1, 2)
    lowest = 0 if quantizer == "affine" else -(2 ** (bits - 1))
    return range(lowest, lowest + 2**bits)


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
