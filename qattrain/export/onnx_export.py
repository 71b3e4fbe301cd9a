"""The ONNX exporter: one `model.onnx` of integer operators, equal to IntegerModel in every logit; no float tensor.

Input `image`, uint8 (N, C, H, W), any N, 0 included; output `logits`, int32 (N, classes).

**Sums.** A convolution is a ConvInteger, with the layer's stride, padding and groups, and a fully connected layer a
MatMulInteger. Max-pooling takes the maximum of the sums, over the rows of every window and then over its columns. An
average is a ReduceSum: its division lies in the multiplier.

Convolutions with stride 1, one group and 2x2 pooling are faster another way. They need four sums per output, which come
from one product with four kernels: a 5x5 kernel at the four corners of a 6x6 one, zeros elsewhere, which moves by two
pixels. That is 36 / 25 of the multiplications, but only a quarter of the pixels have to be gathered, and the maximum is
taken over one axis. The four kernels are made from the one when the file is loaded. With few channels the product is a
ConvInteger. With more it is faster as a MatMulInteger of gathered pixels: its constant weights are then the right-hand
side, which ONNX Runtime arranges for its kernels once.

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
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ExportError, optional_package, reason
from qattrain.export.base import Exporter, Files, Runner
from qattrain.export.onnx_graph import Graph, StoredWeight, add_weights, stored_weight
from qattrain.files.escapes import visible
from qattrain.integer import AverageLayer, IntegerLayer, IntegerModel, ModelFacts, Requantization

FILE = "model.onnx"
FORMAT_VERSION = 1
INPUT = "image: uint8 (N, {shape}), raw pixels as in the dataset (MNIST: light strokes on dark), not normalized"
OUTPUT = "logits: int32 (N, classes); the class is the largest, the first of equals; real logits: times logit_scale"
FEW_CHANNELS = 3  # up to so many, ConvInteger is faster than a product of gathered pixels
BATCH_BYTES = 784_000  # of images that are computed at a time; sums take many times as much


def write_onnx(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """`model.onnx`, the same bytes for the same model. layout: always "". Raises ExportError without onnx."""
    assert not layout, layout
    weights = [
        stored_weight(layer, inputs, by_pixel=_is_gathered(before))
        for before, layer, inputs in zip((None, *model.layers), model.layers, model.shapes, strict=False)
        if isinstance(layer, IntegerLayer)
    ]
    can_be_ternary = any(weight.digits(True) != weight.digits(False) for weight in weights)
    candidates = [_build(model, facts, weights, ternary) for ternary in (False, True)[: 1 + can_be_ternary]]
    return {FILE: min(candidates, key=len)}


def _build(model: IntegerModel, facts: ModelFacts, weights: list[StoredWeight], ternary: bool) -> bytes:
    graph = Graph()
    values = add_weights(graph, weights, ternary)
    stored = {weight.name: weight for weight in weights}
    x = "image"
    for before, layer, inputs in zip((None, *model.layers), model.layers, model.shapes, strict=False):
        if layer.kind == "linear":
            x = x if before is not None and before.kind == "linear" else graph.node("Flatten", [x], axis=1)
        elif _is_gathered(before):
            x = graph.reshape(graph.node("Transpose", [x], perm=[0, 2, 1]), (0, *inputs))
        if isinstance(layer, AverageLayer):
            sums = add_up(graph, x)
        elif layer.kind == "linear":
            sums = multiply(graph, x, stored[layer.name], values[layer.name])
        else:
            form = convolve_gathered if _is_gathered(layer) else convolve
            sums = form(graph, x, layer, inputs, stored[layer.name], values[layer.name])
        if layer.requantization is not None:
            x = _requantize(graph, layer, layer.requantization, sums)
    last = model.products[-1]
    graph.node("Add", [sums, graph.constant(f"{last.name}.bias", _int32(last.bias))], "logits")
    return graph.model(visible(facts.name), model.input_shape, model.classes, _metadata(model, facts))


def _has_four_kernels(layer: IntegerLayer) -> bool:
    """Whether the four sums of every pooled output come from one product."""
    return (layer.kind, layer.stride, layer.groups, layer.pool) == ("conv", (1, 1), 1, 2)


def _is_gathered(layer: IntegerLayer | AverageLayer | None) -> bool:
    """Whether that product is a matrix product of gathered pixels. Its outputs have their pixels before channels."""
    return isinstance(layer, IntegerLayer) and _has_four_kernels(layer) and layer.codes.shape[1] > FEW_CHANNELS


def _metadata(model: IntegerModel, facts: ModelFacts) -> dict[str, str]:
    hidden = {layer.name: layer.requantization.bits for layer in model.layers if layer.requantization is not None}
    return {
        "format": "qattrain-onnx",
        "format_version": str(FORMAT_VERSION),
        "input": INPUT.format(shape=", ".join(map(str, model.input_shape))),
        "input_shape": json.dumps(model.input_shape),
        "output": OUTPUT,
        "model": visible(facts.name),
        "dataset": visible(facts.dataset),
        "class_names": json.dumps(facts.class_names),
        "test_accuracy": "unknown" if facts.test_accuracy is None else repr(float(facts.test_accuracy)),
        "logit_scale": repr(float(model.logit_scale)),
        "weight_bits": json.dumps({layer.name: layer.bits for layer in model.products}),
        "activation_bits": json.dumps(hidden),
    }


def _int32(values: NDArray[np.int64]) -> NDArray[np.int32]:
    assert -(2**31) <= values.min() <= values.max() < 2**31, (values.min(), values.max())
    return values.astype(np.int32)


def _requantize(graph: Graph, layer: IntegerLayer | AverageLayer, how: Requantization, sums: str) -> str:
    """int32 sums, of products or of codes -> uint8 codes; every step fits int64."""
    name = layer.name
    assert how.multiplier.min() >= 0, (name, how.multiplier)
    assert 1 <= how.shift.min() <= how.shift.max() <= 62, (name, how.shift)
    biases = np.zeros(1, np.int64) if isinstance(layer, AverageLayer) else layer.bias
    # The shape that broadcasts one number per channel against the sums.
    channels = (-1, 1, 1) if layer.kind == "conv" and not _is_gathered(layer) else (-1,)
    bias = graph.constant(f"{name}.bias", _int32(biases).reshape(channels))
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


def add_up(graph: Graph, codes: str) -> str:
    """(N, C, H, W) -> sums (N, C, 1, 1)."""
    axes = graph.constant("sides", np.array([2, 3], np.int64))
    return graph.node("ReduceSum", [graph.cast(codes, "INT32"), axes])


def convolve(graph: Graph, codes: str, layer: IntegerLayer, inputs: Shape, weight: StoredWeight, value: str) -> str:
    """(N, C, H, W) -> pooled sums (N, D, H', W')."""
    outputs, rows, columns = layer.output_shape(inputs)
    has_four, strides = _has_four_kernels(layer), layer.stride
    if has_four:
        order, shape, strides = (2, 4, 0, 1, 3, 5), (4 * outputs, inputs[0], *_window(layer)), (2, 2)
    attributes: dict[str, Any] = {"strides": strides} if strides != (1, 1) else {}
    if any(layer.padding):
        attributes["pads"] = layer.padding * 2
    if layer.groups > 1:
        attributes["group"] = layer.groups
    sums = []
    for zero_point in weight.zero_points:
        kernels = _four_kernels(graph, layer, zero_point, value, order, shape) if has_four else value
        operands = [codes, kernels, "", graph.scalar(zero_point, np.uint8)]
        sums.append(graph.node("ConvInteger", operands, **attributes))
    total = _added(graph, sums)
    if has_four:
        return _maximum(graph, graph.reshape(total, (0, 4, outputs, rows, columns)), 1)
    return total if layer.pool == 1 else _pool(graph, total, layer.map_shape(inputs), layer.pool)


def _pool(graph: Graph, sums: str, shape: Shape, pool: int) -> str:
    """(N, *shape) -> (N, D, H', W'): the maximum over the rows of every window, then over its columns."""
    outputs, *sides = shape
    rows, columns = (side // pool for side in sides)
    kept = [rows * pool, columns * pool]
    if kept != sides:  # a remainder belongs to no window
        slices = {"origin": [0, 0], "x".join(map(str, kept)): kept, "sides": [2, 3]}  # starts, ends, axes
        sums = graph.node("Slice", [sums, *(graph.constant(n, np.array(v, np.int64)) for n, v in slices.items())])
    sums = _maximum(graph, graph.reshape(sums, (0, outputs * rows, pool, columns * pool)), 2)
    return _maximum(graph, graph.reshape(sums, (0, outputs, rows, columns, pool)), 4)


def convolve_gathered(
    graph: Graph, codes: str, layer: IntegerLayer, inputs: Shape, weight: StoredWeight, value: str
) -> str:
    """(N, C, H, W) -> pooled sums (N, H' W', D), pixels before channels."""
    outputs, rows, columns = layer.output_shape(inputs)
    channels, *sides = inputs
    height, width = (side + 2 * padding for side, padding in zip(sides, layer.padding, strict=True))
    high, wide = _window(layer)
    if any(layer.padding):
        pads = graph.constant(f"{layer.name}.pads", np.array([0, 0, *layer.padding] * 2, np.int64))
        codes = graph.node("Pad", [codes, pads, graph.scalar(0, np.uint8)])
    # Pixels are gathered in pairs, side by side, where all windows begin at even ones and end at odd ones. The index of
    # a pair is first + next.
    run = 2 if width % 2 == wide % 2 == 0 else 1
    line = width // run
    first = np.arange(rows)[:, None] * 2 * line + np.arange(columns) * 2 // run
    within = np.arange(high)[:, None] * line + np.arange(wide // run)
    places = [
        graph.constant(f"{layer.name}.first", first.reshape(-1, 1).astype(np.int32)),
        graph.constant(f"{layer.name}.next", within.reshape(-1).astype(np.int32)),
    ]
    by_pixel = graph.node("Transpose", [codes], perm=[0, 2, 3, 1])
    runs = graph.reshape(by_pixel, (0, height * line, run * channels))
    windows = graph.node("Gather", [runs, graph.node("Add", places)], axis=1)
    in_kernel = high * wide * channels
    order, shape = (3, 5, 1, 2, 4, 0), (in_kernel, 4 * outputs)
    kernels = [_four_kernels(graph, layer, zero_point, value, order, shape) for zero_point in weight.zero_points]
    sums = _multiply(graph, graph.reshape(windows, (0, rows * columns, in_kernel)), weight, kernels)
    return _maximum(graph, graph.reshape(sums, (0, rows * columns, 4, outputs)), 2)


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


def _window(layer: IntegerLayer) -> tuple[int, int]:
    """Rows and columns that the four kernels of a 2x2 window see."""
    rows, columns = layer.codes.shape[2:]
    return rows + 1, columns + 1


def _four_kernels(
    graph: Graph, layer: IntegerLayer, zero_point: int, value: str, order: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    """(D, C, K, J) -> (D, C, corner's row, row, corner's column, column), transposed to `order`, in `shape`.

    With a margin on all sides, rows or columns from 1 on put the kernel into the first corner, from 0 into the second.
    """
    margins = graph.constant("margins", np.array([0, 0, 1, 1] * 2, np.int64))
    value = graph.node("Pad", [value, margins, graph.scalar(zero_point, np.uint8)])
    for axis, side in zip((2, 4), _window(layer), strict=True):
        corners = np.array([[1], [0]], np.int32) + np.arange(side, dtype=np.int32)
        value = graph.node("Gather", [value, graph.constant(f"corners.{side}", corners)], axis=axis)
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
    batch = max(1, BATCH_BYTES // math.prod(session.get_inputs()[0].shape[1:]))

    def run(images: NDArray[np.uint8]) -> NDArray[np.int32]:
        starts = range(0, len(images), batch)
        batches = [session.run(["logits"], {"image": images[start : start + batch]})[0] for start in starts]
        return np.concatenate([np.zeros((0, classes), np.int32), *batches])

    yield run


ONNX_EXPORTER = Exporter(write=write_onnx, run=run_onnx)
