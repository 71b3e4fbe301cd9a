"""The first layer's filters in pictures: each kernel's float weights beside its codes, in files and on a page.

Both are drawn in steps of the grid, a weight divided by the scale of its channel, so that equal colours mean equal
values. The colours diverge from a neutral 0. They reach at most twice as far as 95 % of the values, so that one outlier
does not flatten all others; what lies beyond has the last colour and a marked corner. At 4 bits and below the numbers
stand in the cells.
"""

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qattrain.evaluation.observed import Observed
from qattrain.report.console import Table, counted
from qattrain.report.drawing import finding, heading
from qattrain.report.page import Tile, Tiles

MOST_KERNELS = 100  # in one picture, every input channel counted
NUMBER_BITS = 4  # up to these the numbers are in the cells
LARGEST_NUMBERED = 7  # pixels of a kernel's longer side; the cells of larger ones have no room for numbers
MOST_NUMBERS = 2500  # in one picture
CELL_POINTS = 18  # the side of a cell with a number in it, in a file
KERNEL_INCHES = 0.9  # the longer side of a kernel without numbers, in a file
KERNEL_PIXELS, TILE_CELL = 80, 20  # on a page, in CSS pixels: the same, and the largest cell
TILE_GAP = 0.5  # between the two of a kernel, in cells
FIGURE_INCHES = 10.5
OUTLIER = 2.0  # times what 95 % of the values stay within
# From negative to positive, distinct to every kind of colour vision; the middle is light on any paper.
COLORMAP = LinearSegmentedColormap.from_list("steps", ["#08306b", "#2f7fbf", "#e9e9e9", "#d9782d", "#7a2e00"])


@dataclass(frozen=True, eq=False)
class Kernels:
    """The first layer's kernels. layer: its name. bits: of the codes, 32 if the layer is float.

    weights: (D, C, K, J), in steps, or as they are if `in_steps` is false; None if only codes are known. codes: int64
    of that shape, zero point subtracted; None if the layer is float. grid: the smallest and the largest code.
    """

    layer: str
    bits: int
    weights: NDArray[np.float64] | None
    codes: NDArray[np.int64] | None
    grid: tuple[int, int] | None
    in_steps: bool

    @property
    def shape(self) -> tuple[int, ...]:
        known = self.weights if self.codes is None else self.codes
        assert known is not None, self.layer
        return known.shape

    @property
    def sides(self) -> list[tuple[str, NDArray[Any], float]]:
        """What is drawn of each kernel, from left to right: its name, the values, and the value of the last colour.

        Weights in steps share the colours with the codes.
        """
        sides: list[tuple[str, NDArray[Any]]] = []
        if self.weights is not None:
            sides.append(("weight / scale" if self.in_steps else "weight", self.weights))
        if self.codes is not None:
            sides.append(("code", self.codes))
        if self.in_steps:
            bound = float(math.ceil(_bound(np.concatenate([values.ravel() for _, values in sides]))))
            return [(name, values, bound) for name, values in sides]
        return [(name, values, _bound(values)) for name, values in sides]

    @property
    def names(self) -> list[str]:
        """Of every input channel of every kernel: `channel 3`, `channel 3, red`, `channel 3, input 0`."""
        outputs, inputs = self.shape[:2]
        parts = ["red", "green", "blue"] if inputs == 3 else [f"input {number}" for number in range(inputs)]
        return [f"channel {n}" + (f", {part}" if inputs > 1 else "") for n in range(outputs) for part in parts]

    @property
    def what(self) -> str:
        """`conv1, 20 kernels of 5x5 pixels, 4 bits`."""
        outputs, inputs, height, width = self.shape
        depth = "" if inputs == 1 else ", in colour" if inputs == 3 else f", {inputs} input channels"
        bits = "float" if self.codes is None else counted(self.bits, "bit")
        return f"{self.layer}, {counted(outputs, 'kernel')} of {height}x{width} pixels{depth}, {bits}"

    @property
    def is_numbered(self) -> bool:
        """Whether the numbers are in the cells."""
        few = self.codes is not None and self.bits <= NUMBER_BITS and max(self.shape[2:]) <= LARGEST_NUMBERED
        return few and self.planes * math.prod(self.shape[2:]) * len(self.sides) <= MOST_NUMBERS

    @property
    def planes(self) -> int:
        """How many kernels, every input channel counted, are drawn: not all if there are many."""
        return min(MOST_KERNELS, math.prod(self.shape[:2]))

    @property
    def caption(self) -> str:
        """What is drawn, in which unit, and how much lies beyond the colours and beyond the grid."""
        names = [name for name, _, _ in self.sides]
        parts = [f"{names[0]} on the left, {names[1]} on the right" if len(names) > 1 else names[0]]
        if self.in_steps:
            parts.append(
                "both in steps of the channel's scale" if len(names) > 1 else "in steps, zero point subtracted"
            )
        elif len(names) > 1:
            parts.append("each with colours of its own, because this quantizer rescales weights")
        for name, values, bound in self.sides:
            if beyond := int((np.abs(values) > bound).sum()):
                parts.append(
                    f"{counted(beyond, 'value')} of {name} beyond the colours' {bound:.3g}, with a marked corner"
                )
        if self.weights is not None and self.in_steps and (clipped := int(self.is_clipped(self.weights).sum())):
            parts.append(f"{counted(clipped, 'weight')} clipped by the grid, with a marked corner")
        if self.planes < math.prod(self.shape[:2]):
            parts.append(f"the first {self.planes} only")
        return "; ".join(parts)

    def is_clipped(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of these values, in steps, lie beyond the grid by more than half a step."""
        if self.grid is None or not self.in_steps:
            return np.zeros(values.shape, bool)
        clipped: NDArray[np.bool_] = (values < self.grid[0] - 0.5) | (values > self.grid[1] + 0.5)
        return clipped

    def marked(self, values: NDArray[Any], bound: float) -> NDArray[np.bool_]:
        """Which of these values get a marked corner: beyond the colours, or clipped."""
        beyond: NDArray[np.bool_] = np.abs(values) > bound
        return beyond | self.is_clipped(values)


def _bound(values: NDArray[Any]) -> float:
    """The largest magnitude, but no more than OUTLIER times what 95 % of the values stay within."""
    sizes = np.abs(values)
    usual = OUTLIER * float(np.quantile(sizes, 0.95))
    return max(min(float(sizes.max()), usual or math.inf), 1e-9)


def known_kernels(filters: Observed | None) -> list[Kernels]:
    """The float weights and the codes, whichever is known; none if the first layer is no convolution."""
    if filters is None:
        return []
    weights, codes, scale = filters.values, filters.codes, filters.scale
    in_steps = codes is not None and (weights is None or (filters.approximates and scale is not None))
    if weights is not None:
        weights = weights.astype(np.float64)
        weights = weights / scale if in_steps and scale is not None else weights
    grid = (min(filters.grid), max(filters.grid)) if filters.grid else None
    return [Kernels(filters.layer, filters.bits, weights, codes, grid, in_steps)]


def shown_number(value: float) -> str:
    """A number for a cell: a code, or a weight to one digit after the point, -0.04 as `0`."""
    if float(value).is_integer():
        return f"{int(value)}"
    text = f"{value:.1f}"
    return "0" if float(text) == 0 else text


def filter_figure(filters: Observed, title: str) -> Figure:
    """The first layer's kernels in one picture, the float weights of each beside its codes."""
    (kernels,) = known_kernels(filters)
    sides, (_, inputs, height, width) = kernels.sides, kernels.shape
    numbered = kernels.is_numbered
    cell = CELL_POINTS / 72 if numbered else KERNEL_INCHES / max(height, width)  # inches
    gap = 0.12 / cell  # between the two of a kernel, in cells; everything below is in cells
    block = max(len(sides) * width + (len(sides) - 1) * gap, (0.5 + 0.07 * len(kernels.names[-1])) / cell)
    across, down = block + 0.25 / cell, height + 0.28 / cell  # from kernel to kernel
    columns = max(1, int((FIGURE_INCHES - 1) / (across * cell)))
    if inputs <= columns:
        columns -= columns % inputs  # so that the planes of a kernel stand in one row
    columns = min(columns, kernels.planes)
    rows = math.ceil(kernels.planes / columns)
    figure = Figure(figsize=(max(columns * across * cell + 1.2, 5.5), rows * down * cell + 1.1), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(kernels.names[: kernels.planes]):
        left, top = number % columns * across, number // columns * down
        axes.text(left, top - 0.04 / cell, name, fontsize=7, va="bottom")
        for side, (_, values, bound) in enumerate(sides):
            plane = _plane(values, number)
            start = left + side * (width + gap)
            extent = (start, start + width, top + height, top)
            axes.imshow(plane, cmap=COLORMAP, vmin=-bound, vmax=bound, extent=extent, interpolation="nearest")
            for (row, column), value in np.ndenumerate(plane):
                ink = _ink(float(value), bound)
                x, y = start + column, top + row
                if numbered:
                    text = shown_number(float(value))
                    axes.text(x + 0.5, y + 0.52, text, fontsize=6.5, color=ink, ha="center", va="center")
                if kernels.marked(np.asarray(value), bound):
                    axes.fill([x + 0.7, x + 1, x + 1], [y, y, y + 0.3], color=ink, lw=0)
    axes.set(xlim=(-0.05 / cell, columns * across), ylim=(rows * down - 0.2 / cell, -0.25 / cell), aspect="equal")
    axes.set_axis_off()
    for name, values, bound in sides[:1] if kernels.in_steps else sides:
        shade = ScalarMappable(Normalize(-bound, bound), COLORMAP)
        beyond = np.abs(
            np.concatenate([values.ravel() for _, values, _ in sides]) if kernels.in_steps else values
        ).max()
        bar = figure.colorbar(
            shade, ax=axes, shrink=min(1.0, 3 / figure.get_figheight() + 0.2), aspect=25,
            extend="both" if beyond > bound else "neither", ticks=MaxNLocator(7, integer=kernels.in_steps),
        )  # fmt: skip
        bar.set_label(
            "weight / scale, code (steps)"
            if kernels.in_steps
            else f"{name} (real value)"
            if name != "code"
            else "code (steps)"
        )
    letters = int(figure.get_figwidth() * 10)
    axes.set_title(heading(f"{kernels.what}: {kernels.caption}", int(1.3 * letters)), fontsize=8)
    finding(figure, f"First-layer filters: {title}", letters)
    return figure


def _ink(value: float, bound: float) -> str:
    """Black or white, whichever can be read on the colour of that value."""
    linear = [((part + 0.055) / 1.055) ** 2.4 for part in COLORMAP((value / bound + 1) / 2)[:3]]
    luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return "white" if luminance < 0.179 else "black"  # where both have the same contrast


def filter_tiles(kernels: Kernels) -> Tiles:
    """The same on a page: a small drawing for each kernel, and all values as a table."""
    _, _, height, width = kernels.shape
    names = kernels.names
    words = " and ".join(name for name, _, _ in kernels.sides)
    drawings = [_drawing(kernels, number) for number in range(kernels.planes)]
    tiles = [Tile(drawn, f"Kernel of {name}: {words}", [name]) for name, drawn in zip(names, drawings, strict=False)]
    rows = []
    for number, name in enumerate(names):
        for side, values, _ in kernels.sides:
            form = "d" if values.dtype.kind == "i" else ".2f" if kernels.in_steps else ".3f"
            lines = (" ".join(format(value, form) for value in row) for row in _plane(values, number))
            rows.append([name, side, *lines])
    title = f"First-layer filters: {kernels.what}"
    columns = ["kernel", "values", *(f"row {row}" for row in range(1, height + 1))]
    ends = " and ".join(dict.fromkeys(f"{bound:.3g}" for _, _, bound in kernels.sides))
    caption = (
        f"{kernels.caption}. Blue is negative, grey 0, orange positive; the darkest colours are {ends} away from 0."
    )
    pixels = min(KERNEL_PIXELS, TILE_CELL * max(height, width)) / max(height, width)  # of a cell
    size = (round((len(kernels.sides) * (width + TILE_GAP) - TILE_GAP) * pixels), round(height * pixels))
    return Tiles(title, caption[0].upper() + caption[1:], tiles, *size, Table(title, columns, rows, left=("values",)))


def _plane(values: NDArray[Any], number: int) -> NDArray[Any]:
    plane: NDArray[Any] = values.reshape(-1, *values.shape[2:])[number]
    return plane


def _drawing(kernels: Kernels, number: int) -> str:
    """One kernel as the data URI of an SVG, a cell 1 wide; the numbers of its codes in the cells if there is room."""
    _, _, height, width = kernels.shape
    cells: dict[str, str] = {}  # color -> path
    marks, texts = {"white": "", "black": ""}, {"white": "", "black": ""}
    for side, (name, values, bound) in enumerate(kernels.sides):
        start = side * (width + TILE_GAP)
        for (y, column), value in np.ndenumerate(_plane(values, number)):
            x, ink = start + column, _ink(float(value), bound)
            color = to_hex(COLORMAP((float(value) / bound + 1) / 2))
            cells[color] = cells.get(color, "") + f"M{x:g} {y}h1v1h-1z"
            if kernels.marked(np.asarray(value), bound):
                marks[ink] += f"M{x + 0.7:g} {y}h.3v.3z"
            if kernels.is_numbered and name == "code":
                texts[ink] += f'<text x="{x + 0.5:g}" y="{y + 0.72:g}">{value}</text>'
    drawn = [f'<path fill="{color}" d="{path}"/>' for color, path in cells.items()]
    for ink in ("white", "black"):
        drawn += [f'<path fill="{ink}" d="{marks[ink]}"/>'] if marks[ink] else []
        drawn += [f'<g fill="{ink}">{texts[ink]}</g>'] if texts[ink] else []
    whole = f"0 0 {len(kernels.sides) * (width + TILE_GAP) - TILE_GAP:g} {height}"
    font = 'font-family="sans-serif" font-size=".6" text-anchor="middle" shape-rendering="crispEdges"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{whole}" {font}>{"".join(drawn)}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
