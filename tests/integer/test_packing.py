"""Codes of 1 to 8 bits take that many bits, in the documented order, and come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qattrain.integer import pack_codes, unpack_codes


@given(data=st.data(), bits=st.integers(1, 8), lowest=st.integers(-128, 0))
def test_every_list_of_codes_comes_back_from_its_exact_number_of_bytes(
    data: st.DataObject, bits: int, lowest: int
) -> None:
    codes = np.array(data.draw(st.lists(st.integers(lowest, lowest + 2**bits - 1), max_size=40)), dtype=np.int64)
    packed = pack_codes(codes, bits, lowest)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-len(codes) * bits // 8),)
    assert np.array_equal(unpack_codes(packed, bits, lowest, len(codes)), codes)


@given(data=st.data(), bits=st.integers(1, 8))
def test_the_bit_order_is_the_documented_one(data: st.DataObject, bits: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20))
    stream = sum(code << (index * bits) for index, code in enumerate(codes))  # as one little-endian number
    expected = stream.to_bytes(-(-len(codes) * bits // 8), "little")
    assert pack_codes(np.array(codes, np.int64), bits, 0).tobytes() == expected


@pytest.mark.parametrize(
    ("codes", "bits", "lowest", "expected"),
    [
        ([0x1, 0x2, 0xF], 4, 0, [0x21, 0x0F]),  # the first code in the low half
        ([-8, 7, -1, 0], 4, -8, [0xF0, 0x87]),
        ([1, 0, 0, 1, 1, 0, 1, 0, 1], 1, 0, [0b01011001, 0b1]),  # the first code in the lowest bit
        ([0, 5, 7], 3, 0, [0b11101000, 0b1]),  # the third code goes over the edge of a byte
        ([-1, 0, 1, 1, -1], 2, -1, [0b10100100, 0b00]),
        ([255, 0, 7], 8, 0, [255, 0, 7]),
    ],
)
def test_hand_made_examples(codes: list[int], bits: int, lowest: int, expected: list[int]) -> None:
    assert pack_codes(np.array(codes, np.int64), bits, lowest).tolist() == expected


def test_tensors_are_taken_in_c_order_whatever_their_memory_order() -> None:
    codes = np.arange(24).reshape(2, 3, 4) % 16
    for array in (codes, np.asfortranarray(codes)):
        assert unpack_codes(pack_codes(array, 4, 0), 4, 0, 24).reshape(2, 3, 4).tolist() == codes.tolist()


@pytest.mark.parametrize("code", [-9, 8])
def test_a_code_off_its_grid_is_caught(code: int) -> None:
    with pytest.raises(AssertionError):
        pack_codes(np.array([code], np.int64), 4, -8)
