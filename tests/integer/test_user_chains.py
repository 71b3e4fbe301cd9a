"""Chains that somebody built of our layers: the same integers as torch evaluates, or an error that names the module."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integer_models import assert_same_model
from torch import Tensor, nn

from qattrain.errors import ExportError
from qattrain.evaluation.networks import compare_with_integers, torch_predictor
from qattrain.integer import AverageLayer, IntegerLayer
from qattrain.integer.lowering import lower
from qattrain.layers import BatchNorm, PixelInput, QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU

SHAPE = (3, 14, 14)
Conv, Linear = QuantConv2d, QuantLinear


def images(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def trained(*layers: nn.Module, shape: tuple[int, ...] = SHAPE, classes: int = 5) -> nn.Sequential:
    """The chain of `layers` after a few steps, in evaluation mode."""
    net, x, labels = nn.Sequential(*layers), images(16, shape), torch.arange(16) % classes
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def head(inputs: int, classes: int = 5) -> tuple[nn.Module, ...]:
    return nn.Flatten(), Linear(inputs, classes, act_bits=32, per_channel=False)


def conv(*arguments: Any, **options: Any) -> QuantConv2d:
    return Conv(*arguments, act_bits=32, **options)


def check_equal(net: nn.Sequential, shape: Any = SHAPE, codes: int = 2) -> Any:
    """Logits are equal on noise, and at most `codes` hidden codes differ. Returns the integers."""
    integers = lower(net, shape)
    found = compare_with_integers(torch_predictor(net), integers, images(200, shape, 1), net)
    assert (found.logits, found.predictions) == (0, 0)
    assert found.codes is not None
    assert found.codes <= codes
    assert any(trace.max() > 0 for trace in integers.trace(images(5, shape, 2).numpy())[:-1])
    return integers


def test_every_layer_and_option_in_one_chain() -> None:
    torch.manual_seed(0)
    net = trained(
        PixelInput(),
        conv(3, 8, 3, padding=1, stride=2, bn=True, bits=3),
        BatchNorm(8),
        nn.MaxPool2d(2),
        QuantReLU(3),
        nn.Dropout(0.1),
        conv(8, 8, 3, padding="same", groups=8),
        QuantReLU(5),
        nn.Sequential(conv(8, 6, (1, 2), (1, 1), (0, 1), bias=False, pool=2), QuantReLU()),
        nn.Identity(),
        QuantAvgPool2d(bits=6),
        nn.Flatten(),
        Linear(6, 9, act_bits=32, bn=True, bits=2),
        BatchNorm(9),
        QuantReLU(),
        nn.Dropout(0.5),
        Linear(9, 5, act_bits=32, per_channel=False, bits=8),
    )
    integers = check_equal(net)
    assert [layer.name for layer in integers.layers] == ["conv1", "conv2", "conv3", "avg1", "fc1", "fc2"]
    assert integers.shapes == [SHAPE, (8, 3, 3), (8, 3, 3), (6, 1, 2), (6, 1, 1), (9, 1, 1), (5, 1, 1)]
    first, second, third, average, *_ = integers.layers
    assert isinstance(first, IntegerLayer)
    assert (first.stride, first.padding, first.groups, first.pool) == ((2, 2), (1, 1), 1, 2)
    assert (second.padding, second.groups) == ((1, 1), 8)
    assert (third.padding, third.pool, third.bias.any()) == ((0, 1), 2, False)
    assert isinstance(average, AverageLayer)
    assert (average.pixels, average.input_max, average.requantization.bits) == (2, 15, 6)
    assert [layer.input_max for layer in integers.layers] == [255, 7, 31, 15, 63, 15]


def test_layers_named_as_in_a_chain_keep_their_names() -> None:
    layers: Any = OrderedDict(pixels=PixelInput(), conv1=conv(3, 4, 3), act1=QuantReLU(), dw1=conv(4, 4, 3, groups=4))
    layers |= OrderedDict(act2=QuantReLU(), avg1=QuantAvgPool2d(), flatten=nn.Flatten(), fc1=head(4)[1])
    net = nn.Sequential(layers)
    net(images(4))
    assert [layer.name for layer in lower(net, SHAPE).layers] == ["conv1", "dw1", "avg1", "fc1"]


def test_pooling_behind_the_relu_gives_the_same_integers_as_before_it() -> None:
    torch.manual_seed(1)
    convolution, relu, last = conv(3, 4, 3), QuantReLU(), head(4 * 36)
    before = trained(PixelInput(), convolution, nn.MaxPool2d(2), relu, *last)
    behind = nn.Sequential(PixelInput(), convolution, relu, nn.MaxPool2d(2), *last).eval()
    inside = conv(3, 4, 3, pool=2)
    inside.load_state_dict(convolution.state_dict())
    within = nn.Sequential(PixelInput(), inside, relu, *last).eval()
    for net in (behind, within):
        assert_same_model(check_equal(before), check_equal(net))
    assert lower(before, SHAPE).layers[0].pool == 2  # type: ignore[union-attr]


def test_poolings_multiply() -> None:
    torch.manual_seed(2)
    net = trained(PixelInput(), conv(3, 4, 3, pool=2), nn.MaxPool2d(2), QuantReLU(), nn.MaxPool2d((3, 3)), *head(4))
    integers = check_equal(net)
    assert integers.shapes[1] == (4, 1, 1)
    assert integers.layers[0].pool == 12


def test_shared_pooling_and_dropout_are_allowed() -> None:
    torch.manual_seed(3)
    pool, dropout = nn.MaxPool2d(2), nn.Dropout(0.2)
    net = trained(
        PixelInput(), conv(3, 4, 3, padding=1), pool, QuantReLU(), dropout, conv(4, 4, 3), QuantReLU(), pool, dropout,
        *head(16),
    )  # fmt: skip
    assert [layer.pool for layer in check_equal(net).products] == [2, 2, 1]


@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_normalization_of_torch_is_converted(bias: bool) -> None:
    torch.manual_seed(4)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    net = trained(PixelInput(), conv(3, 6, 3, bias=bias, bits=8), norm, nn.MaxPool2d(2), QuantReLU(8), *head(216))
    integers = lower(net, SHAPE)
    found = compare_with_integers(torch_predictor(net), integers, images(100), net)
    assert found.codes is not None
    assert 0 < found.codes < 0.03 * 100 * 216  # its shift is not on the grid: what differs is counted
    assert found.predictions <= 5


def test_a_linear_network_without_hidden_layers() -> None:
    net = trained(PixelInput(), *head(3 * 14 * 14))
    assert [layer.kind for layer in check_equal_linear(net)] == ["linear"]


def check_equal_linear(net: nn.Sequential) -> Any:
    integers = lower(net, SHAPE)
    expected = integers.run(images(50).numpy())
    with torch.no_grad():
        assert np.array_equal(np.rint(net(images(50)).double().numpy() / integers.logit_scale), expected)
    return integers.layers


def test_lowering_leaves_the_network_as_it_was_but_in_evaluation_mode() -> None:
    net = trained(PixelInput(), conv(3, 4, 3), QuantReLU(), *head(4 * 144)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert_same_model(lower(net, SHAPE), lower(net, SHAPE))
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Any) -> Any:
        return x


P, R, C = PixelInput, QuantReLU, conv
FLAT = (nn.Flatten(), Linear(4 * 144, 5, act_bits=32, per_channel=False))
START = (P(), C(3, 4, 3))


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((C(3, 4, 3), R(), *FLAT), r"'0' \(QuantConv2d\): a network starts with PixelInput\(\), which gives the codes"),
        ((P(), P(), *FLAT), r"'1' \(PixelInput\): pixels come first, and only once"),
        ((*START, nn.ReLU(), *FLAT), r"'2' \(ReLU\): it has no integer form; allowed: PixelInput, .*; use QuantReLU"),
        ((*START, R(), nn.AdaptiveAvgPool2d(1), *FLAT), r"\(AdaptiveAvgPool2d\): it has no .*; use QuantAvgPool2d"),
        ((*START, R(), nn.AvgPool2d(2), *FLAT), r"'3' \(AvgPool2d\): it has no integer form"),
        ((P(), nn.Conv2d(3, 4, 3), R(), *FLAT), r"'1' \(Conv2d\): it has no integer form"),
        ((*START, R(), nn.Flatten(), nn.Linear(9, 5)), r"'4' \(Linear\): it has no integer form"),
        ((*START, nn.Sequential(nn.GELU()), *FLAT), r"'2\.0' \(GELU\): it has no integer form"),
        ((*START, Residual(R()), *FLAT), r"'2' \(Residual\): it has no integer form"),
        ((*START, C(4, 4, 1), R(), *FLAT), r"'2' \(QuantConv2d\): it gets real values and would quantize them with a"),
        ((*START, nn.MaxPool2d(2), C(4, 4, 1), R(), *FLAT), r"'3' \(QuantConv2d\): .*; put a QuantReLU before it"),
        ((*START, *FLAT), r"'2' \(Flatten\): put it after the QuantReLU"),
        ((*START, R(), FLAT[1]), r"'3' \(QuantLinear\): put nn.Flatten before it"),
        ((*START, R(), nn.Flatten(), C(4, 4, 1)), r"'4' \(QuantConv2d\): it needs a map of pixels, not flatt"),
        ((*START, R(), nn.Flatten(0), FLAT[1]), r"'3' \(Flatten\): start_dim=0, end_dim=-1; allowed: 1 and -1"),
        ((*START, R(), R(), *FLAT), r"'3' \(QuantReLU\): a QuantReLU comes after QuantConv2d or QuantLinear"),
        ((P(), R(), *FLAT), r"'1' \(QuantReLU\): a QuantReLU comes after"),
        ((*START, QuantAvgPool2d(), *FLAT), r"'2' \(QuantAvgPool2d\): an average comes after a QuantReLU, before"),
        ((*START, R(), nn.Flatten(), QuantAvgPool2d(), FLAT[1]), r"'4' \(QuantAvgPool2d\): an average comes after"),
        ((P(), nn.MaxPool2d(2), *FLAT), r"'1' \(MaxPool2d\): max-pooling comes after a convolution"),
        ((*START, R(), nn.Flatten(), nn.MaxPool2d(2)), r"'4' \(MaxPool2d\): max-pooling comes after a convolution"),
        ((*START, R(), QuantAvgPool2d(), nn.MaxPool2d(1)), r"'4' \(MaxPool2d\): max-pooling comes after a conv"),
        ((*START, nn.MaxPool2d(3, 2), R(), *FLAT), r"'2' \(MaxPool2d\): .*; allowed: a square kernel, stride = kernel"),
        ((*START, nn.MaxPool2d((2, 1)), R(), *FLAT), r"'2' \(MaxPool2d\): .*allowed: a square kernel"),
        ((*START, nn.MaxPool2d(2, padding=1), R(), *FLAT), r"'2' \(MaxPool2d\): .*no padding, dilation or ceil_mode"),
        ((*START, nn.MaxPool2d(2, dilation=2), R(), *FLAT), r"'2' \(MaxPool2d\): .*no padding, dilation or ceil_mode"),
        ((*START, nn.MaxPool2d(2, ceil_mode=True), R(), *FLAT), r"'2' \(MaxPool2d\): .*allowed: a square kernel"),
        ((*START, nn.MaxPool2d(2, return_indices=True), R(), *FLAT), r"'2' \(MaxPool2d\): .*allowed: a square"),
        ((*START, R(), nn.MaxPool2d(13), *FLAT), r"'3' \(MaxPool2d\): its windows are larger than the map"),
        ((*START, nn.MaxPool2d(13), R(), *FLAT), r"'1' \(QuantConv2d\): it does not fit images of 3x14x14"),
        ((P(), C(3, 4, 15), R(), *FLAT), r"'1' \(QuantConv2d\): it does not fit images of 3x14x14"),
        ((P(), C(1, 4, 3), R(), *FLAT), r"'1' \(QuantConv2d\): it does not fit images of 3x14x14"),
        (
            (*START, R(), nn.Flatten(), Linear(7, 5, per_channel=False)),
            r"'4' \(QuantLinear\): it does not fit .*7 ",
        ),
        (
            (P(), C(3, 4, 3, dilation=2), R(), *FLAT),
            r"'1' \(QuantConv2d\): dilation=\(2, 2\), padding_mode='zeros'",
        ),
        (
            (P(), C(3, 4, 3, padding=1, padding_mode="reflect"), R(), *FLAT),
            r"padding_mode='reflect'; allowed: 1 and",
        ),
        ((P(), C(3, 4, 2, padding="same"), R(), *FLAT), r"padding='same' with an even kernel pads two sides differ"),
        ((P(), C(3, 4, 3, bits=32), R(), *FLAT), r"'1' \(QuantConv2d\): 32 bits: a float layer has no integer form"),
        ((*START, R(32), *FLAT), r"'2' \(QuantReLU\): 32 bits: it has no integer form; train it with 1 to 8 bits"),
        ((*START, R(), QuantAvgPool2d(32), *FLAT), r"'3' \(QuantAvgPool2d\): 32 bits: it has no integer form"),
        (
            (*START, R(), nn.Flatten(), Linear(576, 5)),
            r"'4' \(QuantLinear\): the last layer needs one scale",
        ),
        (
            (*START, R(), nn.Flatten(), Linear(576, 5, per_channel=False, bn=True), BatchNorm(5)),
            "no batch normal",
        ),
        ((*START, R(), *FLAT, R()), "the network does not end in a QuantLinear, whose sums are the logits"),
        ((*START, R()), "the network does not end in a QuantLinear"),
        ((*START,), "the network does not end in a QuantLinear"),
        ((), "the network does not end in a QuantLinear"),
        ((*START, R(), BatchNorm(4), *FLAT), r"'3' \(BatchNorm\): batch normalization comes directly after"),
        (
            (*START, nn.MaxPool2d(2), nn.BatchNorm2d(4), R(), *FLAT),
            r"'3' \(BatchNorm2d\): batch norm.* directly",
        ),
        (
            (*START, nn.BatchNorm2d(4), nn.BatchNorm2d(4), R(), *FLAT),
            r"'3' \(BatchNorm2d\): batch norm.* directly after",
        ),
        ((*START, BatchNorm(4), R(), *FLAT), r"'2' \(BatchNorm\): .*; give the layer before it bn=True"),
        (
            (P(), C(3, 4, 3, bn=True), nn.BatchNorm2d(4), R(), *FLAT),
            r"'2' \(BatchNorm2d\): .*before it bn=False",
        ),
        ((*START, nn.BatchNorm2d(4, affine=False), R(), *FLAT), r"'2' \(BatchNorm2d\): .*lacks running statistics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_integer_form_is_named(layers: tuple[nn.Module, ...], text: str) -> None:
    with pytest.raises(ExportError, match=text) as caught:
        lower(nn.Sequential(*layers), SHAPE)
    assert "\n" not in str(caught.value)


def test_negative_gains_are_named_by_module_and_channel() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[2] = -1
    with pytest.raises(ExportError, match=r"^'2' \(BatchNorm2d\): BatchNorm2d has negative gains in channels 2:"):
        lower(nn.Sequential(*START, norm, R(), *FLAT), SHAPE)


@pytest.mark.parametrize("net", [nn.Linear(3, 2), Residual(P(), *FLAT)], ids=["Linear", "Residual"])
def test_what_is_no_chain_is_refused(net: nn.Module) -> None:
    with pytest.raises(ExportError, match=f"{type(net).__name__} is no nn.Sequential, or has a forward of its own"):
        lower(net, SHAPE)


def test_a_network_that_has_seen_no_images_is_refused_and_stays_as_it_is() -> None:
    net = nn.Sequential(
        PixelInput(), QuantConv2d(3, 4, 3), QuantReLU(), nn.Flatten(), QuantLinear(576, 5, per_channel=False)
    )
    with pytest.raises(
        ExportError, match=r"'2' \(QuantReLU\): its scale is not known yet; train the network, or run it"
    ):
        lower(net, (3, 14, 14))
    assert not net[2].quantizer.initialized
    net(torch.randint(0, 256, (2, 3, 14, 14), dtype=torch.uint8))
    assert lower(net, (3, 14, 14)).classes == 5
