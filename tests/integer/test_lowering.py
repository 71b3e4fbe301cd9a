"""Lowering: what torch evaluates is what the integers compute, but for counted ulps; what cannot be is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from integer_models import random_images
from torch import Tensor, nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import PRESETS
from qattrain.errors import ExportError
from qattrain.evaluation.networks import compare_with_integers, torch_predictor
from qattrain.integer import INT32_MAX
from qattrain.integer.lowering import lower
from qattrain.layers.network import activation_layers, build_model, weight_layers
from qattrain.quant import QUANTIZERS, Quantizer
from qattrain.quant.base import RangeQuantizer
from qattrain.quant.grid import MIN_SCALE
from qattrain.training.ptq import CALIBRATIONS, calibrate

WEIGHT_LAYERS, ACTIVATION_LAYERS = ("conv1", "conv2", "fc1", "fc2"), ("act1", "act2", "act3")  # of a LeNet
FREE_WIDTHS = range(1, 9)
ALLOWED = [(q, b) for q in ("lsq", "affine", "pow2", "dorefa", "pact") for b in FREE_WIDTHS] + [
    ("ternary", 2),
    ("binary", 1),
]
IMAGES = torch.from_numpy(random_images(24, 5))


def build(name: str = "lenet-nano", classes: int = 10, widths: Any = None, **quant: Any) -> nn.Sequential:
    """A network as one that has been trained: scales from data, biases of some size, codes that saturate."""
    torch.manual_seed(0)
    net = build_model(ModelConfig(name=name, widths=widths), QuantConfig(**quant), classes)
    net(IMAGES)  # scales
    for layer in weight_layers(net).values():
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -0.05, 0.1)
    for activation in activation_layers(net).values():
        if isinstance(activation.quantizer, RangeQuantizer):
            activation.quantizer.high.mul_(0.4)
    return net.eval()


def check_equal(net: nn.Sequential, images: Tensor = IMAGES, exact: bool = False) -> None:
    """Each layer makes of torch's codes what torch makes of them, but for sums that lie one float32 ulp from a half."""
    integers, seen = lower(net), {}
    handles = [
        module.register_forward_hook(lambda _m, _i, y, name=name: seen.update({name: y.codes}))
        for name, module in activation_layers(net).items()
    ]
    with torch.no_grad():
        logits = net(images).double().numpy()
    for handle in handles:
        handle.remove()
    x, ulps = images.numpy().astype(np.int64), 0
    for layer, name in zip(integers.layers, activation_layers(net), strict=False):
        acc = layer.accumulate(x.reshape(len(x), -1) if layer.kind == "linear" else x)
        assert np.abs(acc).max() <= layer.accumulator_bound <= INT32_MAX
        assert layer.requantization is not None
        expected, found = layer.requantization.apply(acc), seen[name].numpy().astype(np.int64)
        assert found.max() > 0
        channel = (1, -1, *(1,) * (acc.ndim - 2))
        m, k = layer.requantization.multiplier.reshape(channel), layer.requantization.shift.reshape(channel)
        v, wrong = acc * (m / 2.0**k), found != expected
        assert (np.abs(found - expected) <= 1).all()
        assert (np.abs(v - np.floor(v) - 0.5)[wrong] <= 2.0**-22 * v[wrong]).all()
        x, ulps = found, ulps + int(wrong.sum())
    last = integers.layers[-1].accumulate(x.reshape(len(x), -1))
    assert np.array_equal(np.rint(logits / integers.logit_scale), last)
    counted = compare_with_integers(torch_predictor(net), integers, images, net)
    if exact or ulps == 0:
        assert (ulps, counted.codes, counted.logits, counted.predictions) == (0, 0, 0, 0)


@pytest.mark.parametrize(("quantizer", "bits"), ALLOWED)
def test_every_quantizer_at_every_width_evaluates_as_its_integers(quantizer: str, bits: int) -> None:
    net = build(quantizer=quantizer, bits=bits)
    check_equal(net, exact=quantizer == "pow2")
    layers = lower(net).layers
    ran = "binary" if bits == 1 else "dorefa" if quantizer == "pact" else quantizer
    assert [(layer.name, layer.bits, layer.quantizer) for layer in layers] == [(n, bits, ran) for n in WEIGHT_LAYERS]
    assert [layer.input_max for layer in layers] == [255] + 3 * [2**bits - 1]
    assert [layer.requantization is None for layer in layers] == [False, False, False, True]


@pytest.mark.parametrize(
    "quant",
    [
        {"bits": 2, "layer_bits": {"conv1": 8, "act1": 5, "fc1": 1, "act3": 8, "fc2": 7}},
        {"quantizer": "affine", "bits": 6, "layer_bits": {"conv2": 1, "act2": 1, "fc2": 8}},
        {"quantizer": "pow2", "bits": 5, "layer_bits": {"conv1": 1, "fc2": 2, "act2": 3}, "n": 6},
        {"quantizer": "ternary", "act_bits": 8},
        {"quantizer": "binary", "act_bits": 3},
    ],
    ids=str,
)
def test_layers_of_mixed_bits_evaluate_as_their_integers(quant: dict[str, Any]) -> None:
    check_equal(build(**quant), exact=quant.get("quantizer") == "pow2")


@pytest.mark.parametrize("quantizer", ["affine", "lsq", "pow2", "dorefa", "pact"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_quantized_after_training_evaluates_as_its_integers(quantizer: str, bits: int) -> None:
    source = build(bits=32)
    net = build(quantizer=quantizer, bits=bits)
    state = source.state_dict()
    net.load_state_dict({name: state.get(name, tensor) for name, tensor in net.state_dict().items()})
    calibrate(net, source, IMAGES, CALIBRATIONS["minmax"])
    check_equal(net, exact=quantizer == "pow2")
    zero_points = [layer.zero_point for layer in lower(net).layers]
    assert all(0 < z < 2**bits - 1 for z in zero_points) if quantizer == "affine" else not any(zero_points)


@pytest.mark.parametrize(("name", "classes"), [(name, 10) for name in PRESETS] + [("lenet-nano", 26), ("lenet", 47)])
def test_every_preset_and_class_count_evaluates_as_its_integers(name: str, classes: int) -> None:
    net = build(name, classes)
    check_equal(net, IMAGES[:8])
    logits = lower(net).run(IMAGES[:8].numpy())
    assert (logits.shape, logits.dtype) == ((8, classes), np.int32)


def test_free_widths_and_a_scale_of_the_logits() -> None:
    net = build(widths=(2, 3, 5))
    check_equal(net)
    integers = lower(net)
    expected = net(IMAGES).detach().double().numpy()
    np.testing.assert_allclose(integers.run(IMAGES.numpy()) * integers.logit_scale, expected, rtol=1e-6)


def test_lowering_changes_nothing() -> None:
    net = build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = lower(net), lower(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(first.layers, second.layers, strict=True))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_dead_channels_are_lowered_like_any_other(quantizer: str) -> None:
    net = build(quantizer=quantizer)
    with torch.no_grad():
        for layer in WEIGHT_LAYERS[:3]:
            getattr(net, layer).weight[0] = 0
            getattr(net, layer).bias[0] = 0
        for module in (net.train(), net.eval()):  # quantizers that observe have to see it
            module(IMAGES)
    check_equal(net, exact=quantizer == "pow2")


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_scales_at_their_floor_are_lowered(quantizer: str) -> None:
    net = build(quantizer=quantizer)
    with torch.no_grad():
        for layer in WEIGHT_LAYERS:
            getattr(net, layer).weight.mul_(1e-12)
        for quantizer_module in (module for module in net.modules() if isinstance(module, Quantizer)):
            if hasattr(quantizer_module, "scale"):
                quantizer_module.scale.fill_(1e-30)  # type: ignore[operator, union-attr]
        net.train()(IMAGES)
    net.eval()
    if quantizer not in ("dorefa", "pact"):  # whose scale does not follow the magnitude of the weights
        assert float(net.fc1.quantized_weight().scale.min()) == MIN_SCALE  # type: ignore[union-attr]
    integers = lower(net)
    found = compare_with_integers(torch_predictor(net), integers, IMAGES, net)
    assert found.codes == found.logits == 0
    assert all(layer.requantization.multiplier.min() >= 0 for layer in integers.layers if layer.requantization)


def test_a_multiplier_of_0_gives_code_0_as_torch_does() -> None:
    net = build()
    with torch.no_grad():
        net.conv1.weight_quantizer.scale[0] = MIN_SCALE  # type: ignore[union-attr, index]
        for layer, exponent in (("act1", 35), ("act2", 30), ("act3", 20)):  # none too far from the one before it
            getattr(net, layer).quantizer.scale.fill_(2.0**exponent)
    integers = lower(net)
    requantization = integers.layers[0].requantization
    assert requantization is not None
    assert (requantization.multiplier[0], requantization.multiplier[1:].min() > 0) == (0, True)
    assert not integers.trace(IMAGES.numpy())[0].any()
    assert compare_with_integers(torch_predictor(net), integers, IMAGES, net).codes == 0


@pytest.mark.parametrize("layer", [*WEIGHT_LAYERS, *ACTIVATION_LAYERS])
def test_a_float_layer_is_refused_by_its_name(layer: str) -> None:
    with pytest.raises(ExportError, match=rf"^'{layer}' \(Quant\w+\): 32 bits"):
        lower(build(layer_bits={layer: 32}))


def test_an_accumulator_beyond_int32_is_refused_by_its_layer_and_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = max(layer.accumulator_bound for layer in lower(build()).layers)
    monkeypatch.setattr("qattrain.integer.lowering.INT32_MAX", bound)
    lower(build())
    monkeypatch.setattr("qattrain.integer.lowering.INT32_MAX", bound - 1)
    with pytest.raises(ExportError, match=f"could reach {bound}, beyond int32"):
        lower(build())


def test_the_widest_layer_that_fits_int32_fits_and_a_wider_one_does_not() -> None:
    net = build(widths=(1, 4200, 2), bits=8)
    with torch.no_grad():
        net.fc1.weight.fill_(1.0)
        net.fc1.weight_quantizer.scale.fill_(1 / 127)  # type: ignore[union-attr]
    with pytest.raises(ExportError, match=r"^'fc1' \(QuantLinear\): an accumulator could reach 2\d{9}, beyond int32"):
        lower(net)


def test_scales_too_far_apart_are_refused() -> None:
    net = build()
    with torch.no_grad():
        net.conv1.weight_quantizer.scale.fill_(2.0**30)  # type: ignore[union-attr]
        net.act1.quantizer.scale.fill_(MIN_SCALE)  # type: ignore[union-attr]
    with pytest.raises(ExportError, match=r"multiplier .*: its scales are too far apart"):
        lower(net)
