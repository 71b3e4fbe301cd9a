"""The ONNX file of any chain of layers, on images of any shape, computes every logit as IntegerModel does."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from integer_models import Images, with_layer, with_requantization
from numpy.typing import NDArray
from random_chains import Case, noise, random_case, trained
from torch import nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import Shape
from qattrain.export import onnx_export
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.layers import PixelInput, QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
IMAGES = 40
EVERY_LEVEL = ("ENABLE_ALL", "ENABLE_BASIC", "DISABLE_ALL")


def export(model: IntegerModel) -> bytes:
    facts = ModelFacts("chain", "noise", tuple(map(str, range(model.classes))), None)
    return onnx_export.ONNX_EXPORTER.write(model, facts, "")["model.onnx"]


def run(content: bytes, images: Images, level: str, threads: int) -> NDArray[np.int32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    batches = [images, images[:0], images[1:2]]
    every, none, one = (np.asarray(session.run(["logits"], {"image": batch})[0]) for batch in batches)
    assert none.shape == (0, every.shape[1])
    assert none.dtype == every.dtype == np.int32
    np.testing.assert_array_equal(one, every[1:2])
    return every


def check(
    model: IntegerModel, images: Images, levels: tuple[str, ...] = EVERY_LEVEL, threads: int = 1, varied: bool = True
) -> None:
    """All images as one batch, one image alone, and a batch of none; a few images in onnx's own evaluator.

    varied: the codes of every layer are seen to differ, so that the test is not empty.
    """
    from onnx.reference import ReferenceEvaluator

    assert not varied or all(len(np.unique(codes)) > 1 for codes in model.trace(images))
    expected, content = model.run(images), export(model)
    for level in levels:
        np.testing.assert_array_equal(run(content, images, level, threads), expected, err_msg=level)
    evaluator = ReferenceEvaluator(onnx.load_from_string(content))
    (found,) = evaluator.run(None, {"image": images[:3]})
    np.testing.assert_array_equal(found, expected[:3])


@pytest.mark.parametrize("seed", range(25))
def test_a_random_chain_equals_the_integers(seed: int) -> None:
    case = random_case(seed)
    levels = EVERY_LEVEL if seed % 5 == 0 else ("ENABLE_ALL",)
    check(lower(trained(case, seed), case.shape), noise(case, IMAGES, seed).numpy(), levels, 1 + seed % 2, varied=False)


CHAINS: list[tuple[str, Shape]] = [
    ("fc", (1, 5, 7)),
    ("fc 7, fc", (4, 3, 5)),
    ("avgpool, fc", (3, 9, 6)),
    ("avgpool, avgpool, conv 5 1x1, avgpool, fc 9, fc", (4, 7, 5)),
    ("conv 8 3x3, avgpool, conv 8 3x3 pad 1, dw 5x5 pad 2, fc", (2, 4, 5)),
    # Four kernels in one product: with ConvInteger for few channels, else with gathered pixels, in pairs or not.
    ("conv 5 5x5, pool 2, fc", (1, 28, 28)),
    ("conv 5 3x3 pad 2, pool 2, conv 6 4x4 pad 1, pool 2, fc", (3, 13, 18)),
    ("conv 5 3x3 pad 1, pool 2, fc", (4, 12, 10)),
    ("conv 5 3x3 pad 1, pool 2, fc 9, fc", (4, 13, 11)),
    ("conv 5 1x1, pool 2, conv 6 2x2, pool 2, conv 7 3x3 stride 2, fc", (4, 19, 16)),
    ("conv 5 5x5, pool 2, avgpool, fc", (5, 12, 12)),
    ("conv 5 3x3, pool 2, dw 3x3 pad 1, pool 2, fc", (4, 14, 14)),
    # Pooling of sums, with and without a remainder.
    ("conv 5 3x3, pool 3, fc", (1, 14, 14)),
    ("conv 5 3x3, pool 3, fc", (4, 15, 13)),
    ("conv 6 3x3 stride 2 pad 1, pool 2, fc", (3, 16, 16)),
    ("conv 6 3x3 groups 2 pad 1, pool 2, dw 5x5 pad 4 stride 3, pool 4, avgpool, fc", (4, 31, 29)),
    ("dw 2x2, pool 5, pool 1, fc", (2, 12, 16)),
]


@pytest.mark.parametrize("quantizer", ["affine", "dorefa", "binary"])
@pytest.mark.parametrize(("line", "shape"), CHAINS, ids=str)
def test_every_form_of_a_layer_equals_the_integers(line: str, shape: Shape, quantizer: str) -> None:
    quant = QuantConfig(quantizer=quantizer, bits=1 if quantizer == "binary" else 8, act_bits=5)
    case = Case(ModelConfig(name=line), quant, shape, 6)
    check(lower(trained(case), shape), noise(case, IMAGES).numpy(), ("ENABLE_ALL", "DISABLE_ALL"))


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("channels", [2, 4])
def test_rectangular_kernels_strides_and_paddings_equal_the_integers(channels: int, pool: int) -> None:
    torch.manual_seed(0)
    wide = QuantConv2d(6, 8, (2, 5), stride=(1, 2), padding=(0, 1), groups=2, bits=3)
    pooled = nn.MaxPool2d(pool)
    net = nn.Sequential(
        *(PixelInput(), QuantConv2d(channels, 6, (3, 4), padding=(2, 0), bits=4), pooled, QuantReLU(4)),
        *(wide, pooled, QuantReLU(5), QuantAvgPool2d(6), nn.Flatten(), QuantLinear(8, 3, bits=4, per_channel=False)),
    )
    images = torch.randint(0, 256, (IMAGES, channels, 25, 33), dtype=torch.uint8)
    net.train()(images)
    check(lower(net, (channels, 25, 33)), images.numpy())


@pytest.mark.parametrize("zero_point", [0, 128])
def test_the_largest_weights_on_the_largest_codes_equal_the_integers(zero_point: int) -> None:
    """Where kernels for u8 x s8 would saturate: convolutions of groups, depthwise ones and gathered pixels."""
    line = "conv 8 3x3 stride 2 pad 1, dw 3x3 pad 1, conv 8 3x3 groups 2 pad 1, conv 9 3x3, pool 2, fc 20, fc"
    case = Case(ModelConfig(name=line), QuantConfig(quantizer="affine", bits=8, act_bits=8), (3, 20, 22), 10)
    model = lower(trained(case), case.shape)
    for index, layer in enumerate(model.products):
        codes = layer.codes.copy()
        codes[::2] = 255
        model = with_layer(model, index, codes=codes, zero_point=zero_point)
        if layer.requantization is not None:  # a third of the largest sum has code 255
            shift = 28 + (model.layers[index].accumulator_bound // 256).bit_length()
            model = with_requantization(model, index, [2**30], [shift])
    images = noise(case, IMAGES).numpy()
    assert zero_point or all(255 in codes for codes in model.trace(images)[:-1])
    check(model, images)


def test_the_file_says_which_images_it_takes() -> None:
    case = Case(ModelConfig(name="conv 4 3x3, avgpool, fc"), QuantConfig(), (3, 14, 10), 5)
    content = export(lower(trained(case), case.shape))
    model = onnx.load_from_string(content)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert "uint8 (N, 3, 14, 10)" in found["input"]
    assert json.loads(found["input_shape"]) == [3, 14, 10]
    assert json.loads(found["weight_bits"]) == {"conv1": 4, "fc1": 4}
    assert json.loads(found["activation_bits"]) == {"conv1": 4, "avg1": 8}
    session = onnx_export.open_session(content, 1)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["N", 3, 14, 10])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(int32)", ["N", 5])


@pytest.mark.parametrize("limit", [1, 1000, 10**6])
def test_images_of_any_size_are_run_in_batches_of_limited_size(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "BATCH_BYTES", limit)
    case = Case(ModelConfig(name="conv 4 3x3, avgpool, fc"), QuantConfig(), (3, 14, 10), 5)
    model, images = lower(trained(case), case.shape), noise(case, 7).numpy()
    with onnx_export.ONNX_EXPORTER.run({onnx_export.FILE: export(model)}) as runner:
        for count in (0, 1, 2, 7):
            np.testing.assert_array_equal(runner(images[:count]), model.run(images[:count]))


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_has_no_float_and_compares_no_int64(seed: int) -> None:
    """ONNX Runtime's Clip, Min and Max of int64 are wrong for values from 2^31 to 2^32 - 1 (on x86-64, up to 1.31)."""
    line = "conv 4 3x3 pad 1, pool 2, conv 8 5x5, pool 2, dw 3x3 stride 2 pad 2, pool 2, avgpool, fc"
    quantizer = ["lsq", "ternary", "dorefa", "affine"][seed]
    case = Case(ModelConfig(name=line), QuantConfig(quantizer=quantizer, bits=2 + 2 * (seed > 1)), (3, 31, 29), 4)
    model = onnx.load_from_string(export(lower(trained(case), case.shape)))
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types: dict[str, Any] = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    names = {name: onnx.TensorProto.DataType.Name(kind) for name, kind in types.items()}
    assert set(names.values()) <= {"UINT2", "UINT4", "UINT8", "INT8", "INT32", "UINT64", "INT64"}
    compared = [node for node in graph.node if node.op_type in ("Clip", "Min", "Max", "ReduceMax")]
    assert {names[node.output[0]] for node in compared} == {"INT32", "UINT64"}
