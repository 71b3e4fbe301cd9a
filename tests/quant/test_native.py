"""The compiled kernels against the plain ones they stand in for, on every shape, format and dtype of training."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from qattrain.errors import ConfigError
from qattrain.files import compiler as compiling
from qattrain.quant import kernels, native
from qattrain.quant.surrogates import SURROGATES

VALUES = (torch.float32, torch.bfloat16)
SHAPES = ((128, 20, 12, 12), (3, 50, 4, 4), (2, 7, 6, 10), (5, 16, 2, 2), (4, 9, 8, 8), (6, 37), (1, 3))


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    if compiling.find_compiler() is None:
        pytest.skip("no C compiler on this machine")


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def randn(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def steps(shape: tuple[int, ...], per_row: bool) -> Tensor:
    if not per_row:
        return torch.tensor(0.13)
    return 0.05 + randn((shape[0], *(1,) * (len(shape) - 1)), seed=5).abs().contiguous()


def native_only(kernel: Any, *args: Any) -> Any:
    result = native.NATIVE[kernel](*args)
    assert result is not None, "not covered"
    return result


def assert_close(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    # a sum may be added up in another order; nothing else may differ by more than float rounding
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (0, 1), (0, 255)])
def test_codes_are_the_same_numbers(shape: Any, per_row: bool, dtype: torch.dtype, low: int, high: int) -> None:
    args = (randn(shape), steps(shape, per_row), 0 if low else torch.tensor(3.0), low, high, dtype)
    assert torch.equal(native_only(kernels.grid_codes, *args), kernels.grid_codes(*args))


def test_codes_round_half_up_and_hold_the_step_at_its_smallest() -> None:
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, math.inf, -math.inf]])
    one = native_only(kernels.grid_codes, x, torch.tensor(1.0), 0, -8, 7, None)
    assert one.tolist() == [[-2, -1, 0, 1, 2, 3, 7, -8]]
    tiny = native_only(kernels.grid_codes, x * 2.0**-20, torch.tensor(0.0), 0, -8, 7, None)
    assert tiny.tolist() == one.tolist()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("surrogate", ["clipped", "identity"])
@pytest.mark.parametrize("rectify", [True, False])
def test_learned_step_gradients_are_the_same_numbers(
    shape: Any, per_row: bool, dtype: torch.dtype, surrogate: str, rectify: bool
) -> None:
    grid = (0, 15) if rectify else (-8, 7)
    args = (randn(shape, 1, dtype), randn(shape), steps(shape, per_row), *grid, 0.3, SURROGATES[surrogate], rectify)
    for one, other in zip(
        native_only(kernels.learned_step_gradients, *args), kernels.learned_step_gradients(*args), strict=True
    ):
        assert_close(one, other)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("surrogate", ["clipped", "identity"])
@pytest.mark.parametrize(("qmax", "rectify"), [(1, True), (15, True), (3, False)])
def test_gradients_of_a_learned_clip_are_the_same_numbers(
    shape: Any, dtype: torch.dtype, surrogate: str, qmax: int, rectify: bool
) -> None:
    args = (randn(shape, 1, dtype), randn(shape), torch.tensor(0.05), qmax, SURROGATES[surrogate], rectify)
    for one, other in zip(
        native_only(kernels.learned_clip_gradients, *args), kernels.learned_clip_gradients(*args), strict=True
    ):
        assert_close(one, other)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("surrogate", ["clipped", "identity"])
def test_staircase_gradients_are_the_same_numbers(
    shape: Any, per_row: bool, dtype: torch.dtype, surrogate: str
) -> None:
    scale = steps(shape, per_row)
    for unit, offset, low, high in (
        (scale, torch.tensor(2.0), 0, 7),
        (2.0, -0.5, -1, 0),
        (scale, 0, -1 / scale, 1 / scale),
    ):
        args = (randn(shape, 1, dtype), randn(shape), scale, unit, offset, low, high, SURROGATES[surrogate], per_row)
        assert_close(native_only(kernels.staircase_gradient, *args), kernels.staircase_gradient(*args))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize(("shape", "pool"), [(s, p) for s in SHAPES for p in (1, 2) if p == 1 or len(s) == 4])
@pytest.mark.parametrize("scaled", ["per channel", "one", "float layer", "half float"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_rescaling_and_its_gradients_are_the_same_numbers(
    shape: Any, dtype: torch.dtype, pool: int, scaled: str, with_bias: bool
) -> None:
    trailing, channels = len(shape) - 2, shape[1]
    acc = (randn(shape, 2) * 3).round().to(dtype)  # integers, with ties
    bias = randn((channels,), 3) * 0.1 if with_bias else None
    scale = None if scaled == "float layer" else 0.01 + randn((1 if scaled == "one" else channels,), 4).abs() * 0.01
    on_grid = scaled in ("per channel", "one")
    args = (acc, bias, scale, on_grid, trailing, pool)
    (y, winners), (expected, expected_winners) = native_only(kernels.rescale, *args), kernels.rescale(*args)
    assert_close(y, expected)
    assert (winners is None) == (expected_winners is None) == (pool == 1)
    assert winners is None or torch.equal(winners.float(), expected_winners.float())
    grad = randn(tuple(y.shape), 6, y.dtype)
    rest = (bias, scale, on_grid, trailing, pool, tuple(shape[-2:]), dtype)
    one = native_only(kernels.rescale_gradients, grad, winners, *rest)
    other = kernels.rescale_gradients(grad, expected_winners, *rest)
    assert_close(one[0], other[0])
    assert (one[1] is None) == (other[1] is None) == (bias is None)
    assert one[1] is None or torch.allclose(one[1], other[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "x",
    [
        randn((4, 6)).double(),
        randn((4, 6)).t(),
        torch.randn(3, 4, 5, 6).permute(0, 2, 1, 3),
        torch.randn(()),
        torch.randn(0, 3),
    ],
)
def test_what_is_not_covered_runs_plain(x: Tensor) -> None:
    step = torch.tensor(0.1, dtype=x.dtype)
    args = (x, step, 0, -8, 7, None)
    assert native.NATIVE[kernels.grid_codes](*args) is None
    assert torch.equal(native.run(True, kernels.grid_codes, *args), kernels.grid_codes(*args))


def test_a_surrogate_of_the_users_own_runs_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SURROGATES, "half", lambda grad, *_: grad / 2)
    x, g = randn((4, 6)), randn((4, 6), 1)
    args = (g, x, torch.tensor(0.1), -8, 7, 1.0, SURROGATES["half"], False)
    assert native.NATIVE[kernels.learned_step_gradients](*args) is None
    assert torch.equal(native.run(True, kernels.learned_step_gradients, *args)[0], g / 2 / 0.1)


def test_sums_are_equal_bit_for_bit_when_repeated() -> None:
    g, x, step = randn((64, 50, 4, 4), 1, torch.bfloat16), randn((64, 50, 4, 4)), torch.tensor(0.1)
    args = (g, x, step, 0, 15, 1.0, SURROGATES["clipped"], True)
    first = native_only(kernels.learned_step_gradients, *args)[1]
    assert all(torch.equal(first, native_only(kernels.learned_step_gradients, *args)[1]) for _ in range(50))


def test_without_a_compiler_compiling_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match="no C compiler: none of cc, gcc, clang"):
        compiling.shared_library("qattrain.quant", "native.c", ())


def test_a_compiler_that_fails_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"could not compile native.c: error: no such thing"):
        compiling.shared_library("qattrain.quant", "native.c", ())
    assert not list((tmp_path / "cache").rglob("*.so"))
