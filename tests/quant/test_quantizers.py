"""Every quantizer of the table at every width, as weights and as activations; then each one's own formula.

A newcomer is judged by what it declares: its widths, its grid, whether it has one scale, whether codes stand for nearby
values, whether it draws them at random. Of the seven known here, what they declare is itself compared.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qattrain.errors import ConfigError
from qattrain.integer.model import weight_grid
from qattrain.quant import QUANTIZERS, QTensor, activation_quantizer, dequantize, weight_quantizer
from qattrain.quant.base import RangeQuantizer
from qattrain.quant.functional import Staircase
from qattrain.quant.grid import MIN_SCALE
from qattrain.quant.quantizers import LSQQuantizer

ALLOWED = {  # at one bit all but ternary take binary weights
    "lsq": range(1, 9), "affine": range(1, 9), "pow2": range(1, 9), "dorefa": range(1, 9), "pact": range(1, 9),
    "ternary": [2], "binary": [1],
}  # fmt: skip
TANH = ("dorefa", "pact")  # whose weights are DoReFa's


def allowed_bits(name: str) -> list[int]:
    """Of its weights; a newcomer's are those that it, or whoever takes its weights, declares, and 1: binary."""
    taker = QUANTIZERS[QUANTIZERS[name].weights or name]
    return list(ALLOWED[name]) if name in ALLOWED else sorted({1, *taker.weight_bits})


WEIGHTS = [(name, bits) for name in QUANTIZERS for bits in allowed_bits(name)]
ACTIVATIONS = [(name, bits) for name in QUANTIZERS for bits in range(1, 9)]
SHAPE = (3, 1, 1, 1)
GAUSSIAN = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "gaussian": GAUSSIAN * torch.tensor([0.1, 1, 9]).view(SHAPE),
    "zeros": torch.zeros(3, 4, 5, 5),
    "dead channel": GAUSSIAN * torch.tensor([1.0, 0, 1]).view(SHAPE),
    "constant": torch.full((3, 4, 5, 5), 0.37),
    "negative constant": torch.full((3, 4, 5, 5), -0.37),
    "tiny": GAUSSIAN * 1e-9,
}


def codes_of(name: str, bits: int) -> list[int]:
    """All codes of a weight."""
    if name not in ALLOWED:
        return list(weights(name, bits).grid)
    if name in ("binary", *TANH) or bits == 1:
        return list(range(1 - 2**bits, 2**bits, 2))
    if name == "ternary":
        return [-1, 0, 1]
    return list(range(2**bits)) if name == "affine" else list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def weights(name: str, bits: int, shape: tuple[int, ...] = SHAPE, n: int | None = None) -> Any:
    return weight_quantizer(name, bits, shape, fraction_bits=n)


def activations(name: str, bits: int, signed: bool = False) -> Any:
    return activation_quantizer(name, bits, signed=signed)


def largest_error(quantizer: Any, q: QTensor) -> Tensor:
    """Of a value that is not clipped: half a step, or a whole one where rounding is up or down at random."""
    assert q.scale is not None
    return q.scale / (1 if quantizer.random and quantizer.training else 2) * (1 + 1e-4)


def unclipped(x: Tensor, q: QTensor, low: int, high: int) -> Tensor:
    v = x / q.scale + q.zero_point
    return (v >= low) & (v <= high)


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize(("name", "bits"), WEIGHTS)
def test_weight_codes_scale_and_gradients_hold_for_every_tensor(name: str, bits: int, kind: str) -> None:
    x, allowed = TENSORS[kind].clone().requires_grad_(), codes_of(name, bits)
    quantizer = weights(name, bits)
    q = quantizer(x)
    assert set(q.codes.unique().tolist()) <= set(allowed)
    assert (quantizer.qmin, quantizer.qmax, len(quantizer.grid)) == (allowed[0], allowed[-1], len(allowed))
    assert q.scale.shape == (() if quantizer.one_scale else SHAPE)
    assert name not in ALLOWED or quantizer.one_scale == (name in ("affine", *TANH) and bits > 1)
    assert name not in ALLOWED or quantizer.approximates == (name not in TANH or bits == 1)
    assert name not in ALLOWED or not quantizer.random
    assert not q.scale.requires_grad
    assert bool(q.scale.isfinite().all())
    assert bool((q.scale >= MIN_SCALE).all())
    if len(allowed) > 3 and quantizer.approximates:
        error = (dequantize(q) - x).abs() - largest_error(quantizer, q)
        assert bool((error <= 0)[unclipped(x, q, allowed[0], allowed[-1])].all())
    dequantize(q).sum().backward()
    for tensor in (x, *quantizer.parameters()):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
    assert name not in ALLOWED or len(list(quantizer.parameters())) == (name == "lsq" and bits > 1)


@pytest.mark.parametrize(("name", "bits"), ACTIVATIONS)
def test_activation_codes_behind_relu_are_unsigned_with_zero_point_zero(name: str, bits: int) -> None:
    quantizer = activations(name, bits)
    for x in TENSORS.values():
        x = torch.relu(x).requires_grad_()  # noqa: PLW2901
        q = quantizer(x)
        assert torch.equal(q.codes, q.codes.round())
        assert 0 <= q.codes.min() <= q.codes.max() <= 2**bits - 1
        assert (quantizer.qmin, quantizer.qmax, len(quantizer.grid)) == (0, 2**bits - 1, 2**bits)
        assert float(q.zero_point) == 0
        assert q.scale.shape == ()
        assert float(q.scale) >= MIN_SCALE
        inside = unclipped(x, q, 0, 2**bits - 1)
        assert bool(((dequantize(q) - x).abs() <= largest_error(quantizer, q))[inside].all())
        (dequantize(q) ** 2).sum().backward()
        for tensor in (x, *quantizer.parameters()):
            assert tensor.grad is not None
            assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bits_that_a_quantizer_cannot_have_are_refused_with_the_allowed_ones(name: str) -> None:
    for bits in set(range(-1, 10)) | {16, 64}:
        if bits in allowed_bits(name):
            weights(name, bits)
            continue
        with pytest.raises(
            ConfigError, match=f"{bits} bits.*allowed.*{', '.join(map(str, QUANTIZERS[name].weight_bits))}"
        ):
            weight_quantizer(name, bits, ())
    assert list(QUANTIZERS)[: len(ALLOWED)] == list(ALLOWED)
    with pytest.raises(ConfigError, match=f"allowed: {', '.join(QUANTIZERS)}"):
        weight_quantizer(name + "x", 4, ())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_32_bits_mean_no_quantizer(name: str) -> None:
    assert weight_quantizer(name, 32, ()) is activation_quantizer(name, 32) is None


@pytest.mark.parametrize(
    ("name", "bits", "role"), [(*w, "weight") for w in WEIGHTS] + [(*a, "act") for a in ACTIVATIONS]
)
def test_a_state_dict_reproduces_the_codes_in_evaluation(name: str, bits: int, role: str) -> None:
    one, other = (weights(name, bits) if role == "weight" else activations(name, bits) for _ in range(2))
    seen, x = TENSORS["gaussian"], TENSORS["dead channel"]
    for batch in (seen, 2 * seen):
        one(batch if role == "weight" else batch.relu())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    a, b = one.eval()(x), other.eval()(x)
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scale, b.scale)
    assert torch.equal(torch.as_tensor(a.zero_point), torch.as_tensor(b.zero_point))


@pytest.mark.parametrize("name", ["lsq", "affine", "pow2", "pact"])
def test_loading_a_fresh_state_dict_makes_a_used_quantizer_fresh_again(name: str) -> None:
    used, fresh = activations(name, 4), activations(name, 4)
    used(TENSORS["gaussian"].relu())
    used.load_state_dict(copy.deepcopy(fresh.state_dict()))
    x = TENSORS["constant"]
    assert torch.equal(used(x).scale, fresh(x).scale)


@pytest.mark.parametrize("name", ["affine", "pow2"])
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_ranges_are_observed_in_training_and_never_in_evaluation(name: str, role: str) -> None:
    quantizer = weights(name, 4) if role == "weight" else activations(name, 4, signed=True)
    assert isinstance(quantizer, RangeQuantizer)
    x = TENSORS["gaussian"]
    quantizer(x)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()(100 * x)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())
    quantizer.train()(100 * x)
    assert not torch.equal(before["high"], quantizer.high)
    assert not torch.equal(before["low"], quantizer.low)


@pytest.mark.parametrize("name", ["affine", "pow2"])
def test_activation_ranges_are_moving_averages_of_batch_extremes_and_weight_ranges_the_latest(name: str) -> None:
    act, weight = activations(name, 4, signed=True), weights(name, 4, ())
    batches = [torch.tensor([-1.0, 3.0]), torch.tensor([-5.0, 1.0]), torch.tensor([2.0, 4.0])]
    for batch in batches:
        act(batch)
        weight(batch)
    low, high = -1.0, 3.0
    for new_low, new_high in ((-5.0, 1.0), (0.0, 4.0)):  # the third range is widened to hold 0
        low, high = 0.95 * low + 0.05 * new_low, 0.95 * high + 0.05 * new_high
    assert [float(act.low), float(act.high)] == pytest.approx([low, high])  # type: ignore[arg-type]
    assert [float(weight.low), float(weight.high)] == [0, 4]  # type: ignore[arg-type]


def test_lsq_starts_at_twice_the_mean_magnitude_over_root_qmax_and_scales_its_step_gradient() -> None:
    x = TENSORS["gaussian"]
    weight, act = weights("lsq", 4), activations("lsq", 4)
    expected = 2 * x.abs().mean((1, 2, 3)) / math.sqrt(7)
    torch.testing.assert_close(weight(x).scale.flatten(), expected)
    assert float(act(x.relu()).scale) == pytest.approx(2 * float(x.relu().mean()) / math.sqrt(15), rel=1e-5)
    for quantizer, data, qmax, elements in ((weight, x, 7, 100), (act, x.relu(), 15, 100)):
        s = quantizer(data).scale
        v = data / s
        inside = (v >= quantizer.qmin) & (v <= quantizer.qmax)
        rounded = torch.floor(v + 0.5).clamp(quantizer.qmin, quantizer.qmax)
        by_step = torch.where(inside, rounded - v, rounded).sum_to_size(s.shape)
        dequantize(quantizer(data)).sum().backward()
        grad = next(iter(quantizer.parameters())).grad
        torch.testing.assert_close(grad, by_step / math.sqrt(elements * qmax), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("offset", [-50.0, -1.0, 0.0, 0.3, 50.0])
def test_affine_has_one_scale_an_integer_zero_point_and_zero_as_an_exact_code(bits: int, offset: float) -> None:
    x = torch.cat([TENSORS["gaussian"].flatten() + offset, torch.zeros(1)])
    q, low, high = weights("affine", bits)(x), min(0.0, float(x.min())), max(0.0, float(x.max()))
    assert torch.as_tensor(q.zero_point).shape == q.scale.shape == ()
    assert float(q.zero_point) in range(2**bits)
    assert float(q.scale) == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)
    assert float(q.zero_point) == math.floor(-low / float(q.scale) + 0.5)
    assert float(dequantize(q)[-1]) == 0
    assert float((dequantize(q) - x).abs().max()) <= float(q.scale) / 2 * (1 + 1e-3)  # the range clips nothing


@pytest.mark.parametrize("bits", range(3, 9))
def test_pow2_takes_per_channel_the_power_of_two_nearest_to_what_just_fits_the_range(bits: int) -> None:
    x = TENSORS["gaussian"]
    scale = weights("pow2", bits)(x).scale.double()
    low, high = x.amin((1, 2, 3), keepdim=True).double(), x.amax((1, 2, 3), keepdim=True).double()
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert torch.equal(scale, 2.0 ** torch.round(torch.log2(torch.maximum(low / qmin, high / qmax))))


def test_pow2_at_two_bits_takes_the_power_of_two_nearest_to_a_typical_large_value_not_to_the_largest() -> None:
    x = TENSORS["gaussian"]
    typical = x.double().square().sum((1, 2, 3)) / x.double().abs().sum((1, 2, 3))
    q = weights("pow2", 2)(x)
    assert torch.equal(q.scale.flatten().double(), 2.0 ** torch.round(torch.log2(typical)))
    largest = x.flatten(1).amax(1)
    assert bool((q.scale.flatten() < largest / 1.5).all())  # the range would have given the largest: nearly all codes 0
    behind = x[1].relu()
    scale = float(activations("pow2", 2)(behind).scale)
    expected = float(behind.double().square().sum() / behind.double().sum()) / math.sqrt(3)
    assert scale == 2.0 ** round(math.log2(expected))
    for small in (torch.tensor([[3.0, 3.0, 3.0]]), torch.zeros(1, 3)):  # never wider than the range
        assert float(activations("pow2", 2)(small).scale) <= max(float(small.max()) / 3 * 1.42, MIN_SCALE)


@pytest.mark.parametrize("exponent", range(-19, 21))
def test_pow2_is_exact_where_the_range_is_a_power_of_two_already(exponent: int) -> None:
    quantizer = weights("pow2", 4, ())
    assert float(quantizer(torch.tensor([-8.0, 7.0]) * 2.0**exponent).scale) == 2.0**exponent
    assert float(quantizer(torch.tensor([-8 * 1.41, 7.0]) * 2.0**exponent).scale) == 2.0**exponent
    assert float(quantizer(torch.tensor([-8 * 1.42, 7.0]) * 2.0**exponent).scale) == 2.0 ** (exponent + 1)


@pytest.mark.parametrize("n", [-8, 0, 4, 20])
def test_pow2_with_a_given_n_has_the_scale_two_to_the_minus_n(n: int) -> None:
    q = weights("pow2", 4, n=n)(TENSORS["gaussian"])
    assert torch.equal(q.scale, torch.full(SHAPE, 2.0**-n))
    assert torch.equal(q.codes, torch.floor(TENSORS["gaussian"] * 2.0**n + 0.5).clamp(-8, 7))


def test_ternary_is_the_formula_of_twn_per_channel() -> None:
    x = TENSORS["gaussian"]
    q = weights("ternary", 2)(x)
    for c in range(3):
        kept = x[c].abs() > 0.7 * x[c].abs().mean()
        assert torch.equal(q.codes[c], torch.where(kept, x[c].sign(), 0.0))
        assert float(q.scale[c]) == pytest.approx(float(x[c].abs()[kept].mean()), rel=1e-5)


def test_binary_takes_zero_as_plus_one_and_the_mean_magnitude_as_scale() -> None:
    q = weights("binary", 1, ())(torch.tensor([0.0, -0.0, 3.0, -1.0]))
    assert q.codes.tolist() == [1, 1, 1, -1]
    assert float(q.scale) == 1


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "ternary"])
@pytest.mark.parametrize("factor", [1e-9, 0.013, 1.0, 1.4, 1.5, 700.0])
def test_one_bit_weights_are_binary_and_those_of_pow2_have_the_nearest_power_of_two(name: str, factor: float) -> None:
    x = torch.tensor([[-1.0, 1.0, 1.0], [-2.0, 2.0, -2.0]]) * factor
    q = weights(name, 1, (2, 1))(x)
    assert torch.equal(q.codes, x.sign())
    mean = x.abs().mean(1, keepdim=True).clamp_min(MIN_SCALE)
    expected = 2.0 ** torch.log2(mean.double()).round() if name == "pow2" else mean.double()
    torch.testing.assert_close(q.scale.double(), expected, rtol=0 if name == "pow2" else 1e-6, atol=0)


@pytest.mark.parametrize(("name", "bits"), WEIGHTS)
def test_the_integers_know_every_grid(name: str, bits: int) -> None:
    lowest = weights(name, bits).qmin
    assert list(weight_grid(lowest, bits)) == codes_of(name, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_dorefa_weights_are_the_formula_of_the_paper_with_the_variance_of_the_layers_inputs(bits: int) -> None:
    x, levels = TENSORS["gaussian"], 2**bits - 1
    q = weights("dorefa", bits)(x)
    t = torch.tanh(x)
    paper = 2 * torch.floor(levels * (t / (2 * t.abs().max()) + 0.5) + 0.5) / levels - 1
    torch.testing.assert_close(q.codes / levels, paper)
    assert {float(q.codes.max().abs()), float(q.codes.min().abs())} & {levels}
    assert float((q.codes * q.scale).square().mean()) == pytest.approx(2 / 100, rel=1e-5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_activations_are_clipped_to_one_with_a_fixed_scale_and_pass_gradients_inside(bits: int) -> None:
    x = torch.tensor([-1.0, 0.2, 0.5, 0.9, 1.0, 1.1, 7.0], requires_grad=True)
    q = activations("dorefa", bits)(x)
    levels = 2**bits - 1
    assert float(q.scale) == pytest.approx(1 / levels)
    assert torch.equal(q.codes, torch.floor(x.detach().clamp(0, 1) / q.scale + 0.5))
    dequantize(q).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1, 1, 1, 1, 0, 0]))


@pytest.mark.parametrize("bits", range(1, 9))
def test_pact_starts_at_the_largest_value_and_at_one_bit_at_twice_the_mean(bits: int) -> None:
    x = TENSORS["gaussian"].relu()
    expected = float(2 * x.mean() if bits == 1 else x.max())
    assert float(activations("pact", bits)(x).scale) * (2**bits - 1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TANH)
def test_a_range_set_from_outside_is_where_the_largest_code_lies(name: str) -> None:
    for quantizer in (weights(name, 4), activations(name, 4)):
        quantizer.set_range(torch.tensor(-0.4), torch.tensor(0.9))
        assert float(quantizer(TENSORS["gaussian"]).scale) * 15 == pytest.approx(0.9)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(0.0))
    assert float(quantizer(TENSORS["gaussian"]).scale) == MIN_SCALE


@pytest.mark.parametrize("name", TANH)
def test_signed_activations_are_lsqs_where_a_quantizers_own_are_never_negative(name: str) -> None:
    assert isinstance(activations(name, 4, signed=True), LSQQuantizer)
    assert not isinstance(activations(name, 4), LSQQuantizer)
    with pytest.raises(ConfigError, match=r"signed activations.*signed=False.*'lsq'"):
        QUANTIZERS[name](4, role="activation")


class StochasticQuantizer(RangeQuantizer):
    """Rounds up or down at random in training. Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"."""

    summary = "stochastic rounding"
    random = True

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        scale = self.fitting_scale(self.low, self.high)
        if not self.training:
            return self.on_grid(x, scale, 0)
        with torch.no_grad():
            codes = torch.floor(x / scale + torch.rand_like(x)).clamp_(self.qmin, self.qmax)
            codes = codes.to(self.training_dtype() or x.dtype)
        args = (scale, scale, 0, self.qmin, self.qmax, self.surrogate, self.rectify)
        return QTensor(Staircase.apply(x, codes, *args), scale)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_newcomer_passes_the_tests_of_the_table_by_what_it_declares(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUANTIZERS, "stochastic", StochasticQuantizer)
    for kind in TENSORS:
        test_weight_codes_scale_and_gradients_hold_for_every_tensor("stochastic", bits, kind)
    test_activation_codes_behind_relu_are_unsigned_with_zero_point_zero("stochastic", bits)
    for role in ("weight", "act"):
        test_a_state_dict_reproduces_the_codes_in_evaluation("stochastic", bits, role)
    test_the_integers_know_every_grid("stochastic", bits)
    test_bits_that_a_quantizer_cannot_have_are_refused_with_the_allowed_ones("stochastic")


def test_a_newcomer_that_does_not_say_that_it_is_random_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS, "stochastic", StochasticQuantizer)
    monkeypatch.setattr(StochasticQuantizer, "random", False)
    with pytest.raises(AssertionError):
        test_weight_codes_scale_and_gradients_hold_for_every_tensor("stochastic", 4, "gaussian")
