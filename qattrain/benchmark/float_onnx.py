"""The float net as ONNX, as an exporter of PyTorch would write it, and made int8 by ONNX Runtime's own tool."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.benchmark.ordinary import PlainLeNet
from qattrain.export.onnx_graph import optional_packages

OPSET = 17
ORDERS = ("relu, then pool", "pool, then relu")  # equal results; which is faster depends on what the runtime fuses
CALIBRATION_BATCH = 64


def float_onnx(net: PlainLeNet, order: str) -> bytes:
    """`image` float32 (N, 1, 28, 28) -> `logits` float32 (N, classes). Raises ExportError without onnx."""
    with optional_packages():
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    weights = [numpy_helper.from_array(t.detach().numpy(), name) for name, t in net.state_dict().items()]
    nodes: list[Any] = []

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    x = "image"
    for layer in ("conv1", "conv2"):
        x = add("Conv", [x, f"{layer}.weight", f"{layer}.bias"])
        pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
        steps = [("Relu", {}), ("MaxPool", pool)]
        for operator, attributes in steps if order == ORDERS[0] else reversed(steps):
            x = add(operator, [x], **attributes)
    x = add("Gemm", [add("Flatten", [x], axis=1), "fc1.weight", "fc1.bias"], transB=1)
    x = add("Gemm", [add("Relu", [x]), "fc2.weight", "fc2.bias"], transB=1)
    nodes[-1].output[0] = "logits"
    classes = net.fc2.out_features
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "lenet", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def static_int8_onnx(net: PlainLeNet, images: NDArray[np.float32]) -> dict[str, bytes]:
    """The float net quantized to int8 in every form in question, by its description. images: for the ranges.

    Raises ExportError without onnx and onnxruntime.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with optional_packages():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self.batches = iter([{"image": images[start : start + CALIBRATION_BATCH]} for start in starts])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    # (format, activations, whether a scale per channel): those that the tool itself recommends on some processor
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
