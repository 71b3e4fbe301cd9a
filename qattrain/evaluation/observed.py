"""What was observed of a layer: its weights or activations before and after quantization, and their histogram."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 96  # of a histogram


@dataclass(frozen=True, eq=False)
class LayerPart:
    """A layer's weights or activations. kind: "weight" or "activation". quantizer: None if float.

    shape: of the weights, or of one image's activations; () if unknown.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    quantizer: str | None

    def part(self) -> tuple[str, str, tuple[int, ...], int, str | None]:
        """The fields above, to say something else about the same part."""
        return self.layer, self.kind, self.shape, self.bits, self.quantizer


@dataclass(frozen=True, eq=False)
class Observed(LayerPart):
    """Weights, or the activations of all images, before and after quantization.

    values: float, before quantization; None if only integers are known, and for activations without images.
    codes: int64, zero point subtracted; None if float, and for activations without images.
    scale: of the codes, broadcasts against them; None if float or unknown.
    grid: all possible codes, ascending, zero point subtracted; () if float.
    clipped_share: share of the values outside the grid; None if unknown, or if the quantizer clips nothing by design.
    approximates: whether scale times code is meant to be near the value.
    """

    values: NDArray[Any] | None = None
    codes: NDArray[np.int64] | None = None
    scale: NDArray[np.float64] | None = None
    grid: tuple[int, ...] = ()
    clipped_share: float | None = None
    approximates: bool = True

    @property
    def scale_range(self) -> tuple[float, float] | None:
        """Smallest and largest scale; None if float or unknown."""
        return None if self.scale is None else (float(self.scale.min()), float(self.scale.max()))


def grid_counts(seen: Observed) -> NDArray[np.int64] | None:
    """How many values have each code of the grid, int64 (points,); None if there are no codes."""
    if seen.codes is None:
        return None
    grid = np.array(seen.grid)
    counts = np.bincount(seen.codes.reshape(-1) - grid[0], minlength=int(grid[-1] - grid[0]) + 1)
    on_grid: NDArray[np.int64] = counts[grid - grid[0]]
    return on_grid


@dataclass(frozen=True, eq=False)
class LayerHistogram(LayerPart):
    """Weights or activations before and after quantization, on one axis.

    unit: of the axis: "steps" (value / scale, the one grid that all channels share), "value"
        (real values), or "codes" (only integers are known).
    edges: (bins + 1,) of equal bins; before: (bins,) the number of values in each; empty if unknown.
    grid: all points of the grid on this axis; after: the number of values on each; empty if the layer is float.
    clip: values beyond these, half a step outside the grid, are clipped; None if none are.
    total: number of values. scale_range: as in `Observed`.
    """

    unit: str
    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    grid: NDArray[np.float64]
    after: NDArray[np.int64]
    clip: tuple[float, float] | None
    total: int
    scale_range: tuple[float, float] | None

    @property
    def step(self) -> float:
        """Distance between neighbouring grid points on this axis; 1 without a grid."""
        return float(np.diff(self.grid).min()) if len(self.grid) > 1 else 1.0


def layer_histogram(seen: Observed) -> LayerHistogram:
    """Histogram of a layer whose values or codes are known. Weights in steps, activations in real values."""
    known = seen.codes if seen.values is None else seen.values
    assert known is not None, seen.layer
    unit, per_step = "value", 1.0
    x = None if seen.values is None else seen.values.astype(np.float64)
    if seen.scale is None and seen.codes is not None:
        unit = "codes"
    elif seen.scale is not None and seen.kind == "weight":
        unit = "steps"
        x = None if x is None else x / seen.scale
    elif seen.scale is not None:
        per_step = float(seen.scale.reshape(-1)[0])
    none = np.zeros(0)
    grid = np.array(seen.grid, np.float64) * per_step
    before, edges = (none, none) if x is None else np.histogram(x, bins=BINS)
    counts = grid_counts(seen)
    after = none if counts is None else counts
    clips = seen.clipped_share is not None and seen.codes is not None
    return LayerHistogram(
        *seen.part(),
        unit,
        edges,
        before.astype(np.int64),
        grid,
        after.astype(np.int64),
        (float(grid[0] - per_step / 2), float(grid[-1] + per_step / 2)) if clips else None,
        known.size,
        seen.scale_range,
    )
