"""A graph of ONNX operators under construction: nodes, initializers, and the opset that they need.

onnx is imported only by functions that need it: it is an extra (`pip install 'qattrain[onnx]'`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError

BASE_OPSET = 18  # the first in which every operator used here has the form used here (ReduceMax: axes as an input)


@contextmanager
def optional_packages() -> Iterator[None]:
    """Imports of optional packages go inside. Raises ExportError, naming the remedy, if one is missing."""
    try:
        yield
    except ImportError as error:
        raise ExportError(
            f"onnx: package {error.name or error} cannot be imported; it comes with: pip install 'qattrain[onnx]'"
        ) from None


class Graph:
    """Collects nodes and initializers; every method returns the name of the value it adds.

    Initializers are named by what they are, `conv1.bias`, scalars by type and value; what nodes compute is numbered
    unless it deserves a name: in a net of 3 kB of weights names are a good part of the file.
    """

    def __init__(self) -> None:
        with optional_packages():
            import onnx
        self._onnx = onnx
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._opset = BASE_OPSET

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or str(len(self._nodes))
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def split(self, value: str, sizes: list[int], name: str) -> list[str]:
        """The first axis in pieces."""
        outputs = [f"{len(self._nodes)}.{piece}" for piece in range(len(sizes))]
        inputs = [value, self.constant(name, np.array(sizes, np.int64))]
        self._nodes.append(self._onnx.helper.make_node("Split", inputs, outputs))
        return outputs

    def cast(self, value: str, dtype: str, output: str = "") -> str:
        """dtype: as TensorProto names it, "INT64"."""
        return self.node("Cast", [value], output, to=self._onnx.TensorProto.DataType.Value(dtype))

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        """shape: 0 keeps a dimension, -1 is what remains."""
        name = "x".join(map(str, shape))
        return self.node("Reshape", [value, self.constant(name, np.array(shape, np.int64))])

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """The initializer `name`; one that exists already must be the same."""
        tensor = self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        assert self._initializers.setdefault(name, tensor) == tensor, name
        return name

    def scalar(self, value: int, dtype: type[np.integer[Any]]) -> str:
        name = f"{dtype.__name__}.{value}"
        tensor = self._onnx.numpy_helper.from_array(np.array(value, dtype), name)
        self._initializers.setdefault(name, tensor)
        return name

    def packed(self, name: str, dtype: str, shape: tuple[int, ...], content: bytes, opset: int) -> str:
        """An initializer from its bytes, as ONNX lays them out: elements below 8 bits without gaps, lowest bits first.

        opset: the first that has `dtype`.
        """
        assert name not in self._initializers, name
        kind = self._onnx.TensorProto.DataType.Value(dtype)
        self._initializers[name] = self._onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=content)
        self._opset = max(self._opset, opset)
        return name

    def model(self, name: str, classes: int, metadata: dict[str, str]) -> bytes:
        """The finished file: `image` uint8 (N, 1, 28, 28) -> `logits` int32 (N, classes), checked."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("image", types.UINT8, ["N", 1, 28, 28])],
            [helper.make_tensor_value_info("logits", types.INT32, ["N", classes])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", self._opset)]
        ir_version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="qattrain")
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))
