"""The ONNX file itself: integers throughout, valid, as small as its bits, documented; and what can go wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import GRIDS, LENET, NANO, random_images, random_model, with_layer

from qattrain.errors import ExportError
from qattrain.export.onnx_export import FORMAT_VERSION, ONNX_EXPORTER
from qattrain.integer import IntegerModel, ModelFacts

onnx = pytest.importorskip("onnx")
FACTS = ModelFacts("lenet-test", "mnist", tuple("0123456789"), 0.9946)


def export(model: IntegerModel, facts: ModelFacts = FACTS) -> bytes:
    files = ONNX_EXPORTER.write(model, facts, "")
    assert list(files) == ["model.onnx"]
    return files["model.onnx"]


def inferred_types(model: Any) -> dict[str, str]:
    """The element type of every value, initializers included."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: onnx.TensorProto.DataType.Name(kind) for name, kind in types.items()}


@pytest.mark.parametrize(("quantizer", "bits"), GRIDS)
def test_no_value_is_a_float_and_the_file_passes_the_full_check(quantizer: str, bits: int) -> None:
    model = onnx.load_from_string(export(random_model(quantizer, bits)))
    onnx.checker.check_model(model, full_check=True)
    types = inferred_types(model)
    assert types.keys() == {name for node in model.graph.node for name in (*node.input, *node.output) if name}
    assert set(types.values()) <= {"UINT2", "UINT4", "UINT8", "INT8", "INT32", "UINT64", "INT64"}
    assert not any(
        attribute.type == onnx.AttributeProto.FLOAT for node in model.graph.node for attribute in node.attribute
    )
    assert {node.domain for node in model.graph.node} == {""}


def test_the_interface_is_an_image_and_its_logits() -> None:
    graph = onnx.load_from_string(export(random_model(classes=47))).graph
    (image,), (logits,) = graph.input, graph.output
    kinds = [value.type.tensor_type.elem_type for value in (image, logits)]
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, logits)]
    assert (image.name, kinds[0], shapes[0]) == ("image", onnx.TensorProto.UINT8, ["N", 1, 28, 28])
    assert (logits.name, kinds[1], shapes[1]) == ("logits", onnx.TensorProto.INT32, ["N", 47])


@pytest.mark.parametrize(("bits", "act_bits"), [(1, 8), (4, 4), (6, 8), (7, 7), (7, 8), (8, 1), (8, 8)])
def test_weights_are_signed_only_where_two_products_fit_16_bits(bits: int, act_bits: int) -> None:
    """u8 x s8 kernels add two products in 16 bits on CPUs without VNNI; u8 x u8 ones do not."""
    model = onnx.load_from_string(export(random_model("affine", bits, act_bits, zero_point=0)))
    types = inferred_types(model)
    products = [node for node in model.graph.node if node.op_type in ("ConvInteger", "MatMulInteger")]
    assert [types[node.input[0]] for node in products] == ["UINT8"] * 4
    largest = 2 if bits == 1 else 2**bits - 1  # binary weights are 0 and 2, with zero point 1
    fits = largest < 2**7 and 2 * (2**act_bits - 1) * largest < 2**15
    weights = ["INT8" if fits and node.op_type == "MatMulInteger" else "UINT8" for node in products]
    assert [types[node.input[1]] for node in products] == [types[node.input[3]] for node in products] == weights
    assert fits == ((bits, act_bits) not in [(7, 8), (8, 1), (8, 8)])


@pytest.mark.parametrize(("zero_point", "kind"), [(0, "INT8"), (200, "UINT8")])
def test_a_zero_point_that_fills_up_kernels_counts_as_a_weight(zero_point: int, kind: str) -> None:
    model = random_model("affine", 8, 4, zero_point=zero_point)
    for index, layer in enumerate(model.layers):
        model = with_layer(model, index, codes=layer.codes % 100)
    content = export(model)
    types = inferred_types(onnx.load_from_string(content))
    products = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "MatMulInteger"]
    assert {types[node.input[1]] for node in products} == {kind}
    with ONNX_EXPORTER.run({"model.onnx": content}) as runner:
        np.testing.assert_array_equal(runner(random_images(8)), model.run(random_images(8)))


def test_no_int64_is_compared() -> None:
    """ONNX Runtime's Clip, Min and Max of int64 are wrong for values from 2^31 to 2^32 - 1 (on x86-64, up to 1.31)."""
    model = onnx.load_from_string(export(random_model("lsq", 3)))
    types = inferred_types(model)
    compared = [
        node for node in model.graph.node if node.op_type in ("Clip", "Min", "Max", "ReduceMax", "Sign", "Relu")
    ]
    assert compared
    assert {types[node.output[0]] for node in compared} == {"INT32", "UINT64"}


@pytest.mark.parametrize(("bits", "opset"), [(1, 18), (2, 25), (3, 18), (4, 21), (5, 18), (8, 18), ((4, 4, 2, 4), 25)])
def test_the_opset_is_the_lowest_that_has_the_types(bits: int | tuple[int, ...], opset: int) -> None:
    model = onnx.load_from_string(export(random_model("lsq", bits)))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]


def test_a_file_has_the_size_of_its_bits() -> None:
    for widths, weights, channels in ((LENET, 430_500, 580), (NANO, 11_912, 66)):
        sizes = {bits: len(export(random_model("lsq", bits, widths=widths))) for bits in range(1, 9)}
        assert sorted(sizes.values()) == list(sizes.values()), sizes
        for bits, size in sizes.items():  # weights, nine bytes a channel, and the graph itself
            assert size <= weights * bits / 8 + 9 * channels + 5120, sizes
        if widths == LENET:
            assert sizes[4] <= 0.56 * sizes[8], sizes
        ternary = len(export(random_model("ternary", 2, widths=widths)))
        assert ternary <= weights * 1.6 / 8 + 9 * channels + 5120
        assert ternary <= sizes[2]  # base 3 only where it pays


def test_the_metadata_document_the_file() -> None:
    model = random_model("affine", (8, 3, 4, 5), (4, 5, 6))
    found = {entry.key: entry.value for entry in onnx.load_from_string(export(model)).metadata_props}
    assert float(found["test_accuracy"]) == FACTS.test_accuracy
    assert float(found["logit_scale"]) == model.logit_scale
    assert json.loads(found["class_names"]) == list(FACTS.class_names)
    assert json.loads(found["weight_bits"]) == {"conv1": 8, "conv2": 3, "fc1": 4, "fc2": 5}
    assert json.loads(found["activation_bits"]) == {"conv1": 4, "conv2": 5, "fc1": 6}
    assert (found["dataset"], found["model"], found["format_version"]) == ("mnist", "lenet-test", str(FORMAT_VERSION))
    assert "uint8 (N, 1, 28, 28)" in found["input"]
    assert "int32 (N, classes)" in found["output"]


def test_an_unknown_accuracy_and_names_beyond_ascii_are_documented_too() -> None:
    facts = ModelFacts("ligné", "kmnist", ("お", "き"), None)
    model = onnx.load_from_string(export(random_model(classes=2), facts))
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert (found["test_accuracy"], found["model"]) == ("unknown", "ligné")
    assert json.loads(found["class_names"]) == ["お", "き"]


@pytest.mark.parametrize(("quantizer", "bits"), [("ternary", 2), ("lsq", 3), ("affine", 4)])
def test_the_same_model_gives_the_same_bytes(quantizer: str, bits: int) -> None:
    assert export(random_model(quantizer, bits)) == export(random_model(quantizer, bits))
    assert export(random_model(quantizer, bits)) != export(random_model(quantizer, bits, seed=1))


def write() -> None:
    ONNX_EXPORTER.write(random_model(), FACTS, "")


def run() -> None:
    with ONNX_EXPORTER.run({"model.onnx": b""}):
        pass


@pytest.mark.parametrize(("package", "action"), [("onnx", write), ("onnxruntime", run)])
def test_a_missing_package_is_an_error_that_names_the_remedy(
    package: str, action: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"{package} .*pip install 'qattrain\[onnx\]'") as raised:
        action()
    assert "\n" not in str(raised.value)


def test_running_needs_no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = random_model(), random_images(4)
    files = ONNX_EXPORTER.write(model, FACTS, "")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with ONNX_EXPORTER.run(files) as runner:
        np.testing.assert_array_equal(runner(images), model.run(images))


def test_running_writes_nothing_under_the_home_folder(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    file.write_bytes(export(random_model()))
    code = (
        "import pathlib, sys, numpy\n"
        "from qattrain.export.onnx_export import ONNX_EXPORTER\n"
        "with ONNX_EXPORTER.run({'model.onnx': pathlib.Path(sys.argv[1]).read_bytes()}) as run:\n"
        "    assert run(numpy.zeros((3, 1, 28, 28), numpy.uint8)).shape == (3, 10)\n"
    )
    hidden = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(home)}
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(home.rglob("*"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_onnxruntime_cannot_load_is_one_line(share: float) -> None:
    content = export(random_model())
    damaged = {"model.onnx": content[: int(len(content) * share)]}
    with (
        pytest.raises(ExportError, match=r"onnxruntime .* does not load model.onnx.*--upgrade") as raised,
        ONNX_EXPORTER.run(damaged),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_codes_that_do_not_fit_their_bits_are_never_written() -> None:
    model = random_model("lsq", 4)
    wrong = replace(model, layers=(replace(model.layers[0], bits=3), *model.layers[1:]))
    with pytest.raises(AssertionError, match="conv1"):
        ONNX_EXPORTER.write(wrong, FACTS, "")
