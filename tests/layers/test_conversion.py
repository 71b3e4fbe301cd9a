"""A float Sequential becomes the same network of quantized layers, with its weights; each layer's `from_float`."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.evaluation.networks import compare_with_integers, torch_predictor
from qattrain.integer.lowering import lower
from qattrain.layers import (
    BatchNorm,
    PixelInput,
    QuantAvgPool2d,
    QuantConv2d,
    QuantLinear,
    QuantReLU,
    quantize_model,
)
from qattrain.layers.conversion import leaves
from qattrain.quant import QTensor, dequantize

SHAPE = (3, 14, 14)


def pixels(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def float_net(bias: bool = False) -> nn.Sequential:
    """Every layer that can be converted, in nested Sequentials, with statistics and positive gains of its own."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    )
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    head = OrderedDict(
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        hidden=nn.Linear(8, 6, bias=bias),
        norm=nn.BatchNorm1d(6),
        act=nn.ReLU(),
        drop=nn.Dropout(0.1),
        same=nn.Identity(),
        last=nn.Linear(6, 5),
    )
    net = nn.Sequential(OrderedDict(features=features, depthwise=depthwise, head=nn.Sequential(head)))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for seed in range(20):
        net(pixels(16, seed) / 256)
    return net


def train(net: nn.Module, steps: int = 4) -> list[float]:
    optimizer, losses = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(steps):
        loss = F.cross_entropy(net(pixels()), torch.arange(16) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_layer_becomes_ours_and_keeps_its_name_and_weights() -> None:
    net = float_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quantized = quantize_model(net, bits=3, act_bits=5, quantizer="pow2", surrogate="tanh")
    assert {name: type(module) for name, module in leaves(quantized)} == {
        "pixels": PixelInput,
        "features.0": QuantConv2d,
        "features.1": BatchNorm,
        "features.2": QuantReLU,
        "features.3": nn.MaxPool2d,
        "depthwise.0": QuantConv2d,
        "depthwise.1": QuantReLU,
        "head.pool": QuantAvgPool2d,
        "head.flat": nn.Flatten,
        "head.hidden": QuantLinear,
        "head.norm": BatchNorm,
        "head.act": QuantReLU,
        "head.drop": nn.Dropout,
        "head.same": nn.Identity,
        "head.last": QuantLinear,
    }
    modules: dict[str, Any] = dict(quantized.named_modules())
    assert {modules[name].bits for name in ("features.0", "depthwise.0", "head.hidden", "head.last")} == {3}
    assert {modules[name].bits for name in ("features.2", "depthwise.1", "head.act")} == {5}
    assert modules["head.pool"].bits == 8
    assert modules["head.last"].weight_quantizer.name == modules["features.2"].quantizer.name == "pow2"
    assert {m.surrogate for m in quantized.modules() if hasattr(m, "surrogate")} == {"tanh"}
    state = quantized.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    quantized(pixels())
    train(quantized, 1)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("bias", [False, True])
def test_at_32_bits_it_is_the_float_network_on_pixels_by_256(bias: bool) -> None:
    net = float_net(bias).eval()
    quantized = quantize_model(net, bits=32)
    assert not quantized.training
    torch.testing.assert_close(quantized(pixels()), net(pixels() / 256), rtol=1e-3, atol=1e-4)


def test_it_trains_and_lowers_to_the_integers_it_evaluates() -> None:
    net = quantize_model(float_net(bias=True), bits=4)
    assert net.training
    losses = train(net, 20)
    assert losses[-1] < losses[0]
    integers = lower(net, SHAPE)
    assert [layer.name for layer in integers.layers] == ["conv1", "conv2", "avg1", "fc1", "fc2"]
    found = compare_with_integers(torch_predictor(net), integers, pixels(100, 1), net)
    assert (found.predictions, found.logits) == (0, 0)
    assert found.codes is not None
    assert found.codes <= 2


def test_a_float_state_dict_loads_and_a_bias_that_would_be_lost_is_refused() -> None:
    net, other = float_net(), quantize_model(float_net())
    for value in net.state_dict().values():
        value.copy_(torch.rand_like(value.float()))
    assert not any(other.load_state_dict(net.state_dict()))
    assert all(torch.equal(other.state_dict()[name], value) for name, value in net.state_dict().items())
    for strict in (True, False):
        with pytest.raises(
            ConfigError, match=r"^features\.0\.bias: a layer with bn=True has no bias, .*quantize_model"
        ):
            other.load_state_dict(float_net(bias=True).state_dict(), strict=strict)


def test_a_relu_used_twice_gets_a_scale_in_each_place() -> None:
    relu = nn.ReLU()
    net = quantize_model(
        nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(400, 5))
    )
    assert net[2] is not net[4]
    train(net, 2)
    integers = lower(net, SHAPE)
    assert compare_with_integers(torch_predictor(net), integers, pixels(), net).codes == 0


class Own(nn.Sequential):
    """A Sequential whose forward is not that of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sigmoid()), r"'1' is a Sigmoid\(\); allowed: Conv2d, Linear, ReLU"),
        (nn.Sequential(nn.Sequential(nn.GELU())), r"'0\.0' is a GELU"),
        (nn.Sequential(nn.ReLU6()), "'0' is a ReLU6"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "'0' is a AdaptiveAvgPool2d"),
        (nn.Sequential(nn.AvgPool2d(2)), "'0' is a AvgPool2d"),
        (nn.Sequential(QuantReLU()), "'0' is a QuantReLU"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "'1' is a BatchNorm2d.*; it must come directly after Conv2d or"),
        (nn.Sequential(OrderedDict(a=nn.Conv1d(1, 1, 3))), "'a' is a Conv1d"),
        (nn.Sequential(Own(nn.Conv2d(3, 3, 1))), "'0' is a Own"),
        (Own(nn.Conv2d(3, 3, 1)), "Own has no layers; allowed: an nn.Sequential of Conv2d"),
        (nn.Sequential(), "Sequential has no layers"),
        (nn.Conv2d(1, 1, 3), "Conv2d has no layers"),
        (
            nn.Sequential(OrderedDict(pixels=nn.Conv2d(1, 1, 3))),
            "a layer is called 'pixels', the name of the PixelInput",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_converted_is_named(net: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        quantize_model(net)


def test_negative_gains_are_refused_by_their_channels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        net[1].weight[1] = -0.5  # type: ignore[operator, index]
    with pytest.raises(ConfigError, match="BatchNorm2d has negative gains in channels 1: they have no integer form"):
        quantize_model(net)


def test_unknown_quantizers_and_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantizer 'none'"):
        quantize_model(float_net(), quantizer="none")
    with pytest.raises(ConfigError, match="9 bits"):
        quantize_model(float_net(), bits=9)


# --- from_float -----------------------------------------------------------------------------------------------------


def test_a_convolution_keeps_its_arguments_weights_dtype_and_mode() -> None:
    conv = nn.Conv2d(
        4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2, groups=2, padding_mode="circular"
    ).double()
    taken = QuantConv2d.from_float(conv.eval(), bits=32, act_bits=32)
    assert (taken.bits, taken.training, taken.weight.dtype) == (32, False, torch.float64)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(taken(x), conv(x))
    with torch.no_grad():
        taken.weight.zero_()
    assert conv.weight.abs().sum() > 0
    assert QuantConv2d.from_float(conv, bits=2, quantizer="ternary").weight_quantizer.name == "ternary"  # type: ignore[union-attr]


def test_a_convolution_without_bias_has_none_and_one_with_bn_must_have_none() -> None:
    assert QuantConv2d.from_float(nn.Conv2d(1, 2, 3, bias=False)).bias is None
    assert QuantConv2d.from_float(nn.Conv2d(1, 2, 3), bn=True, bias=False).bias is None
    with pytest.raises(ConfigError, match="bn=True with bias=True"):
        QuantConv2d.from_float(nn.Conv2d(1, 2, 3), bn=True)


def test_a_linear_layer_keeps_its_weights() -> None:
    linear = nn.Linear(7, 3)
    taken = QuantLinear.from_float(linear, bits=32, act_bits=32, per_channel=False)
    x = torch.randn(5, 7)
    torch.testing.assert_close(taken(x), linear(x))
    assert QuantLinear.from_float(nn.Linear(7, 3, bias=False)).bias is None


# --- PixelInput and QuantAvgPool2d ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_codes_with_a_scale_of_one_256th(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8)
    q = PixelInput()(images)
    assert isinstance(q, QTensor)
    assert torch.equal(q.codes, images)
    assert torch.equal(dequantize(q), images / 256)
    assert q.codes.is_contiguous(memory_format=torch.channels_last)
    assert not PixelInput().state_dict()


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 5, 5), torch.zeros(5, 5, dtype=torch.uint8), torch.zeros(2, 1, 5, 5).char()]
)
def test_pixels_of_another_form_are_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"PixelInput: torch\..* of shape \(.*; allowed: torch.uint8 \(N, C, H, W\)"):
        PixelInput()(images)


@pytest.mark.parametrize("training", [True, False])
def test_an_average_is_the_grid_point_nearest_to_the_mean(training: bool) -> None:
    codes = torch.randint(0, 16, (3, 4, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    layer = QuantAvgPool2d(bits=6)
    layer(QTensor(codes, torch.tensor(0.5)))
    y = layer.train(training)(QTensor(codes, torch.tensor(0.5)))
    means = codes.mean((2, 3), keepdim=True) * 0.5
    assert (y.shape, y.codes.min() >= 0, y.codes.max() <= 63) == ((3, 4, 1, 1), True, True)
    inside = y.codes < 63
    assert ((dequantize(y) - means).abs()[inside] <= y.scale / 2 * (1 + 1e-6)).all()
    torch.testing.assert_close(layer.values(QTensor(codes, torch.tensor(0.5))).float(), means)
    torch.testing.assert_close(layer.values(codes), codes.mean((2, 3), keepdim=True))


def test_an_average_of_32_bits_is_the_mean_and_gradients_spread_evenly() -> None:
    codes = torch.rand(2, 3, 4, 5, requires_grad=True)
    y = QuantAvgPool2d(bits=32)(QTensor(codes, None))
    assert y.scale is None
    torch.testing.assert_close(y.codes, codes.mean((2, 3), keepdim=True))
    layer = QuantAvgPool2d()
    layer(QTensor(codes, torch.tensor(1.0))).codes.sum().backward()
    assert codes.grad is not None
    assert codes.grad.flatten(2).std(2).max() == 0
    assert codes.grad.abs().max() > 0


def test_one_relu_in_several_places_becomes_several_with_a_scale_each_and_one_layer_stays_one() -> None:
    relu, middle = nn.ReLU(), nn.Linear(6, 6)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), relu, middle, relu, middle, relu, nn.Linear(6, 3))
    quantized = quantize_model(net)
    relus = [module for name, module in quantized._modules.items() if name in "246"]
    assert len(set(map(id, relus))) == 3
    assert quantized._modules["3"] is quantized._modules["5"]
    assert quantized(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)).shape == (2, 3)


def test_a_float_state_dict_with_negative_gains_is_refused_but_our_own_is_loaded() -> None:
    net, other = float_net(), quantize_model(float_net())
    with torch.no_grad():
        net.features[1].weight[2] = -0.5  # type: ignore[index, operator, union-attr]
    with pytest.raises(ConfigError, match=r"features\.1\.weight has negative gains in channels 2: .*running means"):
        other.load_state_dict(net.state_dict())
    own = other.state_dict()
    own["features.1.weight"] = -own["features.1.weight"]  # as training may leave it: gains count by magnitude
    assert not any(other.load_state_dict(own))
