"""The 32-bit form of requantization: every code of every possible sum, or no such form."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integer_models import random_images, random_model, with_layer

from qattrain.export.c_compile import C_FOLDER, PORTABLE, compiled_c
from qattrain.export.c_export import c_sources
from qattrain.export.c_network import CNetwork
from qattrain.export.c_requantize import UINT32_MAX, IntArray, Scaling, largest_sums, narrow, reduced, thresholds
from qattrain.export.c_requantize import exact as exact_form
from qattrain.files.compiler import NATIVE, find_compiler
from qattrain.integer import IntegerModel, Requantization


def requantization(multiplier: list[int], shift: list[int], bits: int) -> Requantization:
    return Requantization(np.array(multiplier), np.array(shift), bits)


def exact(how: Requantization, channel: int, sums: list[int]) -> list[int]:
    """By the definition, in Python's integers."""
    m, k = int(how.multiplier[channel]), int(how.shift[channel])
    return [min(max((each * m + (1 << (k - 1))) >> k, 0), how.qmax) for each in sums]


def in_32_bits(form: Scaling, channel: int, sums: list[int], largest: int) -> list[int]:
    """As requantize.c computes it; fails where a number would leave 32 bits."""
    m, k = int(form.multiplier[channel]), int(form.shift)
    assert 0 <= m <= UINT32_MAX
    assert 1 <= k <= 31
    products = [max(each, 0) * m + (1 << (k - 1)) for each in sums]
    assert max(products) <= UINT32_MAX
    return [min(product >> k, largest) for product in products]


def around_thresholds(how: Requantization, channel: int, most: int) -> list[int]:
    """All sums next to which a code changes, besides the ends; a code between two of them changes nowhere."""
    m, k = int(how.multiplier[channel]), int(how.shift[channel])
    sums = {-(2**31) + 1, -1, 0, 1, most - 1, most}
    for j in range(1, how.qmax + 1):
        first = -(-((2 * j - 1) << (k - 1)) // m) if m else most
        sums |= {first - 1, first}
    return sorted(each for each in sums if each <= most)


def assert_the_same(how: Requantization, form: Scaling, most: IntArray) -> None:
    assert not form.wide
    for channel, bound in enumerate(most.tolist()):
        sums = list(range(min(bound, 0) - 3, bound + 1)) if bound < 3000 else around_thresholds(how, channel, bound)
        assert in_32_bits(form, channel, sums, how.qmax) == exact(how, channel, sums), (how, channel, bound)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("bound_bits", [0, 1, 5, 11, 16, 24, 31])
def test_a_narrow_form_gives_every_code_of_every_sum(bits: int, bound_bits: int) -> None:
    random = np.random.default_rng(100 * bits + bound_bits)
    found = 0
    for _ in range(60):
        count = int(random.integers(1, 4))
        most = random.integers(2**bound_bits // 2, 2**bound_bits, count)
        # Multipliers that spread a part of the sums over the codes, or several times as many.
        scale = 2.0**bits / (most + 1) * 2.0 ** random.uniform(-2, 5, count)
        shift = np.clip(30 - np.floor(np.log2(scale)).astype(np.int64), 1, 62)
        how = Requantization(np.minimum((scale * 2.0**shift).astype(np.int64), 2**31 - 1), shift, bits)
        form = narrow(how, most)
        if form is not None:
            found += 1
            assert_the_same(how, form, most)
    # Slopes at which a code changes are at least 1 / (2 most^2) apart: a shift 2 larger than twice the bits of the sums
    # is enough, and the rest of the product takes 5 bits more than the codes.
    if 2 * bound_bits + bits <= 22:
        assert found == 60
    if bound_bits <= 11:
        assert found >= 55
    if bound_bits == 31 and bits > 4:
        assert found < 60


def test_the_first_shift_that_any_multiplier_allows_is_found() -> None:
    """All multipliers tried, one by one."""
    random = np.random.default_rng(0)
    for _ in range(150):
        bits, bound = int(random.integers(1, 4)), int(random.integers(1, 60))
        how = requantization([int(random.integers(1, 2**31))], [int(random.integers(26, 40))], bits)
        form = narrow(how, np.array([bound]))
        sums = list(range(bound + 1))
        expected = exact(how, 0, sums)

        def first(shift: int, bits: int = bits, sums: list[int] = sums, expected: list[int] = expected) -> int | None:
            half, largest = 1 << (shift - 1), 2**bits - 1
            fitting = (
                m
                for m in range(2 ** (shift + bits) + 1)
                if [min((each * m + half) >> shift, largest) for each in sums] == expected
            )
            return next(fitting, None)

        assert form is not None
        shift = next(k for k in range(1, 16) if first(k) is not None)
        assert (int(form.shift), int(form.multiplier[0])) == (shift, first(shift)), how


@pytest.mark.parametrize(
    ("multiplier", "shift", "bits", "most"),
    [
        (0, 1, 8, 2**31 - 1),  # a dead channel
        (0, 62, 1, 5),
        (2**30, 61, 1, 2**31 - 1),  # reaches 1 at its middle
        (2**31 - 1, 62, 8, 2**30),
        (1, 62, 8, 2**31 - 1),  # no sum reaches a code
        (1, 1, 8, 2**24),
        (1, 31, 1, 2**31 - 1),
        (2**31 - 1, 1, 8, 3),  # everything is cut off
        (2**30, 30, 8, 255),  # the code is the sum
        (2**30 + 1, 31, 4, 2**20),  # just more than a half
        (2**30, 31, 4, 2**20),
        (2**31 - 1, 40, 1, 1),
        (12345, 20, 8, 0),
        (12345, 20, 8, -7),  # no sum is positive
    ],
)
def test_extremes_have_a_narrow_form(multiplier: int, shift: int, bits: int, most: int) -> None:
    how, bound = requantization([multiplier], [shift], bits), np.array([most])
    form = narrow(how, bound)
    assert form is not None
    assert_the_same(how, form, bound)


def test_a_shift_beyond_31_is_not_narrow() -> None:
    """Code 1 begins at 2^30 + 1: at a shift of 31 a multiplier of 1 is too large by one sum."""
    how = requantization([2**31 - 1], [62], 1)
    assert exact(how, 0, [2**30, 2**30 + 1]) == [0, 1]
    assert narrow(how, np.array([2**30])) is not None
    assert narrow(how, np.array([2**30 + 1])) is None


@pytest.mark.parametrize("most", [2**26, 2**31 - 1])
def test_codes_of_8_bits_of_large_sums_need_64(most: int) -> None:
    scale = 250 / most
    shift = int(np.floor(31 - np.log2(scale))) - 1
    assert narrow(requantization([int(scale * 2.0**shift)], [shift], 8), np.array([most])) is None


def test_a_product_may_fill_32_bits_and_not_more() -> None:
    how = requantization([1], [1], 8)  # half the sum: 1 is its only multiplier at shift 1
    most = UINT32_MAX - 1  # whose product, and a half, just fits
    assert narrow(how, np.array([most])) is not None
    assert narrow(how, np.array([most + 1])) is None


def test_thresholds_are_the_first_sums_with_a_code() -> None:
    random = np.random.default_rng(0)
    how = requantization(random.integers(2**27, 2**29, 5).tolist(), random.integers(30, 36, 5).tolist(), 3)
    most = np.array([50, 100, 150, 200, 400])
    for channel, row in enumerate(thresholds(how, most)):
        codes = np.array(exact(how, channel, list(range(int(most[channel]) + 1))))
        expected = [int(np.argmax(codes >= j)) if codes[-1] >= j else len(codes) for j in range(1, 8)]
        assert row.tolist() == expected


def test_factors_of_two_are_dropped_from_exact_multipliers() -> None:
    multiplier, shift = reduced(requantization([2**30, 3 * 2**20, 2**30, 5, 0], [40, 50, 5, 33, 62], 8))
    assert multiplier.tolist() == [1, 3, 2**26, 5, 0]
    assert shift.tolist() == [10, 30, 1, 33, 1]


def test_no_sum_is_larger_than_its_bound() -> None:
    model = random_model("affine", (8, 2, 5, 3), 4)
    x = random_images(30).astype(np.int64)
    for layer in model.products[:2]:
        bound = largest_sums(layer)
        assert (layer.accumulate(x).max((0, 2, 3)) <= bound).all()
        best = np.where(layer.centered > 0, layer.input_max, 0)  # the input that each channel likes best
        assert [int((best[c] * layer.centered[c]).sum() + layer.bias[c]) for c in range(len(best))] == bound.tolist()
        x = layer.requantization.apply(layer.accumulate(x)) if layer.requantization else x


def mixed(wide: bool) -> IntegerModel:
    """A network of which a layer needs 64 bits, if wide, and the others do not."""
    return random_model(bits=(4, 8 if wide else 4, 4, 4), act_bits=(4, 8 if wide else 4, 4), widths=(7, 9, 11))


@pytest.mark.parametrize("wide", [False, True])
def test_only_the_layers_that_need_64_bits_have_them(wide: bool) -> None:
    if find_compiler() is None:
        pytest.skip("no C compiler")
    model = mixed(wide)
    scalings = [layer.scaling for layer in CNetwork(model, "packed").layers]
    assert [how.wide for how in scalings if how] == [False, wide, wide]
    images = random_images(40)
    for layout, flags in (("packed", ()), ("int8", (NATIVE,)), ("int8", (NATIVE, f"-D{PORTABLE}"))):
        files = c_sources(model, layout)
        source = files["model.c"].decode()
        assert f"#define WIDE_PRODUCTS {64 if wide else 0} " in source
        assert ("conv2_shifts" in source) == wide
        assert "conv1_shifts" not in source
        with compiled_c(files, *flags) as run:
            assert np.array_equal(run(images), model.run(images)), (layout, flags)


HALVES = """
#include <stdint.h>
#include <stdio.h>
#define WIDE_PRODUCTS 48
struct layer { const uint32_t *multiplier; const uint8_t *shifts; uint8_t shift, largest; };
#include "%s"
int main(void) {
    unsigned long multiplier, shift, largest, sum;
    while (scanf("%%lu %%lu %%lu", &multiplier, &shift, &largest) == 3) {
        struct scale scale = {(uint32_t)multiplier, (uint32_t)shift, (uint32_t)largest, 1};
        uint64_t wrong = 0;
        for (sum = 0; sum < 65536; sum++) {
            const uint64_t code = ((uint64_t)sum * multiplier + ((uint64_t)1 << (shift - 1))) >> shift;
            wrong += code_of(scale, (int32_t)sum) != (code < largest ? code : largest);
        }
        printf("%%lu\\n", (unsigned long)wrong);
    }
    return 0;
}
"""


def test_products_in_two_halves_give_the_code_of_every_sum(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    (tmp_path / "halves.c").write_text(HALVES % (C_FOLDER / "requantize.c"))
    subprocess.run(["gcc", "-O2", "halves.c", "-o", "halves"], cwd=tmp_path, check=True, timeout=60)
    random = np.random.default_rng(0)
    cases = [(int(random.integers(1, 2**31)), k, 2 ** int(random.integers(1, 9)) - 1) for k in range(17, 49)]
    cases += [(1, 17, 255), (2**31 - 1, 17, 255), (2**31 - 1, 48, 255), (0, 40, 15), (2**16 - 1, 24, 255)]
    lines = "\n".join(" ".join(map(str, case)) for case in cases)
    done = subprocess.run([tmp_path / "halves"], input=lines, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0"] * len(cases)


def test_halves_are_for_sums_of_16_bits_and_shifts_of_17() -> None:
    cases = ((17, 65535), (48, 65535), (17, 65536), (16, 65535), (49, 65535))
    forms = [Scaling(np.array([5]), np.array([shift]), most) for shift, most in cases]
    assert [form.in_halves for form in forms] == [True, True, False, False, False]
    assert all(form.wide for form in forms)


def test_multipliers_that_always_give_code_0_do_not_prevent_halves() -> None:
    how = requantization([2**30 + 1, 2**31 - 1, 0], [38, 49, 62], 8)
    form = exact_form(how, 2**16 - 1)
    assert form.in_halves
    assert (form.multiplier.tolist(), form.shift.tolist()) == ([2**30 + 1, 0, 0], [38, 17, 17])
    assert set(exact(how, 1, list(range(2**16)))) == {0}
    assert not exact_form(how, 2**16).in_halves
    assert not exact_form(requantization([2**30 + 1], [16], 8), 100).in_halves


def test_equal_scales_that_are_powers_of_two_need_no_multiplier() -> None:
    model = random_model("pow2")
    model = with_layer(model, 0, requantization=Requantization(np.full(8, 2**30), np.full(8, 40), 4))
    how = CNetwork(model, "packed").layers[0].scaling
    assert how is not None
    assert (how.wide, set(how.multiplier.tolist()), int(how.shift)) == (False, {1}, 10)
