"""Depthwise convolutions, and those of few weights, as processors without vectors compute them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from integer_models import LOGIT_SCALE
from sanitized import assert_sanitizers_find_nothing

from qattrain.export.c_compile import C_FOLDER, PORTABLE, compiled_c
from qattrain.export.c_export import c_sources
from qattrain.export.c_layers import WINDOWS
from qattrain.export.c_network import CNetwork
from qattrain.files.compiler import NATIVE, find_compiler
from qattrain.integer import IntegerLayer, IntegerModel, Requantization

FORMS = (("packed", ()), ("int8", (NATIVE,)), ("int8", (f"-D{PORTABLE}", "-DQATTRAIN_SMALL")))
QUICK = ("-O1", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


@pytest.fixture(autouse=True)
def compiler() -> None:
    if find_compiler() is None:
        pytest.skip("no C compiler")


def convolution(
    random: np.random.Generator, number: int, codes: np.ndarray, input_max: int, **geometry: object
) -> IntegerLayer:
    """Its biases and multipliers spread the codes."""
    outputs = len(codes)
    layer = IntegerLayer(
        f"conv{number}", "conv", codes, 4, "lsq", -8, 0, random.integers(-9, 99, outputs), input_max, None
    )
    largest = np.maximum(codes.reshape(outputs, -1).clip(0).sum(1) * input_max, 1)
    shift = np.full(outputs, 36)
    multiplier = (15 / largest * 2.0**36 * random.uniform(2, 9, outputs)).astype(np.int64).clip(1, 2**31 - 1)
    return replace(layer, requantization=Requantization(multiplier, shift, 4), **geometry)  # type: ignore[arg-type]


def network(layers: list[IntegerLayer], shape: tuple[int, int, int]) -> IntegerModel:
    """The layers, and a fully connected one."""
    random, outputs = np.random.default_rng(0), shape
    for layer in layers:
        outputs = layer.output_shape(outputs)
    codes = random.integers(-8, 8, (3, int(np.prod(outputs))))
    last = IntegerLayer("fc1", "linear", codes, 4, "lsq", -8, 0, np.arange(3), 15, None)
    return IntegerModel((*layers, last), LOGIT_SCALE, shape)


def images_of(model: IntegerModel, count: int = 12) -> np.ndarray:
    """Noise, an empty image, a full one."""
    images = np.random.default_rng(1).integers(0, 256, (count, *model.input_shape)).astype(np.uint8)
    images[0], images[1] = 0, 255
    return images


def assert_equal_logits(model: IntegerModel) -> None:
    images = images_of(model)
    expected = model.run(images)
    assert len(np.unique(expected)) > 3
    for layout, flags in FORMS:
        with compiled_c(c_sources(model, layout), *flags, *QUICK) as run:
            assert np.array_equal(run(images), expected), (layout, flags)


def random_network(seed: int) -> IntegerModel:
    """A convolution of few weights, then two depthwise ones; any stride, padding, maximum, and number of outputs.

    With an odd seed windows overlap from row to row, as they must to be computed two at a time.
    """
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 4)), *(int(side) for side in random.integers(30, 50, 2)))
    layers: list[IntegerLayer] = []
    outputs = shape
    for number in range(1, 4):
        depthwise = number > 1
        while True:
            channels = outputs[0]
            kernel = tuple(random.integers(1 + seed % 2, 5, 2))
            down = int(random.choice([1, 1, 2, 3]))
            together = int(random.integers(1, 3)) if depthwise else int(random.integers(2, 8))
            size = (channels * together, 1, *kernel) if depthwise else (together, channels, *kernel)
            geometry = {
                "stride": (min(down, int(kernel[0]) - 1) if seed % 2 else down, int(random.choice([1, 1, 2, 3]))),
                "padding": tuple(int(each) for each in random.integers(0, 4, 2) * random.integers(0, 2) * depthwise),
                "pool": int(random.choice([1, 1, 2, 3])),
                "groups": channels if depthwise else 1,
            }
            codes = random.integers(-4, 8, size)
            layer = convolution(random, number, codes, 15 if layers else 255, **geometry)
            try:
                after = layer.output_shape(outputs)
            except ValueError:
                continue
            if min(after[1:]) > 0 and int(np.prod(after)) < 3000:
                break
        layers.append(layer)
        outputs = after
    return network(layers, shape)


@pytest.mark.parametrize("seed", [2, 4, 8, 12, *range(1, 24, 2)])
def test_every_logit_of_random_depthwise_chains_is_equal(seed: int) -> None:
    model = random_network(seed)
    assert CNetwork(model, "packed").depthwise_in_16_bits == bool(seed % 2)
    assert_equal_logits(model)


@pytest.mark.parametrize(("top", "joins"), [(14, True), (15, False)])
def test_two_sums_share_a_number_only_where_16_bits_hold_both(top: int, joins: bool) -> None:
    """Nine pixels of 255 times 14 are 32,130, and 637 of bias make 32,767; times 15 they are beyond 16 bits."""
    random = np.random.default_rng(0)
    one = np.full((4, 1, 3, 3), top)
    one[1::2] = -14
    for geometry, shape in (({"groups": 4}, (4, 9, 13)), ({}, (1, 9, 13))):
        layer = convolution(random, 1, one, 255, **geometry)
        layer = replace(layer, bias=np.array([637, -638, 637, 0]), bits=8, lowest=-128)
        model = network([layer], shape)
        each = CNetwork(model, "packed").layers[0]
        assert each.sums_fit_16_bits == joins
        assert (each.joins_rows, each.joins_channels) == ((joins, False) if geometry else (False, joins))
        assert_equal_logits(model)
        for bias in (np.full(4, 638), np.full(4, -639)):
            assert not CNetwork(network([replace(layer, bias=bias)], shape), "packed").layers[0].sums_fit_16_bits


def test_a_large_maximum_is_left_to_the_other_kernels() -> None:
    """taps.c holds the sums of 16 windows."""
    assert f"#define WINDOWS {WINDOWS} " in (C_FOLDER / "taps.c").read_text(encoding="utf-8")
    random = np.random.default_rng(0)
    for pool, small in ((16, True), (17, False)):
        layer = convolution(random, 1, random.integers(-4, 8, (2, 1, 2, 2)), 255, groups=2, pool=pool)
        model = network([layer], (2, 40, 40))
        assert CNetwork(model, "packed").layers[0].depthwise == small
        assert_equal_logits(model)


def test_a_long_kernel_does_not_become_taps() -> None:
    random = np.random.default_rng(0)
    for side, few in ((11, True), (12, False)):  # 121 and 144 weights
        layer = convolution(random, 1, random.integers(-2, 2, (3, 1, side, side)), 255)
        assert CNetwork(network([layer], (1, 20, 20)), "packed").layers[0].joins_channels == few


@pytest.mark.parametrize(("layout", "flags"), [FORMS[0], FORMS[2]], ids=str)
def test_sanitizers_find_nothing(layout: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    for seed in (4, 5, 9):
        model = random_network(seed)
        assert_sanitizers_find_nothing(model, images_of(model, 3), layout, flags, tmp_path)
