"""A graph of ONNX operators under construction: nodes, initializers, opset, and the weights, as small as their bits.

onnx is imported only by functions that need it: it is an extra (`pip install 'qattrain[onnx]'`).

Each weight is stored as its code minus the smallest of its grid, in the form that makes the smallest file:

    8 bits            a UINT8 initializer
    4, 2 bits         a UINT4 or UINT2 initializer, and Cast
    1, 3, 5, 6, 7     bits without gaps (the order of `qattrain.integer.packed`) in a UINT8 initializer; also 2 and 4
                      bits of odd numbers, whose digits are worth twice as much
    -1, 0, 1          five base-3 digits per byte, 1.6 bits per weight, where that saves more than its operators cost

For the last two, one chain of operators unpacks all layers that share a form:

    digits = (byte / [1, base, base^2, ...]) mod base         base 2 or 3
    code = the digits of one code, times their place values, added up

None of it depends on the image: ONNX Runtime computes it once, when it loads the file. The weights that are multiplied
are uint8.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ExportError, optional_package
from qattrain.export.base import fits_16_bits, pixels_first
from qattrain.integer import IntegerLayer, pack_codes

BASE_OPSET = 18  # the first in which every operator used here has the form used here (ReduceMax: axes as an input)
INITIALIZERS = {2: ("UINT2", 25), 4: ("UINT4", 21), 8: ("UINT8", BASE_OPSET)}  # bits -> type, first opset to have it


class Graph:
    """Collects nodes and initializers; every method returns the name of the value it adds.

    Initializers are named by what they are, such as `conv1.bias`, scalars by type and value. Results of nodes are
    numbered unless a name helps: beside 3 kB of weights, names are a good part of the file.
    """

    def __init__(self) -> None:
        with optional_package("onnx", "onnx", ExportError):
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
        """Cuts the first axis into pieces."""
        outputs = [f"{len(self._nodes)}.{piece}" for piece in range(len(sizes))]
        inputs = [value, self.constant(name, np.array(sizes, np.int64))]
        self._nodes.append(self._onnx.helper.make_node("Split", inputs, outputs))
        return outputs

    def cast(self, value: str, dtype: str, output: str = "") -> str:
        """dtype: TensorProto's name for it, such as "INT64"."""
        return self.node("Cast", [value], output, to=self._onnx.TensorProto.DataType.Value(dtype))

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        """shape: 0 keeps a dimension. -1 is what remains: only where no other dimension is 0, as N can be."""
        return self.node("Reshape", [value, self.constant("x".join(map(str, shape)), np.array(shape, np.int64))])

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """The initializer `name`; if it exists already, it must be the same."""
        tensor = self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        assert self._initializers.setdefault(name, tensor) == tensor, name
        return name

    def scalar(self, value: int, dtype: type[np.integer[Any]]) -> str:
        return self.constant(f"{dtype.__name__}.{value}", np.array(value, dtype))

    def packed(self, name: str, dtype: str, shape: tuple[int, ...], content: bytes, opset: int) -> str:
        """An initializer from its bytes, as ONNX lays them out: elements below 8 bits without gaps, lowest bits first.

        opset: the first that has `dtype`.
        """
        assert name not in self._initializers, name
        kind = self._onnx.TensorProto.DataType.Value(dtype)
        self._initializers[name] = self._onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=content)
        self._opset = max(self._opset, opset)
        return name

    def model(self, name: str, shape: Shape, classes: int, metadata: dict[str, str]) -> bytes:
        """The finished file: `image` uint8 (N, *shape) -> `logits` int32 (N, classes), checked."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("image", types.UINT8, ["N", *shape])],
            [helper.make_tensor_value_info("logits", types.INT32, ["N", classes])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", self._opset)]
        ir_version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="qattrain")
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class Digits:
    """Codes as digits in a stream of bytes. base: 2 or 3. places: what each digit of a code is worth, lowest first."""

    base: int
    places: tuple[int, ...]

    @property
    def per_byte(self) -> int:
        return {2: 8, 3: 5}[self.base]

    @property
    def name(self) -> str:
        odd = ".odd" if len(self.places) > 1 and self.places[0] > 1 else ""
        return {2: f"{len(self.places)}bit{odd}", 3: "ternary"}[self.base]

    def pack(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """codes: (n,), which must fill whole bytes -> (bytes,)."""
        if self.base == 2:
            return pack_codes(codes, len(self.places), 0)
        packed: NDArray[np.int64] = codes.reshape(-1, self.per_byte) @ self.base ** np.arange(self.per_byte)
        return packed.astype(np.uint8)


@dataclass(frozen=True)
class StoredWeight:
    """One layer's codes as numbers from 0 up: (D, C / groups, K, J) or (C, D).

    q_w - z_w = sum over zero points of (step * codes - zero_point)

    One zero point is enough, except for the odd numbers of 8 bits: 2 codes - 255 = (codes - 127) + (codes - 128), and
    2 codes do not fit uint8. input_max: the largest input code.
    """

    name: str
    codes: NDArray[np.int64]
    bits: int
    step: int
    zero_points: tuple[int, ...]
    input_max: int

    def digits(self, ternary: bool) -> Digits | None:
        """How they are packed; None where an initializer has a type for them. ternary: in base 3 where possible."""
        if ternary and self.bits == 2 and self.step == 1 and self.codes.max() < 3:
            return Digits(3, (1,))
        if self.bits in INITIALIZERS and self.step == 1:
            return None
        return Digits(2, tuple(self.step * 2**bit for bit in range(self.bits)))

    @property
    def is_int8(self) -> bool:
        """Whether it fits int8, the zero point that pads kernels included, and two products with inputs fit 16 bits."""
        largest = max(self.step * int(self.codes.max()), *self.zero_points)
        return largest < 2**7 and fits_16_bits(largest, self.input_max)


def stored_weight(layer: IntegerLayer, inputs: Shape, by_pixel: bool) -> StoredWeight:
    """The layer's codes as the file stores them.

    inputs: (C, H, W) that it receives. by_pixel: a matrix gets them in the order (row, column, channel).
    """
    codes = layer.codes
    if layer.kind == "linear":
        codes = (pixels_first(layer, codes, inputs) if by_pixel else codes).T
    step = layer.grid.step  # 2 for odd numbers, whose zero point 0 is not one of them
    lowest = layer.grid.start if step > 1 else min(int(codes.min()), layer.zero_point)
    stored, zero_point = (codes - lowest) // step, layer.zero_point - lowest
    assert np.array_equal(lowest + step * stored, codes), (layer.name, np.unique(codes))
    assert 0 <= stored.min() <= stored.max() < 2**layer.bits, (layer.name, layer.bits, codes.min(), codes.max())
    assert 0 <= zero_point <= 255, (layer.name, layer.zero_point, lowest)
    zero_points: tuple[int, ...] = (zero_point,)
    if step * (2**layer.bits - 1) > 255:
        step, zero_points = 1, (zero_point // step, zero_point - zero_point // step)
    return StoredWeight(layer.name, stored, layer.bits, step, zero_points, layer.input_max)


def add_weights(graph: Graph, weights: Iterable[StoredWeight], ternary: bool) -> dict[str, str]:
    """Layer name -> the name of its uint8 value, `step * codes`."""
    values: dict[str, str] = {}
    streams: dict[Digits, list[StoredWeight]] = {}
    for weight in weights:
        digits = weight.digits(ternary)
        if digits is not None:
            streams.setdefault(digits, []).append(weight)
            continue
        dtype, opset = INITIALIZERS[weight.bits]
        content = pack_codes(weight.codes, weight.bits, 0).tobytes()
        value = graph.packed(f"{weight.name}.weight", dtype, weight.codes.shape, content, opset)
        values[weight.name] = value if dtype == "UINT8" else graph.cast(value, "UINT8")
    for digits, sharing in streams.items():
        values |= _add_stream(graph, digits, sharing)
    return values


def _add_stream(graph: Graph, digits: Digits, weights: list[StoredWeight]) -> dict[str, str]:
    """The layers' codes in sequence in one initializer, padded to whole bytes, and the operators that unpack them."""
    name = f"weights.{digits.name}"
    flat = [weight.codes.reshape(-1) for weight in weights]
    # The codes then end where a byte ends, whatever their digits. The padding is split off as a last, unused piece.
    padding = -sum(map(len, flat)) % digits.per_byte
    flat += [np.zeros(padding, np.int64)] * (padding > 0)
    divisors = graph.constant(f"{name}.divisors", digits.base ** np.arange(digits.per_byte, dtype=np.int32))
    places = graph.constant(f"{name}.places", np.array(digits.places, np.int32)[:, None])

    value = graph.cast(graph.constant(name, digits.pack(np.concatenate(flat))[:, None]), "INT32")  # (bytes, 1)
    value = graph.node("Mod", [graph.node("Div", [value, divisors]), graph.scalar(digits.base, np.int32)])
    value = graph.node("MatMul", [graph.reshape(value, (-1, len(digits.places))), places])  # (codes, 1)
    value = graph.cast(value, "UINT8")
    pieces = graph.split(value, [len(codes) for codes in flat], f"{name}.sizes") if len(flat) > 1 else [value]
    named = zip(weights, pieces, strict=False)
    return {weight.name: graph.reshape(piece, weight.codes.shape) for weight, piece in named}
