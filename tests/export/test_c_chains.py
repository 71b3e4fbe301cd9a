"""The C of any chain: every logit of random networks equals IntegerModel's, in both layouts and every form of C."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from integer_models import LOGIT_SCALE
from random_chains import Case, noise, random_case, trained
from sanitized import assert_sanitizers_find_nothing

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import Shape
from qattrain.export.base import noise_images
from qattrain.export.c_compile import EMBEDDED, PORTABLE, SMALL, Target, compiled_c, measure
from qattrain.export.c_export import c_sources, write_c
from qattrain.export.c_layers import LAYOUTS
from qattrain.export.c_network import CNetwork
from qattrain.files.compiler import NATIVE, find_compiler
from qattrain.integer import AverageLayer, IntegerLayer, IntegerModel, ModelFacts, Requantization
from qattrain.integer.lowering import lower

PLAIN = (NATIVE, f"-D{PORTABLE}")
FORMS = (
    ("packed", ()),
    ("packed", (NATIVE,)),
    ("int8", (NATIVE,)),
    ("int8", PLAIN),
    ("int8", (*PLAIN, f"-D{SMALL}")),
)
QUICK = ("-O1", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")  # compiles fast, and warns
RANDOM = range(20)


@pytest.fixture(autouse=True)
def compiler() -> None:
    if find_compiler() is None:
        pytest.skip("no C compiler")


def chain(line: str, shape: Shape, quantizer: str = "lsq", bits: int = 3) -> IntegerModel:
    case = Case(ModelConfig(name=line), QuantConfig(quantizer=quantizer, bits=bits), shape, 5)
    return lower(trained(case), shape)


def assert_equal_logits(model: IntegerModel, images: np.ndarray) -> None:
    expected = model.run(images)
    assert len(np.unique(expected)) > 1
    for layout, flags in FORMS:
        with compiled_c(c_sources(model, layout), *flags, *QUICK) as run:
            assert np.array_equal(run(images), expected), (layout, flags)


@pytest.mark.parametrize("seed", RANDOM)
def test_every_logit_of_a_random_chain_is_equal(seed: int) -> None:
    case = random_case(seed)
    assert_equal_logits(lower(trained(case, seed), case.shape), noise(case, 40, seed).numpy())


LINES: list[tuple[str, Shape, set[str]]] = [
    ("fc", (3, 5, 7), {"copy"}),
    ("fc", (1, 2, 3), {"columns"}),
    ("avgpool, fc", (40, 3, 5), {"average", "rows"}),
    ("conv 6 3x3, avgpool, avgpool, conv 9 1x1, avgpool, fc 4 bn, fc", (2, 6, 5), {"average", "columns"}),
    ("conv 7 4x4 stride 3 pad 3, pool 2, conv 5 3x3 pad 2, pool 3, fc", (3, 13, 17), {"2x2", "rows"}),
    ("conv 9 5x5 pad 4, pool 4, fc", (3, 9, 9), {"rows"}),
    (
        "conv 12 3x3 groups 3 pad 1, pool 2, dw 3x3 stride 2 pad 2, pool 3, conv 4 1x1 groups 2, fc",
        (9, 19, 12),
        {"columns"},
    ),
]


@pytest.mark.parametrize(("line", "shape", "forms"), LINES)
@pytest.mark.parametrize(("quantizer", "bits"), [("lsq", 3), ("affine", 8)])
def test_chains_that_need_every_kernel(line: str, shape: Shape, forms: set[str], quantizer: str, bits: int) -> None:
    model = chain(line, shape, quantizer, bits)
    layers = CNetwork(model, "int8").layers
    found = {layer.form for layer in layers} | {"2x2" for layer in layers if layer.pools_by_four}
    assert forms <= found | {"copy" for layer in layers if layer.copies_image}
    assert_equal_logits(model, noise_images(shape)[:30])


def handmade(random: np.random.Generator, quantizer: str, lowest: int, zero_point: int) -> IntegerModel:
    """Kernels, strides and paddings that differ in height and width, two outputs for each channel, 8-bit weights."""
    shape, layers, inputs = (4, 11, 14), [], 255
    kinds = (
        ({"stride": (1, 2), "padding": (2, 0), "pool": 2}, (10, 4, 3, 5)),
        ({"stride": (2, 1), "padding": (0, 1), "groups": 10}, (20, 1, 1, 2)),
        ({"padding": (1, 0), "groups": 5, "pool": 2}, (15, 4, 2, 1)),
    )
    for number, (geometry, weights) in enumerate(kinds, start=1):
        codes = random.integers(0, 256, weights) + lowest
        layer = IntegerLayer(
            f"conv{number}",
            "conv",
            codes,
            8,
            quantizer,
            lowest,
            zero_point,
            np.zeros(weights[0], np.int64),
            inputs,
            None,
        )
        layer = replace(layer, **geometry)
        shift = np.full(weights[0], int(layer.accumulator_bound).bit_length() + 20)
        layers.append(
            replace(layer, requantization=Requantization(random.integers(2**29, 2**31, weights[0]), shift, 8))
        )
        shape, inputs = layer.output_shape(shape), 255
    pixels = shape[1] * shape[2]
    layers.append(AverageLayer("avg1", pixels, 255, Requantization(np.array([2**31 // pixels]), np.array([29]), 6)))
    codes = random.integers(0, 256, (3, 15)) + lowest
    layers.append(IntegerLayer("fc1", "linear", codes, 8, quantizer, lowest, zero_point, np.arange(3), 63, None))
    return IntegerModel(tuple(layers), LOGIT_SCALE, (4, 11, 14))


@pytest.mark.parametrize(
    ("quantizer", "lowest", "zero_point"), [("lsq", -128, 0), ("affine", 0, 121), ("affine", 0, 136)]
)
def test_kernels_strides_and_paddings_may_differ_in_height_and_width(
    quantizer: str, lowest: int, zero_point: int
) -> None:
    model = handmade(np.random.default_rng(1), quantizer, lowest, zero_point)
    assert [layer.form for layer in CNetwork(model, "int8").layers] == [
        "rows",
        "columns",
        "columns",
        "average",
        "columns",
    ]
    images = noise_images(model.input_shape)[:60]
    assert all(len(np.unique(codes)) > 3 for codes in model.trace(images))
    assert_equal_logits(model, images)


@pytest.mark.parametrize("target", EMBEDDED, ids=lambda target: target.name)
def test_microcontrollers_need_no_library_and_their_compilers_do_not_warn(target: Target) -> None:
    if shutil.which(target.compiler) is None:
        pytest.skip(f"not installed: {target.compiler}")
    strict = Target(target.name, target.compiler, (*target.flags, "-std=c99", *QUICK[1:]))
    for line, shape, _ in LINES[3:]:
        model = chain(line, shape)
        for layout in LAYOUTS:
            footprint = measure(c_sources(model, layout), strict)
            assert footprint is not None, (line, layout)
            arena = CNetwork(model, layout).arena.total_bytes
            assert arena <= footprint.ram_bytes < arena + 8  # what is left is alignment


@pytest.mark.parametrize("seed", [1, 6, 11, 16])
@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_sanitizers_find_nothing(seed: int, layout: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    case = random_case(seed)
    model = lower(trained(case, seed), case.shape)
    assert_sanitizers_find_nothing(model, noise(case, 5, seed).numpy(), layout, flags, tmp_path)


def test_layout_int8_of_a_depthwise_chain_takes_little_more_than_its_weights() -> None:
    model = chain(
        "conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 16 1x1 bn, dw 3x3 bn, conv 32 1x1 bn, avgpool, fc", (1, 28, 28)
    )
    network = CNetwork(model, "int8")
    assert network.weights <= network.weight_bytes <= 1.3 * network.weights


def test_the_readme_and_the_source_say_what_the_layers_are() -> None:
    model = chain("conv 4 3x3 stride 2 pad 1, pool 2, dw 3x3 pad 1, avgpool, fc", (3, 15, 14))
    facts = ModelFacts("n", "d", tuple("01234"), None)
    files = write_c(model, facts, "packed")
    for part in (
        "15x14 3-channel images",
        "630: 15 rows of 14 pixels of 3 bytes, red green blue",
        "byte (row * 14 + column) * 3 + channel",
        "| conv1 | 108 | 4 x 3 x 3 x 3 | 3 | lsq | 41 | 4 x 3 x 4 | 6048 |",
        "| dw1 | 36 | 4 x 1 x 3 x 3 | 3 | lsq | 14 | 4 x 3 x 4 | 432 |",
        "| avg1 | 0 | | | | 0 | 4 | 0 |",
        "| fc1 | 20 | 5 x 4 | 3 | lsq | 8 | 5 | 20 |",
        "| in all | 164 | | | | 63 | | 6500 |",
    ):
        assert part in files["README.md"].decode()
    header = files["model.h"].decode()
    for name, value in (("ROWS", 15), ("COLUMNS", 14), ("CHANNELS", 3), ("IMAGE_BYTES", 630), ("CLASSES", 5)):
        assert f"#define QATTRAIN_{name} {value}\n" in header
    for part in ("conv1   3x3 convolution, stride 2x2, padding 1x1, 2x2 maximum", "-> 4 x 3 x 4", "dw1     3x3"):
        assert part in files["model.c"].decode()
