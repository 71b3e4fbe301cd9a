"""Where values lie before quantization, and where the grid puts them; the first layer's filters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.inspection.observed import Observed

BINS = 96


@dataclass(frozen=True, eq=False)
class LayerHistogram:
    """One layer's weights or activations, before and after, on one axis.

    unit: of the axis: "steps" (value / scale: where each channel has a scale of its own, only so do they share a
        grid), "value" (real values), or "codes" (only integers are known).
    edges: (bins + 1,) of the equal bins, before: (bins,) how many values fall into each; empty if unknown.
    grid: all points of the grid on this axis, after: how many values lie on each; empty if the layer is float.
    clip: values below and above these are cut off, half a step outside the grid; None where nothing is.
    total: how many values there are. scale_range: smallest and largest scale, None if unknown.
    """

    layer: str
    kind: str
    bits: int
    quantizer: str | None
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
        """Distance of neighbouring grid points on this axis; 1 without a grid."""
        return float(np.diff(self.grid).min()) if len(self.grid) > 1 else 1.0


def layer_histogram(seen: Observed) -> LayerHistogram:
    """The histogram of a layer of which values or codes are known. Weights in steps, activations in real values."""
    assert seen.values is not None or seen.codes is not None, seen.layer
    unit, per_step = "value", 1.0
    x = None if seen.values is None else seen.values.astype(np.float64)
    if seen.scale is None and seen.codes is not None:
        unit = "codes"
    elif seen.scale is not None and seen.kind == "weight":
        unit = "steps"
        x = None if x is None else x / seen.scale
    elif seen.scale is not None:
        per_step = float(seen.scale.reshape(-1)[0])
    grid = np.array(seen.grid, np.float64) * per_step
    after = np.array([(seen.codes == code).sum() for code in seen.grid], np.int64) if seen.codes is not None else None
    before, edges = (np.zeros(0, np.int64), np.zeros(0)) if x is None else np.histogram(x, bins=BINS)
    clips = seen.clipped_share is not None and seen.codes is not None
    return LayerHistogram(
        seen.layer,
        seen.kind,
        seen.bits,
        seen.quantizer,
        unit,
        edges,
        before.astype(np.int64),
        grid,
        np.zeros(0, np.int64) if after is None else after,
        (float(grid[0] - per_step / 2), float(grid[-1] + per_step / 2)) if clips else None,
        int((x if x is not None else seen.codes).size),  # type: ignore[union-attr]
        None if seen.scale is None else (float(seen.scale.min()), float(seen.scale.max())),
    )


@dataclass(frozen=True, eq=False)
class Filters:
    """The first layer's kernels. values: float (C, 5, 5), None if only integers are known. codes: int64 (C, 5, 5),
    zero point subtracted, None if the layer is float."""

    bits: int
    values: NDArray[Any] | None
    codes: NDArray[np.int64] | None


def first_layer_filters(seen: Observed) -> Filters:
    """Of the observed first layer, whose weights are (C, 1, 5, 5)."""
    assert seen.layer == "conv1", seen.layer
    return Filters(
        seen.bits,
        None if seen.values is None else seen.values[:, 0],
        None if seen.codes is None else seen.codes[:, 0],
    )
