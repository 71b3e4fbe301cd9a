"""The explicit autograd functions against torch's own autograd, finite differences and the papers' closed forms."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qattrain.errors import ConfigError
from qattrain.layers.quantized import QuantConv2d
from qattrain.quant import functional
from qattrain.quant.functional import Conv2d, LearnedClip, LearnedStep, Linear, Rescale, Round, Staircase, TanhCodes
from qattrain.quant.grid import MIN_SCALE, QTensor, dequantize

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = st.sampled_from(list(TOLERANCE))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7919 * len(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


def grads(y: Tensor, inputs: list[Tensor], seed: int = 99) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, randn(*y.shape, seed=seed, dtype=y.dtype, grad=False))


def assert_same(one: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    tolerance = TOLERANCE[one.dtype]
    assert one.shape == other.shape
    for a, b in zip((one, *grads(one, inputs)), (other, *grads(other, inputs)), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.detach().abs().max())))


# --- Round -------------------------------------------------------------------------------------------------------


def test_round_is_half_up_also_for_negative_halves() -> None:
    v = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -2.51, 2.49, 0.0])
    assert Round.apply(v).tolist() == [-2, -1, 0, 1, 2, 3, -3, 2, 0]


def test_round_passes_the_gradient_unchanged() -> None:
    v, g = randn(5, 7), randn(5, 7, seed=1, grad=False)
    assert torch.equal(torch.autograd.grad(Round.apply(v), v, g)[0], g)


def test_round_equals_the_detach_trick_in_value_and_gradient() -> None:
    v = (4 * randn(100, grad=False)).requires_grad_()
    trick = v + (torch.floor(v + 0.5) - v).detach()
    torch.testing.assert_close(Round.apply(v), trick, rtol=0, atol=1e-14)
    assert torch.equal(*(torch.autograd.grad((y * y).sum(), v)[0].round(decimals=9) for y in (Round.apply(v), trick)))


def test_round_uses_the_surrogate_it_is_given_and_its_range() -> None:
    v = torch.tensor([-3.0, -1.0, 0.4, 2.0, 2.1], requires_grad=True)
    Round.apply(v, "clipped", -1.0, 2.0).sum().backward()
    assert v.grad is not None
    assert v.grad.tolist() == [0, 1, 1, 1, 0]


# --- Linear and Conv2d -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_linear_passes_gradcheck(bias: bool, leading: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(Linear.apply, (randn(*leading, 5), randn(4, 5), randn(4) if bias else None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 0), (1, 2)])
def test_conv2d_passes_gradcheck(bias: bool, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    inputs = (randn(1, 2, 4, 3), randn(2, 2, 3, 2), randn(2) if bias else None, stride, padding)
    assert torch.autograd.gradcheck(Conv2d.apply, inputs)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9), st.integers(1, 9), st.booleans(), DTYPES)
def test_linear_equals_torch_in_output_and_every_gradient(
    leading: list[int], fan_in: int, out: int, bias: bool, dtype: torch.dtype
) -> None:
    inputs = [randn(*leading, fan_in, dtype=dtype), randn(out, fan_in, seed=1, dtype=dtype)]
    inputs += [randn(out, seed=2, dtype=dtype)] if bias else []
    assert_same(functional.linear(*inputs), F.linear(*inputs), inputs)


@settings(max_examples=100, deadline=None, database=None)
@given(st.data(), st.integers(1, 3), PAIRS, PAIRS, PAIRS, st.booleans(), DTYPES)
def test_conv2d_equals_torch_in_output_and_every_gradient(
    data: Any, batch: int, channels: Any, kernel: Any, stride: Any, bias: bool, dtype: torch.dtype
) -> None:
    padding = (data.draw(st.integers(0, 4), "ph"), data.draw(st.integers(0, 4), "pw"))
    size = [data.draw(st.integers(max(1, k - 2 * p), 8), "size") for k, p in zip(kernel, padding, strict=True)]
    inputs = [randn(batch, channels[0], *size, dtype=dtype), randn(channels[1], channels[0], *kernel, dtype=dtype)]
    inputs += [randn(channels[1], dtype=dtype)] if bias else []
    ours = functional.conv2d(inputs[0], inputs[1], inputs[2] if bias else None, stride, padding)
    assert_same(ours, F.conv2d(*inputs, stride=stride, padding=padding), inputs)


@pytest.mark.parametrize("function", [Linear, Conv2d])
@pytest.mark.parametrize("needed", [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)])
def test_only_needed_gradients_are_computed(function: Any, needed: tuple[bool, bool, bool]) -> None:
    shapes = [(2, 3), (4, 3), (4,)] if function is Linear else [(2, 3, 5, 5), (4, 3, 2, 2), (4,)]
    inputs = [randn(*shape, grad=False) for shape in shapes]
    ctx = SimpleNamespace(
        needs_input_grad=needed, save_for_backward=lambda *saved: setattr(ctx, "saved_tensors", saved)
    )
    y = function.forward(ctx, *inputs)
    returned = function.backward(ctx, torch.ones_like(y))
    assert [g is not None for g in returned] == list(needed)
    assert all(g is None or g.shape == x.shape for g, x in zip(returned, inputs, strict=True))


def test_no_graph_is_recorded_where_no_input_needs_a_gradient() -> None:
    assert functional.conv2d(randn(1, 1, 4, 4, grad=False), randn(1, 1, 2, 2, grad=False)).grad_fn is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [(2, 2), (1, 0), (3, 1), (2, (0, 1)), ((1, 2), 1), ((2, 2), (2, 2))])
def test_conv2d_takes_plain_numbers_and_pairs_as_torch_does(bias: bool, stride: Any, padding: Any) -> None:
    x, w = randn(2, 3, 9, 8, dtype=torch.float32), randn(4, 3, 3, 2, dtype=torch.float32)
    inputs = [x, w, randn(4, dtype=torch.float32)][: 3 if bias else 2]
    b = inputs[2] if bias else None
    assert_same(functional.conv2d(x, w, b, stride, padding), F.conv2d(x, w, b, stride, padding), inputs)
    assert_same(Conv2d.apply(x, w, b, stride, padding), F.conv2d(x, w, b, stride, padding), inputs)


def test_linear_takes_two_arguments_and_a_matrix_needs_the_gradient_that_arrives() -> None:
    x, w = randn(5, 3, dtype=torch.float32), randn(4, 3, dtype=torch.float32)
    assert_same(functional.linear(x, w), F.linear(x, w), [x, w])
    with pytest.raises(RuntimeError, match="scalar"):
        functional.linear(x, w).backward()
    functional.linear(x, w).backward(torch.ones(5, 4))
    torch.testing.assert_close(w.grad, x.detach().sum(0).expand(4, 3))


@pytest.mark.parametrize("x_channels", [1, 2])
def test_conv2d_refuses_channels_that_do_not_fit_as_torch_does(x_channels: int) -> None:
    x, weight = randn(1, x_channels, 5, 5), randn(2, 3, 3, 3)
    with pytest.raises(RuntimeError):
        F.conv2d(x, weight)
    with pytest.raises((RuntimeError, AssertionError)):
        functional.conv2d(x, weight)


# --- learned step ------------------------------------------------------------------------------------------------


def closed_form(x: Tensor, s: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_hat, d x_hat / d x, d x_hat / d s: Esser et al. 2020, eq. 1 and 2, 5, 3 (no element lies on a bound)."""
    v = x / s
    inside = (v > low) & (v < high)
    step = torch.where(inside, -v + torch.floor(v + 0.5), torch.where(v <= low, float(low), float(high)))
    return torch.floor(v + 0.5).clamp(low, high) * s, inside.to(x.dtype), step


def fake_quantize_learned(
    x: Tensor, step: Tensor, qmin: int, qmax: int, gradient_scale: float = 1.0, surrogate: str = "clipped"
) -> Tensor:
    """x_hat = s * clip(round(x / s)), real values with LSQ's gradients: the textbook form of `LearnedStep`."""
    codes = LearnedStep.apply(x, step, qmin, qmax, gradient_scale, surrogate)
    return dequantize(QTensor(codes, step.detach().clamp_min(MIN_SCALE)))


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-2, 1), (0, 15), (0, 1)])
@pytest.mark.parametrize("shape", [(), (3, 1, 1, 1), (1, 2, 1, 1)])
def test_learned_step_has_the_gradients_of_the_paper(low: int, high: int, shape: tuple[int, ...]) -> None:
    x = (8 * randn(3, 2, 5, 5, grad=False)).requires_grad_()
    step = (0.3 + randn(*shape, grad=False).abs()).requires_grad_()
    value, by_x, by_s = closed_form(x.detach(), step.detach(), low, high)
    assert (by_x == 0).any()
    assert (by_x == 1).any()
    g = randn(3, 2, 5, 5, seed=5, grad=False)
    x_hat = fake_quantize_learned(x, step, low, high, gradient_scale=0.25)
    grad_x, grad_s = torch.autograd.grad(x_hat, (x, step), g)
    torch.testing.assert_close(x_hat, value)
    torch.testing.assert_close(grad_x, g * by_x)
    assert grad_s.shape == step.shape
    torch.testing.assert_close(grad_s, 0.25 * (g * by_s).sum_to_size(shape))


def test_gradient_scale_touches_the_step_alone() -> None:
    x, step = randn(20), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    one, half = (grads(fake_quantize_learned(x, step, -4, 3, scale), [x, step]) for scale in (1.0, 0.5))
    assert torch.equal(one[0], half[0])
    torch.testing.assert_close(one[1] / 2, half[1])


def test_identity_surrogate_lets_the_gradient_pass_where_the_codes_have_saturated() -> None:
    x = torch.tensor([-100.0, 0.3, 100.0], requires_grad=True)
    y = fake_quantize_learned(x, torch.tensor(1.0), -4, 3, surrogate="identity")
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [0.0, -1.0, 2.0**-30])
def test_a_step_below_the_smallest_scale_acts_as_the_smallest_scale(step: float) -> None:
    x = torch.tensor([-3.2, 1.4, 100.0]) * MIN_SCALE
    assert LearnedStep.apply(x, torch.tensor(step), -8, 7, 1.0, "clipped").tolist() == [-3, 1, 7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learned_step_never_rounds_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.linspace(0, 25, 500).to(dtype).requires_grad_()
    codes = LearnedStep.apply(x, torch.tensor(0.1), 0, 255, 1.0, "clipped")
    assert codes.dtype == torch.float32
    assert torch.equal(codes, torch.floor(x.detach().float() / 0.1 + 0.5).clamp(0, 255))


# --- learned clip and tanh ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("qmax", [1, 3, 15, 255])
@pytest.mark.parametrize("rectify", [True, False])
def test_learned_clip_has_the_gradients_of_the_paper(qmax: int, rectify: bool) -> None:
    x, g = (3 * randn(4, 50, grad=False)).requires_grad_(), randn(4, 50, seed=5, grad=False)
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    codes = LearnedClip.apply(x, alpha, qmax, "clipped", rectify)
    step = alpha.detach() / qmax
    torch.testing.assert_close(codes * step, torch.floor(x.clamp(torch.tensor(0.0), alpha) / step + 0.5) * step)
    grad_x, grad_alpha = torch.autograd.grad(codes * step, (x, alpha), g)
    plain = 0.5 * (x.abs() - (x - alpha).abs() + alpha)  # the paper's eq. 1
    expected_x, expected_alpha = torch.autograd.grad(plain, (x, alpha), g)
    torch.testing.assert_close(grad_x, expected_x)
    torch.testing.assert_close(grad_alpha, expected_alpha)


def test_a_clipping_level_below_the_smallest_acts_as_the_smallest() -> None:
    x = torch.tensor([1.4, 100.0]) * MIN_SCALE
    assert LearnedClip.apply(x, torch.tensor(-1.0), 15, "clipped").tolist() == [1, 15]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("surrogate", ["clipped", "tanh"])
def test_tanh_codes_have_the_gradient_of_autograd_through_the_largest_too(bits: int, surrogate: str) -> None:
    x, g, levels = randn(4, 7), randn(4, 7, seed=3, grad=False), 2**bits - 1
    with torch.no_grad():
        x[0, 0], x[1, 1] = 3.0, -3.0  # the two largest share the gradient
    codes = TanhCodes.apply(x, bits, surrogate)
    t = torch.tanh(x)
    v = levels * (t / (2 * t.abs().amax()) + 0.5)
    reference = 2 * Round.apply(v, surrogate, 0, levels) - levels
    assert torch.equal(codes, reference)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (codes, reference)), rtol=1e-10, atol=1e-10)


# --- Staircase, Rescale, the factor 2^n --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_staircase_returns_the_codes_and_divides_the_surrogate_gradient_by_the_scale(shape: tuple[int, ...]) -> None:
    x, codes, g = (2 * randn(3, 50, grad=False)).requires_grad_(), torch.ones(3, 50).double(), randn(3, 50, seed=2)
    scale, unit = 0.5 + randn(*shape, grad=False).abs(), 1.5 + randn(*shape, grad=False).abs()
    y = Staircase.apply(x, codes, scale, unit, 0, -1, 1, "clipped")
    assert torch.equal(y, codes)
    inside = (x.detach().abs() <= unit).double()
    assert 0 < inside.mean() < 1
    torch.testing.assert_close(torch.autograd.grad(y, x, g.detach())[0], g.detach() * inside / scale)


@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (5, 3, 4, 4), (3, 4, 4)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_rescale_equals_plain_autograd(shape: tuple[int, ...], per_channel: bool, bias: bool) -> None:
    trailing = 2 if shape[-1] == 4 else 0
    view = (-1, *(1,) * trailing)
    acc, b = randn(*shape), randn(3, seed=4)
    scale = 0.1 + randn(3 if per_channel else 1, grad=False).abs()
    reference = (acc + b.view(view) if bias else acc) * scale.view(view)
    inputs = [acc, b] if bias else [acc]
    # off the grid the bias is what was given, so that plain arithmetic is the reference
    codes = b * scale
    assert_same(Rescale.apply(acc, codes if bias else None, scale, False, trailing), reference, inputs)


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(6, 6), (7, 8)])
def test_rescale_pools_as_torch_does_ties_included(pool: int, bias: bool, sides: tuple[int, int]) -> None:
    acc = randn(2, 3, *sides, grad=False).mul(2).round().requires_grad_()  # few different integers: many ties
    b, scale = randn(3, seed=4), 0.1 + randn(3, grad=False).abs()
    view, inputs = (-1, 1, 1), [acc, b] if bias else [acc]
    rounded = Round.apply(b / scale) if bias else torch.zeros(3, dtype=torch.float64)
    reference = (F.max_pool2d(acc, pool) + rounded.view(view)) * scale.view(view)
    assert_same(Rescale.apply(acc, b if bias else None, scale, True, 2, pool), reference, inputs)


def test_rescale_of_a_float_layer_only_pools_and_adds_the_bias() -> None:
    acc, b = randn(2, 3, 4, 4), randn(3, seed=4)
    assert_same(Rescale.apply(acc, b, None, False, 2, 2), F.max_pool2d(acc, 2) + b.view(-1, 1, 1), [acc, b])


@pytest.mark.parametrize("n", [-1, 0, 4, 7])
def test_divided_rounding_has_gradient_one_and_raw_rounding_the_factor_two_to_the_n(n: int) -> None:
    w = randn(50)
    divided = torch.autograd.grad((2.0**-n * Round.apply(2.0**n * w)).sum(), w)[0]
    raw = torch.autograd.grad(Round.apply(2.0**n * w).sum(), w)[0]
    assert torch.equal(divided, torch.ones_like(w))
    assert torch.equal(raw, torch.full_like(w, 2.0**n))


@pytest.mark.parametrize("option", [("groups", 2), ("dilation", 2), ("padding_mode", "reflect"), ("padding", "same")])
def test_explicit_ops_refuse_what_they_have_not_by_name(option: tuple[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{option[0]}=.*ops='torch'"):
        QuantConv2d(2, 2, 3, **dict([option]), ops="explicit")
