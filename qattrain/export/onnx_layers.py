"""Layers as ONNX operators: uint8 codes -> int32 sums, exact, and in forms that ONNX Runtime computes fast.

A convolution and its 2x2 pooling need four sums per output. They come from one product with four kernels: the 5x5
kernel at the four corners of a 6x6 one, zeros elsewhere, which moves by two pixels. That is 36 / 25 of the
multiplications, but a quarter of the pixels are gathered for them, and the maximum is taken over one axis. The four
kernels are made from the one, when the file is loaded.

conv1 is a ConvInteger. conv2, which has many channels, is faster as a MatMulInteger of gathered pixels: its constant
weights are then the right-hand side, which ONNX Runtime arranges for its kernels once.

Safe without VNNI: the u8 x s8 kernels of older x86 add pairs of products in 16 bits and may saturate. So weights are
int8 only where two products fit into 16 bits. Elsewhere they are uint8 with a zero point, and both operands unsigned:
those kernels widen to 16 bits first and add in 32, exact on every CPU, but without VNNI's speed.
"""

import numpy as np

from qattrain.export.onnx_graph import Graph
from qattrain.export.onnx_weights import StoredWeight

WINDOW = 6  # pixels in a row that the four 5x5 kernels of a 2x2 window see


def convolve(graph: Graph, image: str, weight: StoredWeight, value: str, side: int) -> str:
    """(N, C, 2 side + 4, 2 side + 4) -> pooled sums (N, D, side, side)."""
    outputs, channels = weight.codes.shape[:2]
    shape, sums = (4 * outputs, channels, WINDOW, WINDOW), []
    for zero_point in weight.zero_points:
        kernels = _four_kernels(graph, zero_point, value, (2, 4, 0, 1, 3, 5), shape)
        operands = [image, kernels, "", graph.scalar(zero_point, np.uint8)]
        sums.append(graph.node("ConvInteger", operands, strides=[2, 2]))
    return _maximum(graph, graph.reshape(_added(graph, sums), (0, 4, outputs, side, side)), 1)


def convolve_gathered(graph: Graph, codes: str, weight: StoredWeight, value: str, side: int, input_max: int) -> str:
    """(N, C, 2 side + 4, 2 side + 4) -> pooled sums (N, side * side, D), pixels before channels."""
    outputs, channels = weight.codes.shape[:2]
    in_kernel = WINDOW * WINDOW * channels
    # Pixels are gathered in pairs, side by side: windows begin at even ones. A pair's number is first + next.
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
    sums = _multiply(graph, graph.reshape(windows, (0, side * side, in_kernel)), weight, kernels, input_max)
    return _maximum(graph, graph.reshape(sums, (0, side * side, 4, outputs)), 2)


def multiply(graph: Graph, codes: str, weight: StoredWeight, value: str, input_max: int) -> str:
    """(..., inputs) times (inputs, D) -> sums (..., D)."""
    return _multiply(graph, codes, weight, [value] * len(weight.zero_points), input_max)


def _multiply(graph: Graph, codes: str, weight: StoredWeight, values: list[str], input_max: int) -> str:
    """The same of a value for each zero point."""
    signed, sums = weight.two_products_fit_16_bits(input_max), []
    for zero_point, value in zip(weight.zero_points, values, strict=True):
        operands = [graph.cast(value, "INT8") if signed else value, ""]
        operands.append(graph.scalar(zero_point, np.int8 if signed else np.uint8))
        sums.append(graph.node("MatMulInteger", [codes, *operands]))
    return _added(graph, sums)


def _added(graph: Graph, sums: list[str]) -> str:
    """The total of one or more."""
    first, *others = sums
    for other in others:
        first = graph.node("Add", [first, other])
    return first


def _four_kernels(graph: Graph, zero_point: int, value: str, order: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """(D, C, 5, 5) -> (D, C, corner's row, row, corner's column, column), transposed to `order`, in `shape`.

    With a margin on all sides, a kernel's rows and columns 1 .. 6 put it into the first corner, 0 .. 5 into the second.
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
