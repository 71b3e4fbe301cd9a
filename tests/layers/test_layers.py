"""Quantized layers: torch's layers at 32 bits, the formula at fewer, exact sums in evaluation, guests in any model."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.layers import QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU
from qattrain.layers.network import xavier
from qattrain.quant import QUANTIZERS, QTensor, Quantizer, dequantize
from qattrain.quant.kernels import MAX_BIAS_CODE

PLAIN = ("lsq", "affine", "pow2")  # quantizers of any width
CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "stride": (2, 1), "padding": (0, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "stride": 2},
    {"groups": 2, "padding": 1, "dilation": (1, 2)},
    {"groups": 4, "stride": 3},
    *({"padding": (1, 2), "padding_mode": mode, "stride": 2} for mode in ("reflect", "replicate", "circular")),
    {"padding": "same", "padding_mode": "reflect"},
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor]:  # output, gradients of input, weight and bias
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(randn(*y.shape, seed=3, dtype=y.dtype))
    gradients: Any = [x.grad, *(p.grad for name, p in layer.named_parameters() if name in ("weight", "bias"))]
    return [y.detach(), *(g.clone() for g in gradients)]


def assert_equal_outcome(one: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    for a, b in zip(outcome(one, x), outcome(other, x), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (4, 9, 8)])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_conv_at_32_bits_equals_torch(options: dict[str, Any], shape: tuple[int, ...], training: bool) -> None:
    theirs = nn.Conv2d(4, 8, (3, 2), **options)
    ours = QuantConv2d(4, 8, (3, 2), **options, bits=32)
    ours.load_state_dict(theirs.state_dict())  # strict: the same names, nothing more
    assert_equal_outcome(ours.train(training), theirs, randn(*shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_linear_takes_any_leading_dimensions(shape: tuple[int, ...], bias: bool) -> None:
    theirs, ours, x = nn.Linear(5, 7, bias), QuantLinear(5, 7, bias, bits=32), randn(*shape)
    ours.load_state_dict(theirs.state_dict())
    assert_equal_outcome(ours, theirs, x)
    ours = QuantLinear(5, 7, bias, bits=4, act_bits=32, dtype=torch.float64)
    assert_equal_outcome(ours, Reference(ours), x.double(), tolerance=1e-9)


def test_relu_at_32_bits_equals_torch() -> None:
    assert torch.equal(dequantize(QuantReLU(32)(x := randn(3, 4))), nn.ReLU()(x))


def straight_through(v: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    v = v.clamp(torch.as_tensor(low), torch.as_tensor(high))
    return v - v.detach() + torch.floor(v.detach() + 0.5)  # exactly an integer, so that max-pooling sees true ties


class Reference(nn.Module):
    """(pool(conv(q_x - z_x, q_w - z_w)) + b_q) * s_x s_w, DESIGN section 3, with the scales of a layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.weight = [layer], nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def centered(self, x: Tensor, quantizer: Quantizer | None) -> tuple[Tensor, Tensor]:
        if quantizer is None:
            return x, torch.tensor(1.0)
        q = quantizer(x.detach())
        scale, z = q.scale, q.zero_point
        return straight_through(x / scale, quantizer.qmin - z, quantizer.qmax - z), scale

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer[0]
        (x, s_x), (w, s_w) = self.centered(x, layer.input_quantizer), self.centered(self.weight, layer.weight_quantizer)
        unit = (s_x * s_w).flatten().view(-1, *(1,) * (w.dim() - 2))
        acc = x @ w.t() if w.dim() == 2 else F.max_pool2d(F.conv2d(x, w, None, layer.stride, layer.padding), layer.pool)
        if self.bias is not None:
            b = self.bias.view(-1, *(1,) * (w.dim() - 2)) / unit
            acc = acc + (straight_through(b, -MAX_BIAS_CODE, MAX_BIAS_CODE) if layer.input_quantizer else b)
        return acc * unit


@pytest.mark.parametrize("ops", ["torch", "explicit"])
@pytest.mark.parametrize("quantizer", PLAIN)
@pytest.mark.parametrize("bits", [(2, 2), (3, 8), (8, 4), (4, 32)])
@pytest.mark.parametrize("kind", ["conv", "strided conv", "linear"])
def test_layers_equal_the_formula_in_output_and_gradients(kind: str, bits: Any, quantizer: str, ops: Any) -> None:
    options: Any = {"bits": bits[0], "act_bits": bits[1], "quantizer": quantizer, "ops": ops, "dtype": torch.float64}
    layer: Any = QuantLinear(6, 5, **options)
    if kind != "linear":
        conv = {"pool": 2} if kind == "conv" else {"stride": (2, 1), "padding": (0, 2), "bias": False}
        layer = QuantConv2d(3, 5, 3, **conv, **options)
    x = randn(7, 6, dtype=torch.float64) if kind == "linear" else randn(2, 3, 8, 8, dtype=torch.float64)
    layer(x)
    assert_equal_outcome(layer, Reference(layer), x, tolerance=1e-9)
    assert_equal_outcome(layer.eval(), Reference(layer), x, tolerance=1e-9)


@pytest.mark.parametrize("quantizer", [*PLAIN, "dorefa", "pact"])
def test_a_plain_input_equals_the_qtensor_of_it(quantizer: str) -> None:
    layer: Any = QuantConv2d(2, 3, 3, quantizer=quantizer, padding=1).eval()
    y = layer(x := randn(2, 2, 6, 6))
    assert torch.equal(y, layer(layer.input_quantizer(x)))


def test_pooling_the_sums_equals_pooling_the_output() -> None:
    pooled, plain = (QuantConv2d(2, 3, 3, act_bits=8, pool=pool) for pool in (3, 1))
    plain.load_state_dict(pooled.state_dict())
    torch.testing.assert_close(pooled(x := randn(2, 2, 9, 9)), F.max_pool2d(plain(x), 3))


def test_bias_codes_are_clipped_and_a_clipped_bias_has_no_gradient() -> None:
    layer = QuantLinear(2, 3, bits=4, quantizer="pow2", fraction_bits=3).eval()
    layer.bias.data = torch.tensor([1e9, 0.1, -1e9])
    y = layer(QTensor(torch.zeros(1, 2), torch.tensor(0.25)))
    assert (y * 32).tolist() == [[MAX_BIAS_CODE, 3, -MAX_BIAS_CODE]]
    y.sum().backward()
    assert layer.bias.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 8, 8)])
def test_explicit_ops_equal_torch_ops(shape: tuple[int, ...]) -> None:
    one, other = (QuantConv2d(3, 4, 3, (2, 1), (1, 0), ops=ops, pool=2).double() for ops in ("torch", "explicit"))
    other.load_state_dict(one.state_dict())
    assert_equal_outcome(one, other, randn(*shape, dtype=torch.float64), tolerance=1e-10)


@pytest.mark.parametrize("ops", ["torch", "explicit"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_evaluation_sums_beyond_two_to_the_24_are_exact(kind: str, ops: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(200, 256, (4, 800)), rng.integers(-128, -100, (3, 800))
    bias = np.array([-MAX_BIAS_CODE, -12345, 1])
    options: Any = {"bits": 8, "quantizer": "pow2", "fraction_bits": 7, "ops": ops}
    layer: Any = QuantLinear(800, 3, **options) if kind == "linear" else QuantConv2d(32, 3, 5, **options)
    layer.weight.data = torch.from_numpy(w / 2**7).float().view(layer.weight.shape)
    layer.bias.data = torch.from_numpy(bias / 2**15).float()
    codes = torch.from_numpy(x).float().view(4, *layer.weight.shape[1:])
    acc = x @ w.T + bias  # int64
    assert np.abs(acc).min() > 2**23
    assert (acc.astype(np.float32) != acc).any()  # float32 could not even hold them
    y = layer.eval()(QTensor(codes, torch.tensor(2.0**-8))).detach().double().flatten(1).numpy()
    assert np.array_equal(y * 2**15, acc)


def test_two_different_integer_sums_never_become_equal_outputs() -> None:
    layer = QuantLinear(513, 2, bias=False, bits=8, quantizer="pow2", fraction_bits=0, per_channel=False).eval()
    layer.weight.data = torch.cat([torch.full((2, 512), 127.0), torch.tensor([[1.0], [0.0]])], 1)
    pixels = torch.tensor([[255.0] * 512 + [1.0]])  # sums 16581121 and 16581120, bound 16581375 < 2^24
    outputs = [layer(QTensor(pixels, torch.tensor(scale)))[0] for scale in (1.0, 1.1, 1.3, 1.5, 1.7, 1.9)]
    assert [bool(y[0] > y[1]) for y in outputs] == [True] * 6


def test_a_layer_returns_its_own_dtype_in_evaluation_too_so_that_others_can_follow() -> None:
    first = QuantLinear(4096, 3, bits=8, quantizer="affine")
    net, x = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2)), randn(4, 4096)
    assert net(x).dtype == net.eval()(x).dtype == torch.float32


def test_an_empty_batch_passes_in_evaluation_as_through_torch_layers() -> None:
    net = nn.Sequential(QuantConv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), QuantLinear(18, 3))
    net(randn(2, 1, 5, 5))
    assert net.eval()(torch.zeros(0, 1, 5, 5)).shape == (0, 3)


def guest_net(quantizer: str) -> nn.Sequential:
    options: Any = {"quantizer": quantizer, "act_bits": 8}
    return nn.Sequential(
        QuantConv2d(1, 6, 3, **options), nn.ReLU(), nn.MaxPool2d(2), QuantConv2d(6, 8, 3, pool=2, **options),
        QuantReLU(8, quantizer), nn.Flatten(), QuantLinear(32, 3, **options),
    )  # fmt: skip


@pytest.mark.parametrize("quantizer", [*PLAIN, "dorefa", "pact"])
def test_a_guest_trains_and_survives_state_dict_deepcopy_and_double(quantizer: str) -> None:
    net, other, x, losses = guest_net(quantizer), guest_net(quantizer).eval(), randn(24, 1, 14, 14), []
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        net.zero_grad()
        loss = F.cross_entropy(net(x), torch.arange(24) % 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    y = net.eval()(x)
    assert not torch.equal(other(x), y)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert torch.equal(other(x), y)
    assert torch.equal(copy.deepcopy(net)(x), y)
    close = (net.double()(x.double()) - y).abs() < 1e-5
    assert close.all(1).double().mean() > 0.8  # a code may fall on the other side of a half in a few images


class Block(nn.Module):
    """A block with a constant random weight, one layer used twice (or two layers), and Python control flow."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first = QuantLinear(8, 8, bits=4, act_bits=8)
        self.fixed = QuantLinear(8, 8, bias=False, bits=4, act_bits=8).requires_grad_(False)
        self.second = self.first if shared else QuantLinear(8, 8, bits=4, act_bits=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.fixed(self.first(x)) + 1))
        while x.detach().abs().sum() > 1:
            x = x / 2
        return x.sum()


def test_a_block_with_a_shared_layer_a_constant_weight_and_control_flow_trains() -> None:
    tied, untied, x = Block(shared=True).apply(xavier).double(), Block(shared=False).double(), randn(4, 8).double()
    assert tied(x).abs() <= 1
    copies = {key.replace("first", "second"): value for key, value in tied.state_dict().items()} | tied.state_dict()
    untied.load_state_dict(copies)
    for net in (tied, untied):
        net(x).backward()
    ours, twins = dict(tied.first.named_parameters()), dict(untied.second.named_parameters())
    assert len(ours) == 4  # weight, bias and two learned steps
    for name, p in untied.first.named_parameters():
        torch.testing.assert_close(ours[name].grad, p.grad + twins[name].grad)  # type: ignore[operator]
        assert bool((ours[name].grad != 0).any())
    before = copy.deepcopy(tied)
    torch.optim.SGD((p for p in tied.parameters() if p.requires_grad), lr=0.1).step()
    assert not torch.equal(before.first.weight, tied.first.weight)
    frozen = zip(before.fixed.parameters(), tied.fixed.parameters(), strict=True)
    assert all(torch.equal(old, new) and new.grad is None for old, new in frozen)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_average_is_quantized_on_its_own_grid_and_passes_its_gradient_evenly(quantizer: str) -> None:
    layer, x = QuantAvgPool2d(8, quantizer), (8 * torch.rand(5, 3, 4, 6)).round()
    x[0] = 8.0  # the largest average is in the first batch
    q = QTensor(x.clone().requires_grad_(), torch.tensor(0.125))
    averaged = layer(q)
    means = x.mean((2, 3), keepdim=True) * 0.125
    assert averaged.shape == (5, 3, 1, 1)
    assert (averaged.codes.min() >= 0) & (averaged.codes.max() <= 255)
    assert averaged.scale is not None
    reached = means.clamp_max(255 * averaged.scale)
    assert layer.quantizer is not None
    steps = 1 if layer.quantizer.random else 0.5  # of the grid, between a value and its code
    assert torch.allclose(dequantize(averaged), reached, atol=float(averaged.scale) * steps + 1e-6)
    dequantize(averaged).sum().backward()
    inside = (averaged.codes.detach() < 255).expand_as(x)
    assert q.codes.grad is not None
    assert torch.allclose(q.codes.grad[inside], torch.tensor(0.125 / 24))
    codes = layer.eval()(q).codes
    assert torch.equal(codes, codes.round())
    assert torch.equal(QuantAvgPool2d(32, quantizer)(x).codes, x.mean((2, 3), keepdim=True))
