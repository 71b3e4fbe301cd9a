"""IntegerModel computes the formulas of its docstring: against plain Python integers, which cannot overflow."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_models import MAX_BIAS, SMALL, random_images, random_model
from numpy.typing import NDArray

from qattrain.integer import INT32_MAX, IntegerLayer, IntegerModel, Requantization
from qattrain.integer.model import BATCH, EXACT_FLOAT32

MIXED: list[dict[str, Any]] = [
    {},
    {"quantizers": "affine", "bits": (8, 2, 5, 3), "act_bits": (8, 2, 3), "widths": (3, 4, 12)},
    {"quantizers": ("binary", "ternary", "lsq", "affine"), "bits": (1, 2, 8, 4), "act_bits": 1},
    {"bits": 8, "act_bits": 8, "widths": (3, 2, 4)},
    {"classes": 2},
    {"classes": 47},
]


def by_hand(model: IntegerModel, image: NDArray[np.uint8]) -> list[list[int]]:
    """Flat codes behind every layer, and the logits, one multiplication after the other. image: (1, 28, 28)."""
    x, side, results = [int(pixel) for pixel in image.reshape(-1)], 28, []
    for layer in model.layers:
        w, z = layer.codes.tolist(), layer.zero_point
        out: list[int] = []
        if layer.kind == "conv":
            pooled = (side - 4) // 2
            for d in range(len(w)):
                for row, column in np.ndindex(pooled, pooled):
                    sums = [
                        sum(
                            x[(c * side + 2 * row + dy + i) * side + 2 * column + dx + j] * (w[d][c][i][j] - z)
                            for c in range(len(w[0]))
                            for i in range(5)
                            for j in range(5)
                        )
                        for dy in (0, 1)
                        for dx in (0, 1)
                    ]
                    out += [_next_code(layer, d, s) for s in sums]
                    out[-4:] = [max(out[-4:])]  # pooled behind the quantizer: the order must not matter
            side = pooled
        else:
            out = [_next_code(layer, d, sum(a * (b - z) for a, b in zip(x, w[d], strict=True))) for d in range(len(w))]
        results.append(out)
        x = out
    return results


def _next_code(layer: IntegerLayer, channel: int, total: int) -> int:
    acc = total + int(layer.bias[channel])
    assert abs(acc) <= layer.accumulator_bound
    if layer.requantization is None:
        return acc
    m, k = int(layer.requantization.multiplier[channel]), int(layer.requantization.shift[channel])
    assert abs(acc * m) + 2 ** (k - 1) < 2**63
    return min(max((acc * m + 2 ** (k - 1)) >> k, 0), 2**layer.requantization.bits - 1)


@pytest.mark.parametrize("arguments", MIXED, ids=str)
def test_codes_and_logits_are_those_of_plain_python_integers(arguments: dict[str, Any]) -> None:
    model, images = random_model(**{"widths": SMALL, "seed": 1} | arguments), random_images(4)
    traced = model.trace(images)
    for index, image in enumerate(images):
        for mine, theirs in zip(traced, by_hand(model, image), strict=True):
            assert mine[index].reshape(-1).tolist() == theirs
    assert all(codes.max() > 0 for codes in traced[:-1])
    assert model.run(images).tolist() == traced[-1].tolist()


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    quantizer=st.sampled_from(["lsq", "affine"]),
    bits=st.tuples(*[st.integers(2, 8)] * 4),
    act_bits=st.tuples(*[st.integers(1, 8)] * 3),
)
def test_the_ends_of_every_range_are_exact(
    seed: int, quantizer: str, bits: tuple[int, int, int, int], act_bits: tuple[int, int, int]
) -> None:
    model = random_model(quantizer, bits, act_bits, (2, 2, 3), 3, seed=seed, extreme=True)
    images = random_images(3, seed)
    traced = model.trace(images)
    for index, image in enumerate(images):
        assert [codes[index].reshape(-1).tolist() for codes in traced] == by_hand(model, image)


def layer_of(codes: NDArray[np.int64], bias: int, input_max: int, zero_point: int = 0) -> IntegerLayer:
    biases = np.full(len(codes), bias, np.int64)
    return IntegerLayer("fc1", "linear", codes, 8, "affine", 0, zero_point, biases, input_max, None)


@given(rows=st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=4), data=st.data())
def test_the_accumulator_bound_is_reached_by_the_worst_input_and_by_none_exceeded(
    rows: list[list[int]], data: st.DataObject
) -> None:
    zero_point, bias = data.draw(st.integers(0, 255)), data.draw(st.integers(-MAX_BIAS, MAX_BIAS))
    layer = layer_of(np.array(rows, np.int64), bias, 255, zero_point)
    worst = max(255 * sum(abs(code - zero_point) for code in row) + abs(bias) for row in rows)
    assert layer.accumulator_bound == worst


@pytest.mark.parametrize("inputs", [257, 514, 515, 70_000])
def test_sums_are_exact_where_float32_would_not_be(inputs: int) -> None:
    # 257 * 255 * 255 is just below 2^24, 70,000 * 255 * 255 beyond int32: exact in either type.
    layer = layer_of(np.full((2, inputs), 255, np.int64), 1, 255)
    codes = np.full((1, inputs), 255, np.int64)
    codes[0, 0] = 254
    expected = 255 * 255 * inputs - 255 + 1
    assert layer.accumulate(codes).tolist() == [[expected, expected]]
    assert (layer.accumulator_bound < EXACT_FLOAT32) == (inputs == 257)


@given(
    acc=st.integers(-INT32_MAX, INT32_MAX),
    multiplier=st.integers(0, INT32_MAX),
    shift=st.integers(1, 62),
    bits=st.integers(1, 8),
)
def test_requantizing_rounds_half_up_and_never_overflows(acc: int, multiplier: int, shift: int, bits: int) -> None:
    one = Requantization(np.array([multiplier]), np.array([shift]), bits)
    exact = (acc * multiplier * 2 + 2**shift) // 2 ** (shift + 1)  # floor(acc m / 2^k + 1/2)
    assert one.apply(np.array([[acc]])).tolist() == [[min(max(exact, 0), 2**bits - 1)]]


def test_halves_go_up_on_both_sides() -> None:
    one = Requantization(np.array([1]), np.array([1]), 8)
    assert one.apply(np.array([[-3], [-1], [0], [1], [3], [600]])).reshape(-1).tolist() == [0, 0, 0, 1, 2, 255]


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1])
def test_any_number_of_images_gives_as_many_rows_of_int32(count: int) -> None:
    model, images = random_model(widths=SMALL, classes=5, seed=2), random_images(count, 3)
    logits = model.run(images)
    assert (logits.shape, logits.dtype) == ((count, 5), np.int32)
    assert model.classes == 5
    if count:
        assert np.array_equal(logits[-1:], model.run(images[-1:]))


@pytest.mark.parametrize("images", [np.zeros((1, 28, 28), np.uint8), np.zeros((1, 1, 28, 28), np.int64)])
def test_images_of_another_form_are_caught(images: Any) -> None:
    with pytest.raises(AssertionError):
        random_model().run(images)
