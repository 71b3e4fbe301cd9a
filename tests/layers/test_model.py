"""LeNet: its plan and presets, explicit against torch ops, and every code against NumPy integers (DESIGN section 3)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import PRESETS
from qattrain.errors import ConfigError
from qattrain.layers.network import INITIALIZERS, build_model, plan_layers
from qattrain.quant import QUANTIZERS, SURROGATES, Quantizer
from qattrain.quant.base import RangeQuantizer

LAYERS = ("conv1", "conv2", "fc1", "fc2")
ACTS = ("act1", "act2", "act3")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:  # these tensors are small: several threads only wait for each other
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str = "lenet-nano", classes: int = 10, model: Any = None, **quant: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, **(model or {})), QuantConfig(**quant), classes)


def images(n: int, seed: int = 0) -> Tensor:
    """Random patches of 7 by 7 pixels: unlike white noise they vary after pooling."""
    patches = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return patches.repeat_interleave(7, 2).repeat_interleave(7, 3)


def train(net: nn.Sequential, steps: int, batch: int = 16, lr: float = 0.02, classes: int = 10) -> list[float]:
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), []
    for step in range(steps):
        loss = F.cross_entropy(net(images(batch, seed=step % 4)), torch.arange(batch) % classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_default_lenet_has_430_500_weights() -> None:
    net = build("lenet")
    assert [getattr(net, layer).weight.numel() for layer in LAYERS] == [500, 25_000, 400_000, 5_000]


@pytest.mark.parametrize("classes", [10, 26, 47])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_one_logit_a_class(name: str, classes: int) -> None:
    assert build(name, classes)(images(3)).shape == (3, classes)


def test_widths_replace_those_of_the_preset() -> None:
    net = build("lenet", model={"widths": (2, 3, 5)})
    assert [getattr(net, layer).weight.shape[0] for layer in LAYERS] == [2, 3, 5, 10]


def test_dropout_zeroes_its_share_of_what_enters_fc2_in_training_alone() -> None:
    net, entered = build(model={"widths": (2, 3, 400), "dropout": 0.25}, bits=8), []
    net.fc2.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].codes.detach()))
    shown = images(50)
    net(shown)
    with_dropout = entered[-1]
    net.dropout.p = 0.0
    net(shown)
    kept = with_dropout != 0
    assert torch.allclose(with_dropout[kept], entered[-1][kept] / 0.75)
    assert (~kept & (entered[-1] != 0)).sum() / (entered[-1] != 0).sum() == pytest.approx(0.25, abs=0.02)
    net.dropout.p = 0.25
    net.eval()
    net(shown)
    net.dropout.p = 0.0
    net(shown)
    assert torch.equal(entered[-2], entered[-1])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_all_layers_have_the_default_bits_unless_asked_otherwise(quantizer: str) -> None:
    bits, ran = {"ternary": 2, "binary": 1}.get(quantizer, 4), "dorefa" if quantizer == "pact" else quantizer
    plan = plan_layers(ModelConfig(), QuantConfig(quantizer=quantizer))
    assert plan.layer_bits == dict.fromkeys(LAYERS + ACTS, bits)
    assert (plan.quant.bits, plan.quant.act_bits) == (bits, bits)
    assert (plan.quant.quantizer, plan.weight_quantizer) == (quantizer, ran)
    plan = plan_layers(ModelConfig(), QuantConfig(quantizer=quantizer, act_bits=7))
    assert plan.layer_bits == dict.fromkeys(LAYERS, bits) | dict.fromkeys(ACTS, 7)


def test_exempt_layers_alone_have_other_bits_and_the_network_is_built_so() -> None:
    net = build(bits=3, layer_bits={"conv1": 8, "act2": 5, "fc2": 32})
    assert [getattr(net, layer).bits for layer in LAYERS + ACTS] == [8, 3, 3, 32, 3, 5, 3]
    assert net.fc2.weight_quantizer is None
    assert (net.conv1.weight_quantizer.qmax, net.act2.quantizer.qmax) == (127, 31)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ({"bits": 32}, "float"),
        ({"bits": 1}, "binary"),
        ({"bits": 1, "quantizer": "affine"}, "binary"),
        ({"quantizer": "pow2", "bits": 1, "layer_bits": {"conv1": 8}}, "pow2+binary"),
        ({"bits": 4, "layer_bits": {"fc1": 32}}, "lsq+float"),
        ({"quantizer": "ternary"}, "ternary"),
        ({"quantizer": "pact", "layer_bits": {"fc1": 1}}, "dorefa+binary"),
    ],
)
def test_what_runs_is_recorded_beside_what_was_asked(quant: dict[str, Any], expected: str) -> None:
    plan = plan_layers(ModelConfig(), QuantConfig(**quant))
    assert (plan.quant.quantizer, plan.weight_quantizer) == (quant.get("quantizer", "lsq"), expected)


@pytest.mark.parametrize(
    ("quant", "model", "message"),
    [
        ({"quantizer": "dorefax"}, {}, "dorefax.*allowed: lsq, affine, pow2, dorefa, pact, ternary, binary"),
        ({"quantizer": "ternary", "bits": 4}, {}, "ternary.*4 bits: allowed.*2"),
        ({"quantizer": "binary", "bits": 2}, {}, "binary.*2 bits: allowed.*1"),
        ({"quantizer": "binary", "layer_bits": {"fc1": 4}}, {}, "binary.*4 bits"),
        ({"quantizer": "ternary", "bits": 8, "layer_bits": dict.fromkeys(LAYERS, 2)}, {}, "ternary.*8 bits"),
        ({"surrogate": "sigmoid"}, {}, "sigmoid.*allowed: identity, clipped, tanh, polynomial"),
        ({"surrogate": "sigmoid", "bits": 32}, {}, "sigmoid.*allowed: identity, clipped, tanh, polynomial"),
        ({"n": 4}, {}, "n = 4.*lsq.*pow2"),
        ({"n": 4, "quantizer": "affine"}, {}, "n = 4.*affine.*pow2"),
        ({}, {"name": "resnet"}, "resnet.*allowed: lenet, lenet-small, lenet-nano"),
        ({}, {"init": "orthogonal"}, "orthogonal.*allowed: kaiming, xavier"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(quant: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(**model), QuantConfig(**quant), 10)


@pytest.mark.parametrize(("quantizer", "surrogate"), [(q, s) for q in QUANTIZERS for s in SURROGATES])
def test_surrogate_and_n_reach_every_quantizer(quantizer: str, surrogate: str) -> None:
    net = build(quantizer=quantizer, surrogate=surrogate, n=5 if quantizer == "pow2" else None)
    found = [module for module in net.modules() if isinstance(module, Quantizer)]
    assert [module.surrogate for module in found] == [surrogate] * 7
    given = [getattr(module, "fraction_bits", None) for module in found]
    assert sorted(given, key=str) == ([5] * 4 + [None] * 3 if quantizer == "pow2" else [None] * 7)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_hidden_layers_have_a_scale_per_channel_and_the_last_one_in_all(quantizer: str) -> None:
    net = build(quantizer=quantizer)
    counts = [getattr(net, layer).quantized_weight().scale.numel() for layer in LAYERS]
    assert counts == ([1, 1, 1, 1] if quantizer in ("affine", "dorefa", "pact") else [8, 16, 32, 1])


@pytest.mark.parametrize("init", INITIALIZERS)
def test_initial_weights_have_the_variance_of_the_formula_and_biases_are_zero(init: str) -> None:
    net = build("lenet", model={"init": init})
    for layer in ("conv2", "fc1", "fc2"):
        w = getattr(net, layer).weight
        fan_out, fan_in = w.shape[0] * w[0, 0].numel(), w[0].numel()
        std = math.sqrt(2 / (fan_in + (fan_out if init == "xavier" else 0)))
        assert w.std().item() == pytest.approx(std, rel=0.03)
        assert w.abs().max().item() <= math.sqrt(3) * std * 1.0001  # uniform
        assert not getattr(net, layer).bias.any()


def test_a_new_initializer_is_one_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 0.25)

    monkeypatch.setitem(INITIALIZERS, "constant", constant)
    assert bool((build(model={"init": "constant"}).fc1.weight == 0.25).all())


def test_explicit_ops_train_along_the_same_losses_as_torch_ops() -> None:
    nets = [build("lenet-small", model={"ops": ops}, bits=4).double() for ops in ("torch", "explicit")]
    runs = [train(net, 20, batch=8) for net in nets]
    assert len(set(runs[0])) == 20
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-9)


def integers(x: Tensor | int) -> np.ndarray[Any, Any]:
    array = torch.as_tensor(x).detach().double().numpy()
    assert np.array_equal(array, np.rint(array))
    return array.astype(np.int64)


def accumulate(layer: Any, x: np.ndarray[Any, Any], s_x: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Accumulators, bias included and pooled, and s_x s_w[c] in float64. x: (q_x - z_x), int64."""
    q = layer.quantized_weight()
    w = integers(q.codes) - integers(q.zero_point)
    unit = np.broadcast_to(s_x * q.scale.detach().double().numpy().reshape(-1), (len(w),))
    grid = np.float32(s_x) * q.scale.detach().numpy().reshape(-1)  # b is float32: so is its rounding
    b = np.clip(np.floor(layer.bias.detach().numpy() / grid + np.float32(0.5)), -(2**22) + 1, 2**22 - 1)
    if w.ndim == 2:
        return x.reshape(len(x), -1) @ w.T + b.astype(np.int64), unit
    windows = sliding_window_view(x, (5, 5), (2, 3)).transpose(0, 2, 3, 1, 4, 5)  # (N, H, W, C, 5, 5)
    acc = windows.reshape(*windows.shape[:3], -1) @ w.reshape(len(w), -1).T
    n, h, wide, c = acc.shape
    pooled = acc.reshape(n, h // 2, 2, wide // 2, 2, c).max((2, 4)) + b.astype(np.int64)
    return pooled.transpose(0, 3, 1, 2), unit


ORACLE: list[dict[str, Any]] = [
    *({"quantizer": q, "bits": b} for q in ("lsq", "affine", "pow2", "dorefa", "pact") for b in (1, 2, 3, 4, 8)),
    *({"quantizer": q, "act_bits": a} for q in ("ternary", "binary") for a in (1, 2, 8)),
    {"quantizer": "lsq", "bits": 2, "layer_bits": {"conv1": 8, "act1": 5, "fc1": 1, "act3": 8, "fc2": 7}},
    {"quantizer": "affine", "bits": 6, "layer_bits": {"conv2": 1, "act2": 1, "fc2": 8}},
    {"quantizer": "pow2", "bits": 5, "layer_bits": {"conv1": 1, "fc2": 2, "act2": 3}, "n": 4},
    {"quantizer": "lsq", "bits": 4, "surrogate": "tanh"},
]


@pytest.mark.parametrize(("name", "quant"), [("lenet-nano", q) for q in ORACLE] + [("lenet", {"bits": 8})], ids=str)
def test_evaluation_equals_integer_arithmetic(name: str, quant: dict[str, Any]) -> None:
    net = build(name, **quant)
    train(net, 4, batch=10, lr=0.005)
    for layer in LAYERS:  # a bias of some size, as longer training would give it
        nn.init.uniform_(getattr(net, layer).bias, -0.05, 0.1)
    for act in ACTS:  # narrower, so that codes saturate too and one-bit codes are not all 0
        quantizer = getattr(net, act).quantizer
        if isinstance(quantizer, RangeQuantizer):
            quantizer.high.mul_(0.25)
    outputs: dict[str, Any] = {}
    for layer in (*ACTS, "fc2"):
        getattr(net, layer).register_forward_hook(lambda _m, _i, y, layer=layer: outputs.update({layer: y}))
    pixels = images(8, seed=50)
    logits = net.eval()(pixels)
    x, s_x, different = pixels.numpy().astype(np.int64), 2.0**-8, 0
    for layer, act in zip(LAYERS, ACTS, strict=False):
        acc, unit = accumulate(getattr(net, layer), x, s_x)
        codes, s_y, z_y = outputs[act].codes, outputs[act].scale, outputs[act].zero_point
        assert int(z_y) == 0
        v = acc * (unit / s_y.item()).reshape(-1, *(1,) * (acc.ndim - 2))
        expected = np.clip(np.floor(v + 0.5), 0, 2 ** getattr(net, act).bits - 1).astype(np.int64)
        x, s_x = integers(codes), s_y.item()
        assert x.max() > 0
        wrong = x != expected
        different += int(wrong.sum())
        assert (np.abs(v - np.floor(v) - 0.5)[wrong] < 1e-4).all()
        assert (np.abs(x - expected) <= 1).all()
    acc, unit = accumulate(net.fc2, x, s_x)
    ratio = logits.detach().double().numpy() / unit
    assert np.array_equal(np.rint(ratio), acc)
    np.testing.assert_allclose(ratio, acc, rtol=2**-22, atol=0)
    assert np.abs(acc).max() > 0
    if quant.get("quantizer") == "pow2":
        assert different == 0
        assert np.array_equal(ratio, acc)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_state_dict_is_all_that_a_fresh_network_needs_to_give_the_same_logits(quantizer: str) -> None:
    one, other = build(quantizer=quantizer), build(quantizer=quantizer)
    train(one, 3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(images(4)), other.eval()(images(4)))
