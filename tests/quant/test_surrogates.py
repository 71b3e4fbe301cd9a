"""SURROGATES: each entry's closed form, and that changing the table changes what training sees."""

import math

import pytest
import torch
from torch import Tensor

from qattrain.errors import ConfigError
from qattrain.layers.quantized import QuantLinear, QuantReLU
from qattrain.quant import QUANTIZERS, SURROGATES, activation_quantizer, functional, weight_quantizer

V = torch.linspace(-4, 4, 1601, dtype=torch.float64) + 1e-4  # on no code, no threshold
LOW, HIGH = -2.0, 3.0
INSIDE = (V >= LOW) & (V <= HIGH)


def derivative(name: str, v: Tensor = V, low: float = LOW, high: float = HIGH) -> Tensor:
    return SURROGATES[name](torch.ones_like(v), v, low, high)


def smooth_staircase(v: Tensor, sharpness: float = 2.0) -> Tensor:
    """Differentiable Soft Quantization's staircase: floor(v) + 1/2 + tanh(k (v - floor(v) - 1/2)) / (2 tanh(k / 2))."""
    u = v - torch.floor(v) - 0.5
    return torch.floor(v) + 0.5 + torch.tanh(sharpness * u) / (2 * math.tanh(sharpness / 2))


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_is_linear_in_the_gradient_and_keeps_its_shape_and_dtype(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        v, g = V.to(dtype), torch.randn(V.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        once, twice = (SURROGATES[name](factor * g, v, LOW, HIGH) for factor in (1, 2))
        assert once.shape == g.shape
        assert once.dtype == dtype
        torch.testing.assert_close(twice, 2 * once)
        assert bool(once.isfinite().all())
        torch.testing.assert_close(once, g * derivative(name, v))


@pytest.mark.parametrize("name", ["identity", "clipped", "tanh", "polynomial"])
def test_each_of_ours_has_mean_derivative_one_over_a_step_inside_the_range(name: str) -> None:
    v = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000 + 1
    assert float(derivative(name, v).mean()) == pytest.approx(1, abs=1e-6)


def test_identity_is_one_everywhere() -> None:
    assert bool((derivative("identity") == 1).all())


def test_clipped_is_one_inside_the_range_bounds_included_and_zero_outside() -> None:
    assert torch.equal(derivative("clipped"), INSIDE.double())
    assert derivative("clipped", torch.tensor([LOW, HIGH])).tolist() == [1, 1]


def test_tanh_is_the_derivative_of_the_smooth_staircase_inside_and_zero_outside() -> None:
    h = 1e-6
    slope = (smooth_staircase(V + h) - smooth_staircase(V - h)) / (2 * h)
    torch.testing.assert_close(derivative("tanh"), torch.where(INSIDE, slope, 0.0), rtol=1e-6, atol=1e-6)


def test_tanh_is_steepest_at_the_rounding_threshold_and_flattest_on_a_code() -> None:
    at = derivative("tanh", torch.tensor([0.5, 0.7, 1.0], dtype=torch.float64))
    assert at[0] > at[1] > at[2] > 0


def test_polynomial_is_the_sum_of_a_triangle_two_steps_wide_at_every_threshold() -> None:
    thresholds = torch.arange(LOW, HIGH, dtype=torch.float64) + 0.5
    triangles = (1 - (V[:, None] - thresholds).abs()).clamp_min(0)
    torch.testing.assert_close(derivative("polynomial"), triangles.sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("name", ["lsq", "affine", "pow2", "dorefa", "pact"])
def test_behind_a_relu_only_polynomial_reaches_below_zero_and_no_further_than_half_a_step(name: str, bits: int) -> None:
    x = torch.linspace(-2, 2, 4001).view(1, -1)
    below = {}
    for surrogate in SURROGATES:
        quantizer = activation_quantizer(name, bits, surrogate, rectify=True)
        assert quantizer is not None
        leaf = x.clone().requires_grad_()
        q = quantizer(leaf)
        q.codes.sum().backward()
        assert leaf.grad is not None
        assert q.scale is not None
        reached = x[(leaf.grad != 0) & (x <= 0)] / q.scale
        below[surrogate] = float(reached.min()) if reached.numel() else 0.0
    assert below.pop("polynomial") == pytest.approx(-0.5, abs=0.02)
    assert set(below.values()) == {0.0}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_new_entry_of_the_table_changes_the_gradient_of_every_quantizer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def half(grad: Tensor, v: Tensor, low: float, high: float) -> Tensor:  # noqa: ARG001
        seen.append(v)
        return grad / 2

    monkeypatch.setitem(SURROGATES, "half", half)
    gradients = []
    for surrogate in ("identity", "half"):
        quantizer = weight_quantizer(name, QUANTIZERS[name].default_bits, (3, 1), surrogate)
        assert quantizer is not None
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
        quantizer(x).codes.sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert len(seen) == 1
    assert float(gradients[0].abs().min()) > 0
    torch.testing.assert_close(gradients[0] / 2, gradients[1])


def test_replacing_an_entry_of_the_table_acts_on_functions_already_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    v = torch.tensor([0.3, 5.2], requires_grad=True)
    y = functional.Round.apply(v, "identity")
    monkeypatch.setitem(SURROGATES, "identity", lambda grad, v, low, high: 3 * grad)  # noqa: ARG005
    assert torch.autograd.grad(y.sum(), v)[0].tolist() == [3, 3]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_unknown_surrogate_is_refused_with_the_allowed_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="identity, clipped, tanh, polynomial") as caught:
        weight_quantizer(name, QUANTIZERS[name].default_bits, (), "sigmoid")
    assert "sigmoid" in str(caught.value)
    with pytest.raises(ConfigError, match="identity, clipped, tanh, polynomial"):
        activation_quantizer(name, 4, "sigmoid")


@pytest.mark.parametrize("bits", [4, 32])
def test_layers_refuse_an_unknown_surrogate_also_where_they_quantize_nothing(bits: int) -> None:
    with pytest.raises(ConfigError, match="identity, clipped, tanh, polynomial"):
        QuantLinear(3, 2, bits=bits, surrogate="sigmoid")
    with pytest.raises(ConfigError, match="identity, clipped, tanh, polynomial"):
        QuantReLU(bits, surrogate="sigmoid")
