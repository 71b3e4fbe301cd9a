"""BatchNorm: F.batch_norm on the real values of sums, but for a bias on the grid; in evaluation exactly `folded`."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.layers import BatchNorm, QuantConv2d, QuantLinear
from qattrain.quant import QTensor, functional
from qattrain.quant.grid import MIN_SCALE
from qattrain.quant.kernels import MAX_BIAS_CODE, normalized_scale

SHAPES = [(8, 5), (6, 5, 4, 3), (1, 5, 2, 1)]
JOINTS: dict[str, Any] = {"per channel": [0.01, 0.03, 0.5, 0.02, 0.004], "one": [0.02], "float": None}


def sums(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Integers, each channel with another mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    channel = (1, -1, *(1,) * (len(shape) - 2))
    spread = torch.tensor([3.0, 50, 7, 400, 20]).view(channel)
    mean = torch.tensor([0.0, -90, 12, 1000, 5]).view(channel)
    return (torch.randn(shape, generator=generator) * spread + mean).round().to(dtype)


def parameters(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Gains, one of them negative, and shifts."""
    gain = torch.tensor([1.0, 0.3, -2.0, 0.7, 1.5], dtype=dtype, requires_grad=True)
    return gain, torch.tensor([0.0, 0.5, -1.0, 0.2, 3.0], dtype=dtype, requires_grad=True)


def joint_of(name: str, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return None if JOINTS[name] is None else torch.tensor(JOINTS[name], dtype=dtype)


def real(acc: Tensor, joint: Tensor | None) -> Tensor:
    return acc if joint is None else acc * joint.view(-1, *(1,) * (acc.dim() - 2))


def norm_with(acc_shape: tuple[int, ...], seed: int = 3) -> BatchNorm:
    norm = BatchNorm(acc_shape[1])
    torch.manual_seed(seed)
    with torch.no_grad():
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 4)
    return norm


@pytest.mark.parametrize("kind", JOINTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_is_f_batch_norm_within_half_a_step_of_the_grid(shape: tuple[int, ...], kind: str) -> None:
    acc, (gain, shift), joint = sums(shape), parameters(), joint_of(kind)
    y, mean, variance = functional.BatchNormalize.apply(acc, joint, gain, shift, 1e-5)
    expected = F.batch_norm(real(acc, joint), None, None, gain.abs(), shift, training=True, eps=1e-5)
    s = torch.ones(5, dtype=torch.float64) if joint is None else joint
    step, _ = normalized_scale(s, gain, shift, mean, variance, 1e-5, on_grid=joint is not None)
    difference = (y - expected).abs().transpose(0, 1).flatten(1).amax(1)
    assert (difference <= (0.0 if joint is None else 0.5) * step + 1e-9).all()
    if joint is not None:
        assert difference.max() > 0  # the bias is on the grid
        codes = (y / real(torch.ones_like(acc), step)).detach()
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, real(acc, joint).transpose(0, 1).flatten(1).mean(1))
    torch.testing.assert_close(variance, real(acc, joint).transpose(0, 1).flatten(1).var(1, correction=0))


@pytest.mark.parametrize("kind", JOINTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_f_batch_norm(shape: tuple[int, ...], kind: str) -> None:
    """To the sums, gains and shifts; the rounding of the bias is straight-through."""
    acc, joint = sums(shape).requires_grad_(), joint_of(kind)
    mine, theirs = parameters(), parameters()
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, *_ = functional.BatchNormalize.apply(acc, joint, *mine, 1e-5)
    found = torch.autograd.grad((y * weights).sum(), (acc, *mine))
    expected_y = F.batch_norm(real(acc, joint), None, None, theirs[0].abs(), theirs[1], training=True, eps=1e-5)
    expected = torch.autograd.grad((expected_y * weights).sum(), (acc, *theirs))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_gradients_without_a_grid_equal_finite_differences() -> None:
    acc, (gain, shift) = sums((4, 5, 2, 2)).mul(0.01).requires_grad_(), parameters()
    torch.autograd.gradcheck(
        lambda x, g, b: functional.BatchNormalize.apply(x, None, g, b, 1e-5)[0], (acc, gain, shift), atol=1e-6
    )


def test_a_gain_counts_by_its_magnitude() -> None:
    norm, acc = norm_with((8, 5)), sums((8, 5), dtype=torch.float32)
    q = QTensor(acc, torch.full((1, 1), 0.01))
    other = norm_with((8, 5))
    with torch.no_grad():
        other.weight.neg_()
    assert (norm.weight < 0).any()
    assert torch.equal(norm(q), other(q))
    assert torch.equal(norm.eval()(q), other.eval()(q))
    assert (norm.folded(q.scale)[0] >= MIN_SCALE).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_half_precision_are_normalized_in_float32(dtype: torch.dtype) -> None:
    norm, acc = BatchNorm(5), sums((8, 5, 3, 3), dtype=dtype)
    acc.requires_grad_()
    y = norm(QTensor(acc, torch.full((1, 1, 1, 1), 0.01)))
    wide = BatchNorm(5)(QTensor(acc.float(), torch.full((1, 1, 1, 1), 0.01)))
    assert y.dtype == norm.running_mean.dtype == torch.float32
    assert torch.equal(y, wide)
    y.sum().backward()
    assert acc.grad is not None
    assert acc.grad.dtype == dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_statistics_are_those_of_torch(shape: tuple[int, ...]) -> None:
    mine = BatchNorm(5, momentum=0.3)
    theirs: Any = nn.BatchNorm2d(5, momentum=0.3) if len(shape) == 4 else nn.BatchNorm1d(5, momentum=0.3)
    for seed in range(3):
        acc = sums(shape, seed, torch.float32)
        mine(QTensor(acc, torch.full((1, 1), 0.02)))
        theirs(acc * 0.02)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert list(mine.state_dict()) == [*theirs.state_dict(), "by_magnitude"]


def test_a_batch_of_one_value_gives_the_shift() -> None:
    norm = BatchNorm(5)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(5.0))
    y = norm(QTensor(sums((1, 5), dtype=torch.float32), torch.full((1, 1), 1.0)))
    step = 1 / 1e-5**0.5
    assert (y - norm.bias).abs().max() <= step / 2
    assert norm.running_var.isfinite().all()
    y.sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.isfinite().all()


@pytest.mark.parametrize("joint", [[[0.01, 0.02, 0.03, 0.04, 0.05]], [[0.01]]])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_is_a_scale_and_a_bias_on_the_grid_exactly(shape: tuple[int, ...], joint: Any) -> None:
    norm, acc = norm_with(shape).eval(), sums(shape, dtype=torch.float32)
    scale = torch.tensor(joint).view(1, -1, *(1,) * (len(shape) - 2))
    before = norm.state_dict()
    y = norm(QTensor(acc, scale))
    s, b = norm.folded(scale)
    assert (s.dtype, b.dtype, s.shape, b.shape) == (torch.float64, torch.float64, (5,), (5,))
    assert torch.equal(b, b.round())
    channels = (-1, *(1,) * (len(shape) - 2))
    assert torch.equal(y, (acc.double() + b.view(channels)) * s.view(channels))
    x = acc.double() * scale.double()
    statistics = (norm.running_mean.double(), norm.running_var.double())
    expected = F.batch_norm(x, *statistics, norm.weight.detach().double().abs(), norm.bias.detach().double())
    assert ((y - expected).abs() <= s.view(channels) / 2 + 1e-9).all()
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


def test_evaluation_of_real_values_is_f_batch_norm() -> None:
    norm, x = norm_with((8, 5)).eval(), sums((8, 5), dtype=torch.float32) / 10
    y = norm(QTensor(x, None))
    assert y.dtype == torch.float32
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight.abs(), norm.bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_scales_and_biases_stay_within_their_limits() -> None:
    ones = torch.ones(1, dtype=torch.float64)
    scale, bias = normalized_scale(ones * 0.01, ones * 0, ones * 50, ones, ones, 1e-5)
    assert (float(scale), float(bias)) == (MIN_SCALE, MAX_BIAS_CODE)
    scale, bias = normalized_scale(ones * 0.01, ones * 1e-9, -50 * ones, ones, ones, 1e-5)
    assert (float(scale), float(bias)) == (MIN_SCALE, -MAX_BIAS_CODE)


@pytest.mark.parametrize("kind", [QuantConv2d, QuantLinear])
def test_a_layer_with_bn_gives_its_sums_and_their_scale(kind: Any) -> None:
    arguments, x = ((3, 5, 2) if kind is QuantConv2d else (4, 5)), torch.randn(2, 3, 4, 4)
    layer, plain = kind(*arguments, bn=True), kind(*arguments, bias=False)
    assert layer.bias is None
    sums = layer(x)
    plain(x)
    plain.load_state_dict(layer.state_dict())
    assert isinstance(sums, QTensor)
    assert torch.equal(sums.codes, sums.codes.round())
    assert sums.scale is not None
    assert sums.scale.numel() == 5
    torch.testing.assert_close(sums.codes * sums.scale, plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"bias": True}, "bn=True with bias=True: a BatchNorm has the bias"), ({"pool": 2}, "bn=True with pool=2")],
)
def test_what_a_layer_with_bn_cannot_have_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        QuantConv2d(3, 4, 3, bn=True, **options)


def test_real_values_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"BatchNorm takes the sums of the layer before it: give that layer bn=True"):
        BatchNorm(3)(torch.zeros(2, 3))


def test_a_float_networks_statistics_are_taken_over_with_the_bias_before_them() -> None:
    conv, norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, eps=1e-3, momentum=0.2)
    nn.init.uniform_(norm.weight, 0.1, 2)
    nn.init.normal_(norm.bias)
    for _ in range(5):
        norm(conv(torch.randn(8, 2, 6, 6)))
    taken = BatchNorm.from_float(norm.eval(), conv.bias)
    assert (taken.eps, taken.momentum, taken.training) == (1e-3, 0.2, False)
    x = torch.randn(4, 2, 6, 6)
    sums_without_bias = F.conv2d(x, conv.weight)
    torch.testing.assert_close(taken(QTensor(sums_without_bias, None)), norm(conv(x)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(taken.running_mean, norm.running_mean)
    assert torch.equal(BatchNorm.from_float(norm).running_mean, norm.running_mean)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str)
def test_a_float_normalization_without_statistics_gains_or_momentum_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lacks running statistics, trained gains or a momentum; allowed: "):
        BatchNorm.from_float(nn.BatchNorm2d(3, **options))


def test_negative_gains_of_a_float_network_are_refused_by_their_channels() -> None:
    norm = nn.BatchNorm1d(20)
    with torch.no_grad():
        norm.weight[[2, 5]] = -1
    with pytest.raises(ConfigError, match="BatchNorm1d has negative gains in channels 2, 5: they have no integer form"):
        BatchNorm.from_float(norm)
    with torch.no_grad():
        norm.weight[:] = -1
    with pytest.raises(ConfigError, match=r"channels 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.:"):
        BatchNorm.from_float(norm)
