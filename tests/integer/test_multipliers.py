"""A multiplier and shift are as near to the real factor as 31 bits allow."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qattrain.errors import ExportError
from qattrain.integer.lowering import multiplier_and_shift


@given(mantissa=st.floats(0.5, 1, exclude_max=True), exponent=st.integers(-61, 30))
def test_a_multiplier_is_the_nearest_one_with_the_largest_shift(mantissa: float, exponent: int) -> None:
    factor = math.ldexp(mantissa, exponent)
    m, k = multiplier_and_shift(factor)
    assert 0 < m < 2**31
    assert 1 <= k <= 62
    assert abs(Fraction(m, 2**k) - Fraction(factor)) <= Fraction(1, 2 ** (k + 1))
    if not (mantissa == 0.5 and factor >= 1):
        assert k == 62 or math.floor(Fraction(factor) * 2 ** (k + 1) + Fraction(1, 2)) >= 2**31


@pytest.mark.parametrize("exponent", range(-62, 30))
def test_a_power_of_two_is_exact(exponent: int) -> None:
    m, k = multiplier_and_shift(2.0**exponent)
    assert Fraction(m, 2**k) == Fraction(2) ** exponent
    if exponent >= 0:
        assert (m, k) == (2 ** (exponent + 1), 1)


@pytest.mark.parametrize("factor", [2.0**-62 * (1 - 2**-53), 1e-30, 5e-324])
def test_below_two_to_the_minus_62_everything_becomes_0(factor: float) -> None:
    assert multiplier_and_shift(factor)[0] == 0


@pytest.mark.parametrize("factor", [math.nextafter(2.0, 1), math.nextafter(1.0, 0), math.nextafter(2.0**30, 0)])
def test_a_factor_that_rounds_up_to_a_power_of_two_keeps_31_bits(factor: float) -> None:
    m, k = multiplier_and_shift(factor)
    assert m < 2**31
    assert Fraction(m, 2**k) == round(factor)


@pytest.mark.parametrize("factor", [2.0**30, 1e20, math.inf])
def test_a_factor_of_two_to_the_30_is_refused(factor: float) -> None:
    with pytest.raises(ExportError, match="below 2\\^30"):
        multiplier_and_shift(factor)
