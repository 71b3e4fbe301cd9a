"""The grid: quantize, dequantize, QTensor, against NumPy and the bound that rounding promises."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qattrain.errors import ConfigError
from qattrain.layers.quantized import QuantLinear, QuantReLU
from qattrain.quant import QUANTIZERS, activation_quantizer, weight_quantizer
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, dequantize, quantize, round_half_up

REALS = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50)


def test_rounding_is_half_up_for_both_signs() -> None:
    v = torch.tensor([-3.5, -2.5, -0.5, -0.4999, 0.5, 1.5, 2.5, 3.4999])
    assert round_half_up(v).tolist() == [-3, -2, 0, 0, 1, 2, 3, 3]


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(-(2**22), 2**22), min_size=1))
def test_rounding_an_integer_returns_it(integers: list[int]) -> None:
    assert round_half_up(torch.tensor(integers, dtype=torch.float32)).tolist() == integers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_quantize_rounds_in_float32_or_wider(dtype: torch.dtype) -> None:
    x = torch.linspace(0, 25, 500).to(dtype)
    q = quantize(x, torch.tensor(0.1), 0, 0, 255)
    assert q.codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = x.numpy() if dtype == torch.float64 else x.float().numpy()
    assert np.array_equal(q.codes.numpy(), np.clip(np.floor(wide / np.float32(0.1) + 0.5), 0, 255).astype(wide.dtype))


@settings(max_examples=200, deadline=None, database=None)
@given(REALS, st.floats(2.0**-19, 100), st.integers(0, 255), st.integers(1, 8), st.booleans())
def test_dequantized_values_are_within_half_a_step_unless_clipped_and_then_on_the_bound(
    values: list[float], scale: float, zero_point: int, bits: int, signed: bool
) -> None:
    qmin, qmax = code_range(bits, signed)
    x = torch.tensor(values, dtype=torch.float64)
    q = quantize(x, torch.tensor(scale, dtype=torch.float64), zero_point, qmin, qmax)
    assert bool((q.codes == q.codes.round()).all())
    assert qmin <= q.codes.min() <= q.codes.max() <= qmax
    x_hat, low, high = dequantize(q), (qmin - zero_point) * scale, (qmax - zero_point) * scale
    inside = (x >= low) & (x <= high)
    assert bool(((x_hat - x).abs()[inside] <= scale / 2 * (1 + 1e-9)).all())
    assert bool((q.codes[x > high] == qmax).all())
    assert bool((q.codes[x < low] == qmin).all())


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(0, 255), min_size=1), st.floats(2.0**-20, 8), st.integers(0, 255))
def test_quantizing_a_dequantized_code_returns_the_code(codes: list[int], scale: float, zero_point: int) -> None:
    q = QTensor(torch.tensor(codes, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64), zero_point)
    assert torch.equal(quantize(dequantize(q), q.scale, zero_point, 0, 255).codes, q.codes)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None, database=None)
@given(REALS, st.integers(1, 8))
def test_the_textbook_zero_point_maps_the_minimum_to_code_zero_and_zero_to_itself(
    values: list[float], bits: int
) -> None:
    x = torch.tensor([*values, 0.0], dtype=torch.float64)
    qmax = 2**bits - 1
    scale = ((x.max() - x.min()) / qmax).clamp_min(MIN_SCALE)
    zero_point = round_half_up(-x.min() / scale)
    q = quantize(x, scale, zero_point, 0, qmax)
    reals = dequantize(q)
    assert float(reals[-1]) == 0  # 0 is exact, whatever the range
    # round(min / s + round(-min / s)): at most one code above 0, by the two roundings; 0 where -min / s is whole
    assert 0 <= float(q.codes.min()) <= 1
    assert float((reals.min() - x.min()).abs()) <= float(scale) / 2 * (1 + 1e-6)


@pytest.mark.parametrize(("low", "high", "zero_point"), [(-3.0, 12.0, 3), (0.0, 15.0, 0), (-15.0, 0.0, 15)])
def test_the_minimum_has_code_zero_and_the_maximum_the_largest_code(low: float, high: float, zero_point: int) -> None:
    q = quantize(torch.tensor([low, 0.0, high]), torch.tensor(1.0), zero_point, 0, 15)
    assert q.codes.tolist() == [0, zero_point, 15]


def test_a_scale_below_the_smallest_acts_as_the_smallest_and_is_what_is_returned() -> None:
    q = quantize(torch.tensor([1.0, 3 * MIN_SCALE]), torch.tensor(0.0), 0, -8, 7)
    assert q.scale is not None
    assert float(q.scale) == MIN_SCALE
    assert q.codes.tolist() == [7, 3]


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [(1, False, (0, 1)), (1, True, (-1, 0)), (2, True, (-2, 1)), (4, False, (0, 15)), (8, True, (-128, 127))],
)
def test_code_range(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    assert code_range(bits, signed) == expected


@pytest.mark.parametrize("bits", [-1, 0, 9, 32])
def test_a_grid_of_other_than_one_to_eight_bits_is_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"1 to 8"):
        code_range(bits, signed=True)


def test_centered_subtracts_the_zero_point_and_dequantize_without_scale_is_centered() -> None:
    codes = torch.tensor([0.0, 5.0])
    assert QTensor(codes, None).centered() is codes
    assert QTensor(codes, None, 2).centered().tolist() == [-2, 3]
    assert QTensor(codes, None, torch.tensor(5.0)).centered().tolist() == [-5, 0]
    assert dequantize(QTensor(codes, None)).tolist() == [0, 5]
    assert dequantize(QTensor(codes, torch.tensor(0.5), 1)).tolist() == [-0.5, 2]


def test_flatten_keeps_values_scale_and_zero_point_as_nn_flatten_calls_it() -> None:
    q = QTensor(torch.arange(24.0).view(2, 3, 2, 2), torch.tensor(0.5), 3)
    flat = torch.nn.Flatten()(q)
    assert isinstance(flat, QTensor)
    assert flat.codes.shape == (2, 12)
    assert torch.equal(dequantize(flat), dequantize(q).flatten(1))


def test_flatten_refuses_several_scales_because_they_would_lose_their_channels() -> None:
    with pytest.raises(ConfigError, match="3 scales"):
        QTensor(torch.zeros(2, 3, 2, 2), torch.ones(3, 1, 1)).flatten(1)


def test_dequantize_passes_the_gradient_to_the_codes() -> None:
    codes = torch.tensor([1.0, 2.0], requires_grad=True)
    dequantize(QTensor(codes, torch.tensor([0.5, 4.0]), 1)).sum().backward()
    assert codes.grad is not None
    assert codes.grad.tolist() == [0.5, 4.0]


def test_a_qtensor_with_several_scales_is_refused_rather_than_mistaken_for_output_channels() -> None:
    q = QTensor(torch.ones(2, 3), torch.tensor([1.0, 2.0, 4.0]))
    with pytest.raises((ConfigError, AssertionError)):
        QuantLinear(3, 3, bits=8)(q)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_activation_bits_other_than_one_to_eight_are_refused(name: str, bits: int) -> None:
    with pytest.raises(ConfigError, match="1 to 8"):
        activation_quantizer(name, bits)


@pytest.mark.parametrize("name", ["lsq", "affine", "pow2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_range_set_from_outside_just_fits(name: str, bits: int) -> None:
    quantizer: Any = weight_quantizer(name, bits, ())
    quantizer.set_range(torch.tensor(-0.9), torch.tensor(1.3))
    q = quantizer.eval()(torch.tensor([-0.9, 0.0, 1.3]))
    if name == "pow2":  # the power of two nearest to the scale that fits
        assert 2**-0.5 <= float(q.scale) / max(1.3 / quantizer.qmax, 0.9 / -quantizer.qmin) <= 2**0.5
        return
    assert bool(((dequantize(q) - torch.tensor([-0.9, 0.0, 1.3])).abs() <= q.scale / 2 * 1.001).all())
    narrow = float(q.scale) / 1.001  # a smaller scale would clip
    assert 1.3 / narrow > quantizer.qmax - float(q.zero_point) or -0.9 / narrow < quantizer.qmin - float(q.zero_point)


def test_pow2_with_an_n_beyond_the_smallest_scale_is_refused_or_held_at_it() -> None:
    try:
        quantizer: Any = weight_quantizer("pow2", 4, (), fraction_bits=25)
        q = quantizer(torch.tensor([1.0, -2.0 * MIN_SCALE]))
    except ConfigError:
        return
    assert float(q.scale) == MIN_SCALE
    assert q.codes.tolist() == [7, -2]


def test_relu_in_evaluation_does_not_take_one_ulp_below_a_half_for_a_half() -> None:
    relu: Any = QuantReLU(4, "pow2").eval()
    relu.quantizer.set_range(torch.tensor(0.0), torch.tensor(15.0))  # scale 1
    half = torch.tensor(0.5)
    assert relu(torch.stack([torch.nextafter(half, torch.tensor(0.0)), half])).codes.tolist() == [0, 1]
