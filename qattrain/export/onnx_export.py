"""The ONNX exporter: one `model.onnx` of integer operators, equal to IntegerModel in every logit; no float tensor.

Input `image`, uint8 (N, 1, 28, 28), any N; output `logits`, int32 (N, classes).

**Sums.** A convolution and its 2x2 pooling need four sums per output. They come from one product with four kernels: the
5x5 kernel at the four corners of a 6x6 one, zeros elsewhere, which moves by two pixels. That is 36 / 25 of the
multiplications, but only a quarter of the pixels have to be gathered, and the maximum is taken over one axis. The four
kernels are made from the one when the file is loaded. conv1 is a ConvInteger. conv2, which has many channels, is
faster as a MatMulInteger of gathered pixels: its constant weights are then the right-hand side, which ONNX Runtime
arranges for its kernels once.

Safe without VNNI: the u8 x s8 kernels of older x86 add pairs of products in 16 bits and may saturate. So weights are
int8 only where two products fit 16 bits. Elsewhere they are uint8 with a zero point, and both operands are unsigned:
those kernels widen to 16 bits first and add in 32, exact on every CPU, but without VNNI's speed.

**Codes** are computed from the sums with as few operators as exactness allows:

    Max -b                              int32: a sum below -b has code 0, as -b itself has
    Cast, Mul m, Add (b m + 2^(k-1))    int64: (sum + b) m + 2^(k-1), multiplied out; not negative, thanks to Max
    Cast, BitShift k, Min qmax          uint64, the only wide type with a shift
    Cast                                uint8 codes

One int64 Clip could replace Max and Min, but ONNX Runtime's int64 Clip, Min and Max are wrong on x86-64 for values
from 2^31 to 2^32 - 1 (measured, 1.23 to 1.31; its pull request 32475); those of int32 and uint64 are right.

m, b and k take nine bytes per channel. What the graph computes from them, and from the packed weights, does not depend
on the image, so ONNX Runtime computes it once, when it loads the file.

Opset 18; 21 where a layer has 4-bit weights, 25 where one has 2-bit weights.
"""

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError, optional_package, reason
from qattrain.export.base import POOLED_SIDE, Exporter, Files, Runner
from qattrain.export.onnx_graph import Graph, StoredWeight, add_weights, stored_weight
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts

FILE = "model.onnx"
FORMAT_VERSION = 1
INPUT = "image: uint8 (N, 1, 28, 28), raw pixels, light strokes (255) on dark (0), not normalized"
OUTPUT = "logits: int32 (N, classes); the class is the largest, the first of equals; real logits: times logit_scale"
CONV1_SIDE = 12  # of its pooled map
WINDOW = 6  # pixels in a row that the four 5x5 kernels of a 2x2 window see
RUN_BATCH = 1000


def write_onnx(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """`model.onnx`, the same bytes for the same model. layout: always "". Raises ExportError without onnx."""
    assert not layout, layout
    weights = [stored_weight(layer) for layer in model.layers]
    can_be_ternary = any(weight.digits(True) != weight.digits(False) for weight in weights)
    candidates = [_build(model, facts, weights, ternary) for ternary in (False, True)[: 1 + can_be_ternary]]
    return {FILE: min(candidates, key=len)}


def _build(model: IntegerModel, facts: ModelFacts, weights: list[StoredWeight], ternary: bool) -> bytes:
    graph = Graph()
    values = add_weights(graph, weights, ternary)
    first, second, third, last = ((weight, values[weight.name]) for weight in weights)
    conv1, conv2, fc1, fc2 = model.layers
    x = _requantize(graph, conv1, convolve(graph, "image", *first, CONV1_SIDE), (-1, 1, 1))
    x = _requantize(graph, conv2, convolve_gathered(graph, x, *second, POOLED_SIDE))
    x = graph.node("Flatten", [x], axis=1)
    x = _requantize(graph, fc1, multiply(graph, x, *third))
    sums = multiply(graph, x, *last)
    graph.node("Add", [sums, graph.constant(f"{fc2.name}.bias", _int32(fc2.bias))], "logits")
    return graph.model(facts.name, model.classes, _metadata(model, facts))


def _metadata(model: IntegerModel, facts: ModelFacts) -> dict[str, str]:
    hidden = {layer.name: layer.requantization.bits for layer in model.layers if layer.requantization is not None}
    return {
        "format": "qattrain-onnx",
        "format_version": str(FORMAT_VERSION),
        "input": INPUT,
        "output": OUTPUT,
        "model": facts.name,
        "dataset": facts.dataset,
        "class_names": json.dumps(facts.class_names),
        "test_accuracy": "unknown" if facts.test_accuracy is None else repr(float(facts.test_accuracy)),
        "logit_scale": repr(float(model.logit_scale)),
        "weight_bits": json.dumps({layer.name: layer.bits for layer in model.layers}),
        "activation_bits": json.dumps(hidden),
    }


def _int32(values: NDArray[np.int64]) -> NDArray[np.int32]:
    assert -(2**31) <= values.min() <= values.max() < 2**31, (values.min(), values.max())
    return values.astype(np.int32)


def _requantize(graph: Graph, layer: IntegerLayer, sums: str, channels: tuple[int, ...] = (-1,)) -> str:
    """int32 sums of products -> uint8 codes; every step fits int64.

    channels: the shape that broadcasts one number per channel against the sums.
    """
    name, how = layer.name, layer.requantization
    assert how is not None, name
    assert how.multiplier.min() >= 0, (name, how.multiplier)
    assert 1 <= how.shift.min() <= how.shift.max() <= 62, (name, how.shift)
    bias = graph.constant(f"{name}.bias", _int32(layer.bias).reshape(channels))
    multiplier = graph.constant(f"{name}.multiplier", _int32(how.multiplier).reshape(channels))
    shift = graph.constant(f"{name}.shift", how.shift.astype(np.uint8).reshape(channels))
    # Independent of the image:
    m, k = graph.cast(multiplier, "INT64"), graph.cast(shift, "UINT64")
    power = graph.cast(graph.node("BitShift", [graph.scalar(1, np.uint64), k], direction="LEFT"), "INT64")
    half = graph.node("Div", [power, graph.scalar(2, np.int64)])
    offset = graph.node("Add", [graph.node("Mul", [graph.cast(bias, "INT64"), m]), half])
    lowest = graph.node("Neg", [bias])
    # For each image:
    wide = graph.cast(graph.node("Max", [sums, lowest]), "INT64")
    product = graph.cast(graph.node("Add", [graph.node("Mul", [wide, m]), offset]), "UINT64")
    shifted = graph.node("BitShift", [product, k], direction="RIGHT")
    clipped = graph.node("Min", [shifted, graph.scalar(how.qmax, np.uint64)])
    return graph.cast(clipped, "UINT8", f"{name}.codes")


def convolve(graph: Graph, image: str, weight: StoredWeight, value: str, side: int) -> str:
    """(N, C, 2 side + 4, 2 side + 4) -> pooled sums (N, D, side, side)."""
    outputs, channels = weight.codes.shape[:2]
    shape, sums = (4 * outputs, channels, WINDOW, WINDOW), []
    for zero_point in weight.zero_points:
        kernels = _four_kernels(graph, zero_point, value, (2, 4, 0, 1, 3, 5), shape)
        operands = [image, kernels, "", graph.scalar(zero_point, np.uint8)]
        sums.append(graph.node("ConvInteger", operands, strides=[2, 2]))
    return _maximum(graph, graph.reshape(_added(graph, sums), (0, 4, outputs, side, side)), 1)


def convolve_gathered(graph: Graph, codes: str, weight: StoredWeight, value: str, side: int) -> str:
    """(N, C, 2 side + 4, 2 side + 4) -> pooled sums (N, side * side, D), pixels before channels."""
    outputs, channels = weight.codes.shape[:2]
    in_kernel = WINDOW * WINDOW * channels
    # Pixels are gathered in pairs, side by side: windows begin at even ones. The index of a pair is first + next.
    half_line = side + 2
    first = np.arange(side)[:, None] * 2 * half_line + np.arange(side)
    within = np.arange(WINDOW)[:, None] * half_line + np.arange(WINDOW // 2)
    places = [
        graph.constant("windows.first", first.reshape(-1, 1).astype(np.int32)),
        graph.constant("windows.next", within.reshape(-1).astype(np.int32)),
    ]
    pairs = graph.reshape(graph.node("Transpose", [codes], perm=[0, 2, 3, 1]), (0, -1, 2 * channels))
    windows = graph.node("Gather", [pairs, graph.node("Add", places)], axis=1)
    order, shape = (3, 5, 1, 2, 4, 0), (in_kernel, 4 * outputs)
    kernels = [_four_kernels(graph, zero_point, value, order, shape) for zero_point in weight.zero_points]
    sums = _multiply(graph, graph.reshape(windows, (0, side * side, in_kernel)), weight, kernels)
    return _maximum(graph, graph.reshape(sums, (0, side * side, 4, outputs)), 2)


def multiply(graph: Graph, codes: str, weight: StoredWeight, value: str) -> str:
    """(..., inputs) times (inputs, D) -> sums (..., D)."""
    return _multiply(graph, codes, weight, [value] * len(weight.zero_points))


def _multiply(graph: Graph, codes: str, weight: StoredWeight, values: list[str]) -> str:
    """The sums of one product per zero point, each with a value of its own."""
    sums = []
    for zero_point, value in zip(weight.zero_points, values, strict=True):
        operands = [graph.cast(value, "INT8") if weight.is_int8 else value, ""]
        operands.append(graph.scalar(zero_point, np.int8 if weight.is_int8 else np.uint8))
        sums.append(graph.node("MatMulInteger", [codes, *operands]))
    return _added(graph, sums)


def _added(graph: Graph, sums: list[str]) -> str:
    return functools.reduce(lambda one, other: graph.node("Add", [one, other]), sums)


def _four_kernels(graph: Graph, zero_point: int, value: str, order: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """(D, C, 5, 5) -> (D, C, corner's row, row, corner's column, column), transposed to `order`, in `shape`.

    With a margin on all sides, rows or columns 1 .. 6 put the kernel into the first corner, 0 .. 5 into the second.
    """
    margins = graph.constant("margins", np.array([0, 0, 1, 1] * 2, np.int64))
    corners = graph.constant("corners", np.array([[1], [0]], np.int32) + np.arange(WINDOW, dtype=np.int32))
    value = graph.node("Pad", [value, margins, graph.scalar(zero_point, np.uint8)])
    for axis in (2, 4):
        value = graph.node("Gather", [value, corners], axis=axis)
    return graph.reshape(graph.node("Transpose", [value], perm=order), shape)


def _maximum(graph: Graph, values: str, axis: int) -> str:
    axes = graph.constant(f"axis.{axis}", np.array([axis], np.int64))
    return graph.node("ReduceMax", [values, axes], keepdims=0)


def open_session(content: bytes, threads: int) -> Any:
    """An ONNX file in ONNX Runtime on the CPU. Raises ExportError if that is not installed or does not load it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # importing it would write an id under the home folder
    with optional_package("onnx", "onnx", ExportError):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, without a common base of their own
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} does not load {FILE}: {reason(error)}; "
            "a newer one may: pip install --upgrade 'qattrain[onnx]'"
        ) from None


@contextmanager
def run_onnx(files: Files) -> Iterator[Runner]:
    """Runs `model.onnx` on all cores of this CPU. Raises ExportError if that is not possible."""
    # With a number of threads it does not pin them to cores, which fails with warnings in containers.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    session = open_session(files[FILE], allowed or 1)
    classes = session.get_outputs()[0].shape[1]

    def run(images: NDArray[np.uint8]) -> NDArray[np.int32]:
        starts = range(0, len(images), RUN_BATCH)
        batches = [session.run(["logits"], {"image": images[start : start + RUN_BATCH]})[0] for start in starts]
        return np.concatenate([np.zeros((0, classes), np.int32), *batches])

    yield run


ONNX_EXPORTER = Exporter(write=write_onnx, run=run_onnx)
