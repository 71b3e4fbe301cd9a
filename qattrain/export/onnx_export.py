"""The ONNX exporter: one `model.onnx` of integer operators, equal to IntegerModel in every logit; no float tensor.

Input `image`, uint8 (N, 1, 28, 28), any N; output `logits`, int32 (N, classes). Sums and their pooling are in
`onnx_layers.py`; what makes codes of them takes as few operators as exactness allows:

    Max -b                              int32: a sum below -b has code 0, as -b itself has
    Cast, Mul m, Add (b m + 2^(k-1))    int64: (sum + b) m + 2^(k-1), multiplied out; from 0 up, thanks to Max
    Cast, BitShift k, Min qmax          uint64, the only wide type that shifts
    Cast                                uint8 codes

One Clip of int64 would do for Max and Min, but ONNX Runtime's int64 Clip, Min and Max are wrong on x86-64 for values
from 2^31 to 2^32 - 1 (measured, 1.23 to 1.31; its pull request 32475); those of int32 and uint64 are right.

m, b and k take nine bytes a channel; what the graph makes of them, and of the packed weights (`onnx_weights.py`), does
not depend on the image, and ONNX Runtime computes it once, at load.

Opset 18; 21 where a layer has 4-bit weights, 25 where one has 2-bit weights.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError
from qattrain.export.base import Exporter, Files, ModelFacts, Runner
from qattrain.export.onnx_graph import Graph, optional_packages
from qattrain.export.onnx_layers import convolve, convolve_gathered, multiply
from qattrain.export.onnx_weights import StoredWeight, add_weights, stored_weight
from qattrain.integer import IntegerLayer, IntegerModel

FILE = "model.onnx"
FORMAT_VERSION = 1
INPUT = "image: uint8 (N, 1, 28, 28), raw pixels, light strokes (255) on dark (0), not normalized"
OUTPUT = "logits: int32 (N, classes); the class is the largest, the first of equals; real logits: times logit_scale"
CONV1_SIDE, CONV2_SIDE = 12, 4  # of the pooled maps
RUN_BATCH = 1000


def write_onnx(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """`model.onnx`, the same bytes for the same model. layout: "", there is one. Raises ExportError without onnx."""
    assert not layout, layout
    weights = [stored_weight(layer) for layer in model.layers]
    can_be_ternary = any(weight.digits(True) != weight.digits(False) for weight in weights)
    candidates = [_build(model, facts, weights, ternary) for ternary in (False, True)[: 1 + can_be_ternary]]
    return {FILE: min(candidates, key=len)}


def _build(model: IntegerModel, facts: ModelFacts, weights: list[StoredWeight], ternary: bool) -> bytes:
    graph = Graph()
    values = add_weights(graph, weights, ternary)
    conv1, conv2, fc1, fc2 = model.layers
    by_name = {weight.name: weight for weight in weights}

    def operands(layer: IntegerLayer) -> tuple[StoredWeight, str]:
        return by_name[layer.name], values[layer.name]

    x = _requantize(graph, conv1, convolve(graph, "image", *operands(conv1), CONV1_SIDE), (-1, 1, 1))
    x = _requantize(graph, conv2, convolve_gathered(graph, x, *operands(conv2), CONV2_SIDE, conv2.input_max))
    x = graph.node("Flatten", [x], axis=1)
    x = _requantize(graph, fc1, multiply(graph, x, *operands(fc1), fc1.input_max))
    sums = multiply(graph, x, *operands(fc2), fc2.input_max)
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
    """int32 sums of products -> uint8 codes. int64 holds every step (DESIGN section 3).

    channels: the shape in which a number per channel meets the sums.
    """
    name, how = layer.name, layer.requantization
    assert how is not None, name
    assert how.multiplier.min() >= 0, (name, how.multiplier)
    assert 1 <= how.shift.min() <= how.shift.max() <= 62, (name, how.shift)
    bias = graph.constant(f"{name}.bias", _int32(layer.bias).reshape(channels))
    multiplier = graph.constant(f"{name}.multiplier", _int32(how.multiplier).reshape(channels))
    shift = graph.constant(f"{name}.shift", how.shift.astype(np.uint8).reshape(channels))
    # No image changes what these compute.
    m, k = graph.cast(multiplier, "INT64"), graph.cast(shift, "UINT64")
    power = graph.cast(graph.node("BitShift", [graph.scalar(1, np.uint64), k], direction="LEFT"), "INT64")
    half = graph.node("Div", [power, graph.scalar(2, np.int64)])
    offset = graph.node("Add", [graph.node("Mul", [graph.cast(bias, "INT64"), m]), half])
    lowest = graph.node("Neg", [bias])
    # These run for each.
    wide = graph.cast(graph.node("Max", [sums, lowest]), "INT64")
    product = graph.cast(graph.node("Add", [graph.node("Mul", [wide, m]), offset]), "UINT64")
    shifted = graph.node("BitShift", [product, k], direction="RIGHT")
    clipped = graph.node("Min", [shifted, graph.scalar(how.qmax, np.uint64)])
    return graph.cast(clipped, "UINT8", f"{name}.codes")


@contextmanager
def run_onnx(files: Files) -> Iterator[Runner]:
    """Runs `model.onnx` in ONNX Runtime on this CPU, on all its cores. Raises ExportError if that cannot be done."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # importing it would write an id under the home folder
    with optional_packages():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    # Told how many threads to use, it does not pin them to cores, which in containers fails, loudly.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options.intra_op_num_threads = allowed or 1
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(files[FILE], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, with no base of their own
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} does not load {FILE}: {' '.join(str(error).split())}; "
            "a newer one may: pip install --upgrade 'qattrain[onnx]'"
        ) from None
    classes = session.get_outputs()[0].shape[1]

    def run(images: NDArray[np.uint8]) -> NDArray[np.int32]:
        starts = range(0, len(images), RUN_BATCH)
        batches = [session.run(["logits"], {"image": images[start : start + RUN_BATCH]})[0] for start in starts]
        return np.concatenate([np.zeros((0, classes), np.int32), *batches])

    yield run


ONNX_EXPORTER = Exporter(write=write_onnx, run=run_onnx)
