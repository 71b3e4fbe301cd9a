"""The ONNX file computes every logit as IntegerModel does, in ONNX Runtime with any setting and in onnx's evaluator."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integer_models import GRIDS, LENET, Images, random_images, random_model, with_layer, with_requantization
from numpy.typing import NDArray

from qattrain.config import ModelConfig, QuantConfig
from qattrain.data import load_dataset
from qattrain.export.onnx_export import ONNX_EXPORTER
from qattrain.integer import INT32_MAX, IntegerModel, ModelFacts, Requantization
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # importing onnxruntime would write an id under the home folder
FACTS = ModelFacts("lenet-test", "mnist", tuple("0123456789"), 0.9946)
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def export(model: IntegerModel) -> bytes:
    return ONNX_EXPORTER.write(model, FACTS, "")["model.onnx"]


def session(content: bytes, level: str = "ENABLE_ALL", threads: int = 1) -> Callable[[Images], NDArray[np.int32]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    running = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> NDArray[np.int32]:
        (logits,) = running.run(None, {"image": images})
        assert logits.dtype == np.int32
        return np.asarray(logits)

    return run


def check(model: IntegerModel, images: Images, levels: tuple[str, ...] = LEVELS, varied: bool = True) -> None:
    """Every logit of every image: as one batch, of one image alone, and of a few in onnx's evaluator.

    varied: the codes of every layer are seen to differ, so that the test is not empty.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    for layer, codes in zip(model.layers, model.trace(images), strict=True):
        assert layer.accumulator_bound <= INT32_MAX, layer.name
        assert not varied or len(np.unique(codes)) > 1, layer.name
    expected, content = model.run(images), export(model)
    for level in levels:
        run = session(content, level)
        np.testing.assert_array_equal(run(images), expected, err_msg=level)
        np.testing.assert_array_equal(run(images[1:2]), expected[1:2], err_msg=level)
    some = [0, 1, -2, -1]
    (found,) = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images[some]})
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected[some])


@pytest.mark.parametrize(("quantizer", "bits"), GRIDS)
def test_every_width_of_every_quantizer_equals_the_integers(quantizer: str, bits: int) -> None:
    check(random_model(quantizer, bits, bits, seed=bits), random_images(40, seed=bits))


MIXED: list[tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = [
    (("lsq", "binary", "ternary", "affine"), (8, 1, 2, 3), (5, 1, 8)),
    (("ternary", "lsq", "ternary", "lsq"), (2, 2, 2, 4), (2, 3, 1)),
    (("affine", "affine", "lsq", "lsq"), (7, 3, 3, 5), (8, 8, 7)),
    (("binary", "lsq", "binary", "lsq"), (1, 6, 1, 6), (6, 4, 2)),
    (("dorefa", "dorefa", "binary", "dorefa"), (8, 3, 1, 8), (6, 4, 8)),
    (("dorefa", "lsq", "ternary", "dorefa"), (3, 3, 2, 2), (6, 4, 8)),
]


@pytest.mark.parametrize(("quantizers", "bits", "acts"), MIXED, ids=str)
def test_mixed_layers_equal_the_integers(quantizers: Any, bits: Any, acts: Any) -> None:
    check(random_model(quantizers, bits, acts), random_images(40))


@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 5, 7), (5, 3, 33), (20, 7, 11)], ids=str)
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_odd_widths_and_47_classes_equal_the_integers(widths: tuple[int, int, int], bits: int) -> None:
    check(random_model("lsq", bits, widths=widths, classes=47), random_images(30), varied=min(widths) > 1)


@pytest.mark.parametrize(("quantizer", "bits"), [("lsq", 3), ("ternary", 2)])
def test_packed_codes_that_do_not_end_with_a_byte_equal_the_integers(quantizer: str, bits: int) -> None:
    for classes in range(2, 10):
        check(random_model(quantizer, bits, widths=(20, 23, 41), classes=classes), random_images(6), ("ENABLE_ALL",))


@pytest.fixture(scope="module")
def thousand() -> Callable[..., tuple[bytes, Images, Any]]:
    """An exported net, 1000 images and their logits, made once for each kind of weight."""
    made: dict[tuple[str, int], tuple[bytes, Images, Any]] = {}

    def make(quantizer: str, bits: int) -> tuple[bytes, Images, Any]:
        if (quantizer, bits) not in made:
            model, images = random_model(quantizer, bits, 8), random_images(1000)
            made[quantizer, bits] = export(model), images, model.run(images)
        return made[quantizer, bits]

    return make


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("quantizer", "bits"), [("binary", 1), ("ternary", 2), ("lsq", 2), ("lsq", 4), ("affine", 8)])
def test_no_optimization_level_thread_count_or_batch_size_changes_a_logit(
    quantizer: str, bits: int, level: str, threads: int, thousand: Callable[..., tuple[bytes, Images, Any]]
) -> None:
    content, images, expected = thousand(quantizer, bits)
    run = session(content, level, threads)
    np.testing.assert_array_equal(run(images), expected)
    for index in (0, 1, 500, 999):
        np.testing.assert_array_equal(run(images[index : index + 1]), expected[index : index + 1])


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("binary", 1), ("ternary", 2), ("lsq", 7), ("affine", 8), ("dorefa", 8)]
)
def test_the_default_net_equals_the_integers(quantizer: str, bits: int) -> None:
    check(random_model(quantizer, bits, bits, LENET), random_images(100), ("DISABLE_ALL", "ENABLE_ALL"))


def test_sums_beyond_what_float32_and_16_bits_hold_equal_the_integers() -> None:
    """The largest weights on the largest codes: where kernels for u8 x s8 would saturate, or just not."""
    for quantizer, code, bits in (
        ("lsq", 127, 8),
        ("lsq", -128, 8),
        ("affine", 255, 8),
        ("affine", 127, 7),
        ("dorefa", 255, 8),
    ):
        model = random_model(quantizer, bits, bits, LENET, zero_point=0)
        for index in (1, 2):
            codes = model.layers[index].codes.copy()
            codes[::2] = code
            model = with_layer(model, index, codes=codes)
        model = with_requantization(model, 0, [2**31 - 1], [30])
        assert bits < 8 or model.layers[2].accumulator_bound > 2**24
        check(model, random_images(30), ("DISABLE_ALL", "ENABLE_ALL"))


@pytest.mark.parametrize("shift", [1, 2, 31, 32, 61, 62])
@pytest.mark.parametrize("multiplier", [0, 1, 2**30, 2**31 - 1])
def test_every_multiplier_and_shift_equals_the_integers(multiplier: int, shift: int) -> None:
    """In every second channel of each hidden layer; half of those also have the largest or the smallest bias."""
    for index in range(3):
        model = random_model("lsq", 8, 8, seed=index)
        how, bias = model.layers[index].requantization, model.layers[index].bias.copy()
        assert how is not None
        m, k = how.multiplier.copy(), how.shift.copy()
        m[::2], k[::2] = multiplier, shift
        bias[::8], bias[2::8] = 2**22 - 1, 1 - 2**22
        check(
            with_layer(model, index, bias=bias, requantization=Requantization(m, k, 8)),
            random_images(16),
            ("ENABLE_ALL",),
        )


def test_accumulators_at_the_ends_of_int32_and_products_near_2_to_the_62_equal_the_integers() -> None:
    model = random_model("lsq", 8, 8)
    for index in range(4):
        bare = with_layer(model, index, bias=np.zeros_like(model.layers[index].bias))
        room = INT32_MAX - bare.layers[index].accumulator_bound
        bias = model.layers[index].bias.copy()
        bias[::3], bias[1::3] = room, -room
        model = with_layer(model, index, bias=bias)
    for index in range(3):
        model = with_requantization(model, index, [2**31 - 1, 2**31 - 1, 2**30 + 1], [54, 62, 44, 55])
    assert max(layer.accumulator_bound for layer in model.layers) == INT32_MAX
    check(model, random_images(40))


@pytest.mark.parametrize(
    ("multipliers", "shifts"),
    [
        ([1, 2**30], [1, 31]),  # every second sum lies exactly between two codes: rounded up
        ([2**30, 2**31 - 1], [1, 2]),  # sums from 4 on give 2^31 and more before they are cut to 255
        ([2**31 - 1, 1], [62, 8]),
    ],
)
def test_pixels_themselves_as_sums_equal_the_integers(multipliers: list[int], shifts: list[int]) -> None:
    model, pixels = random_model("lsq", 8, 8), random_images(40)
    codes = np.zeros_like(model.layers[0].codes)
    codes[:, 0, 2, 2] = 1
    model = with_layer(model, 0, codes=codes, bias=np.arange(8) // 2 - 4)
    pixels[:20] //= 12
    check(with_requantization(model, 0, multipliers, shifts), pixels, varied=max(shifts) < 62)


@pytest.mark.parametrize("code", [-8, 0, 7])
def test_dead_and_constant_channels_equal_the_integers(code: int) -> None:
    some = every = random_model("lsq", 4)
    for index in range(4):
        codes = some.layers[index].codes.copy()
        codes[::2] = code
        some = with_layer(some, index, codes=codes)
        every = with_layer(every, index, codes=np.full_like(codes, code))
    check(some, random_images(20))
    check(every, random_images(20), varied=False)


@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 254, 255])
def test_every_zero_point_equals_the_integers(zero_point: int) -> None:
    model = random_model("affine", 8, 8, zero_point=zero_point)
    check(model, random_images(20))
    narrow = [np.maximum(layer.codes, 250) for layer in model.layers]  # codes all on one side of the zero point
    for index, codes in enumerate(narrow):
        model = with_layer(model, index, codes=codes)
    check(model, random_images(20), varied=False)


TRAINED = [{"bits": 4}, {"quantizer": "ternary"}, {"quantizer": "affine", "bits": 3}, {"bits": 1, "act_bits": 2}]
TRAINED += [{"quantizer": "dorefa", "bits": 8}, {"quantizer": "pact"}]


@pytest.mark.parametrize("quant", TRAINED, ids=str)
def test_a_trained_and_lowered_network_equals_its_integers(quant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = build_model(ModelConfig(name="lenet-nano"), QuantConfig(**quant), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = random_images(64)
    for _ in range(4):
        loss = F.cross_entropy(net(torch.from_numpy(images)), torch.arange(64) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check(lower(net), images)


def test_run_takes_any_number_of_images() -> None:
    model, images = random_model("lsq", 4, classes=47), random_images(2001)
    with ONNX_EXPORTER.run(ONNX_EXPORTER.write(model, FACTS, "")) as run:
        for count in (0, 1, 2, 999, 1000, 1001, 2001):
            logits = run(images[:count])
            assert (logits.dtype, logits.shape) == (np.int32, (count, 47))
            np.testing.assert_array_equal(logits, model.run(images[:count]))


def test_real_images_give_the_logits_of_the_integers(mnist_dir: Path) -> None:
    images = load_dataset("mnist", mnist_dir).test.images.numpy()
    model = random_model("lsq", 4, widths=LENET)
    with ONNX_EXPORTER.run(ONNX_EXPORTER.write(model, FACTS, "")) as run:
        np.testing.assert_array_equal(run(images), model.run(images))
