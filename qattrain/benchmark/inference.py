"""The inference contenders: one thread, one call from Python for each batch."""

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qattrain.benchmark.rounds import CLASSES, SEED, Contender, Ready, Workload
from qattrain.benchmark.training import plain_net, timed
from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import MNIST_SHAPE
from qattrain.errors import ExportError, optional_package
from qattrain.export import EXPORTERS
from qattrain.export.c_compile import compiled_c
from qattrain.export.c_export import c_sources
from qattrain.export.onnx_export import open_session
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model

OPSET = 17
ORDERS = ("relu, then pool", "pool, then relu")  # equal results; which is faster depends on what the runtime fuses
CALIBRATION_BATCH = 64
BATCHES = (1, 1000)
CALIBRATION_IMAGES = 128
BITS = 4  # of our own network
TRIALS = 3  # runs to choose the fastest form of a file

Predict = Callable[[NDArray[Any]], object]
needs_onnx = partial(optional_package, "onnx", "onnx", ExportError)


def float_onnx(net: nn.Sequential, order: str) -> bytes:
    """`image` float32 (N, C, H, W) -> `logits` float32 (N, classes). Raises ExportError without onnx."""
    with needs_onnx():
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    weights = [numpy_helper.from_array(t.detach().numpy(), name) for name, t in net.state_dict().items()]
    nodes: list[Any] = []

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    x, layers = "image", list(net.named_children())  # convolution, pooling, ReLU, ...
    if order == ORDERS[0]:
        for number in [n for n, (_, module) in enumerate(layers) if isinstance(module, nn.MaxPool2d)]:
            layers[number], layers[number + 1] = layers[number + 1], layers[number]
    for name, module in layers:
        match module:
            case nn.Conv2d():
                x = add("Conv", [x, f"{name}.weight", f"{name}.bias"])
            case nn.Linear():
                x = add("Gemm", [x, f"{name}.weight", f"{name}.bias"], transB=1)
            case nn.MaxPool2d():
                side = int(module.kernel_size)  # type: ignore[arg-type]
                x = add("MaxPool", [x], kernel_shape=[side, side], strides=[side, side])
            case nn.Flatten():
                x = add("Flatten", [x], axis=1)
            case _:
                x = add("Relu", [x])
    nodes[-1].output[0] = "logits"
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *MNIST_SHAPE])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])]
    graph = helper.make_graph(nodes, "lenet", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def static_int8_onnx(net: nn.Sequential, images: NDArray[np.float32]) -> dict[str, bytes]:
    """The float net quantized to int8 in every promising form, by description. images: to calibrate the ranges.

    Raises ExportError without onnx and onnxruntime.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # importing it would write an id under the home folder
    with needs_onnx():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self.batches = iter([{"image": images[start : start + CALIBRATION_BATCH]} for start in starts])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    # (format, activations, scale per channel or not): those that the tool recommends for some processor
    forms = (
        (QuantFormat.QDQ, QuantType.QInt8, True),
        (QuantFormat.QDQ, QuantType.QUInt8, True),
        (QuantFormat.QOperator, QuantType.QUInt8, True),
        (QuantFormat.QOperator, QuantType.QUInt8, False),
    )
    made = {}
    with tempfile.TemporaryDirectory() as name:
        source, prepared, target = (Path(name) / f"{file}.onnx" for file in ("float", "prepared", "int8"))
        for order in ORDERS:
            source.write_bytes(float_onnx(net, order))
            quant_pre_process(str(source), str(prepared))
            for layout, activations, per_channel in forms:
                if layout == QuantFormat.QOperator and order != ORDERS[0]:
                    continue  # another function: it correlates 0.83 with the float net, all others above 0.999 (1.31)
                quantize_static(
                    str(prepared),
                    str(target),
                    Batches(),
                    quant_format=layout,
                    per_channel=per_channel,
                    weight_type=QuantType.QInt8,
                    activation_type=activations,
                )
                scales = "per channel" if per_channel else "per tensor"
                made[f"{layout.name}, {activations.name} activations, {scales}, {order}"] = target.read_bytes()
    return made


def integers(workload: Workload) -> IntegerModel:
    """A fresh W4A4 network that saw one batch, for its scales: training it further would not change its speed."""
    torch.manual_seed(SEED)
    model = build_model(ModelConfig(), QuantConfig(bits=BITS), CLASSES)
    model.train()
    model(workload.training.images[:CALIBRATION_IMAGES])
    return lower(model)


def pixels(workload: Workload) -> NDArray[np.uint8]:
    return workload.inference.images.numpy()


def real_pixels(workload: Workload) -> NDArray[np.float32]:
    return pixels(workload).astype(np.float32) / np.float32(255)


def classify(predict: Predict, images: Any, batch: int) -> float:
    """Images per second: `predict` on all images (N, C, H, W), `batch` at a time."""
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]

    def work() -> None:
        for one in batches:
            predict(one)

    return timed(len(images), work)


def by_batch(predict: Predict, images: Any) -> dict[int, Ready]:
    return {batch: Ready(partial(classify, predict, images, batch)) for batch in BATCHES}


def one_thread_session(content: bytes) -> Predict:
    """An ONNX file in ONNX Runtime on one thread. Raises ExportError if that is not installed."""
    session = open_session(content, threads=1)
    return lambda images: session.run(["logits"], {"image": images})


def fastest(files: dict[str, bytes], images: NDArray[Any]) -> dict[int, Ready]:
    """For each batch size the fastest of these files on this machine; `detail` names it."""
    runs = {name: one_thread_session(content) for name, content in files.items()}
    found = {}
    for batch in BATCHES:
        speeds = {name: [classify(run, images, batch) for _ in range(TRIALS)] for name, run in runs.items()}
        best = max(speeds, key=lambda name: statistics.median(speeds[name]))
        detail = f"fastest of {len(files)} forms: {best}"
        found[batch] = Ready(partial(classify, runs[best], images, batch), detail=detail)
    return found


def torch_float(workload: Workload) -> dict[int, Ready]:
    return by_batch(torch.inference_mode()(plain_net()), torch.from_numpy(real_pixels(workload)))


def ort_float(workload: Workload) -> dict[int, Ready]:
    return fastest({order: float_onnx(plain_net(), order) for order in ORDERS}, real_pixels(workload))


def ort_int8(workload: Workload) -> dict[int, Ready]:
    images = real_pixels(workload)
    return fastest(static_int8_onnx(plain_net(), images[:CALIBRATION_IMAGES]), images)


def own_onnx(workload: Workload) -> dict[int, Ready]:
    facts = ModelFacts("lenet", "noise", tuple(map(str, range(CLASSES))), None)
    files = EXPORTERS["onnx"].write(integers(workload), facts, "")
    return by_batch(one_thread_session(files["model.onnx"]), pixels(workload))


def own_c(workload: Workload, layout: str) -> dict[int, Ready]:
    """Compiled with -O3 -march=native."""
    run = workload.stack.enter_context(compiled_c(c_sources(integers(workload), layout)))
    return by_batch(run, pixels(workload))


INFERENCE: tuple[Contender, ...] = (
    Contender("torch-fp32", "PyTorch, the float net", BATCHES, torch_float),
    Contender("ort-fp32", "ONNX Runtime, the float net", BATCHES, ort_float),
    Contender("ort-int8", "ONNX Runtime, static int8 made by its own quantize_static", BATCHES, ort_int8),
    Contender("onnx", f"our model.onnx, W{BITS}A{BITS}, in ONNX Runtime", BATCHES, own_onnx),
    Contender("c-packed", f"our model.c, W{BITS}A{BITS}, layout packed", BATCHES, partial(own_c, layout="packed")),
    Contender("c-int8", f"our model.c, W{BITS}A{BITS}, layout int8", BATCHES, partial(own_c, layout="int8")),
)
