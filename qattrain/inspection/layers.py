"""A report per layer: what its grid is, and how well it is used."""

import math
from dataclasses import dataclass

import numpy as np

from qattrain.config import FLOAT_BITS
from qattrain.inspection.observed import Observed


@dataclass(frozen=True)
class LayerReport:
    """One layer's weights or activations.

    levels: codes there are; codes_used: different ones that occur. entropy_bits: of the codes' frequencies, what an
    ideal code would need for each. clipped_share: of the values, those outside the grid. sqnr_db: signal-to-
    quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_hat)^2); None also where nothing was lost,
    and for dorefa's weights, which are rescaled.
    accumulator_bound: no integer sum of the layer is larger in magnitude; accumulator_bits: of the signed integer that
    holds it. weight_bytes: of the packed codes, 4 a weight if float.

    All of these but weight_bytes are None where the layer is float, and for activations where no images were at hand;
    what needs real values also where only integers are known.
    """

    layer: str
    kind: str  # weight or activation
    shape: tuple[int, ...]  # of the weights, or of one image's activations, () if unknown
    bits: int
    quantizer: str | None
    scale_min: float | None = None
    scale_max: float | None = None
    levels: int | None = None
    codes_used: int | None = None
    entropy_bits: float | None = None
    clipped_share: float | None = None
    sqnr_db: float | None = None
    accumulator_bound: int | None = None
    accumulator_bits: int | None = None
    weight_bytes: int | None = None


def layer_report(seen: Observed, accumulator_bound: int | None = None) -> LayerReport:
    """The report of what was observed. accumulator_bound: of a weight layer, if known."""
    count = None if seen.codes is None else np.unique(seen.codes, return_counts=True)[1]
    return LayerReport(
        seen.layer,
        seen.kind,
        seen.shape,
        seen.bits,
        seen.quantizer,
        scale_min=None if seen.scale is None else float(seen.scale.min()),
        scale_max=None if seen.scale is None else float(seen.scale.max()),
        levels=None if seen.bits == FLOAT_BITS else len(seen.grid),
        codes_used=None if count is None else len(count),
        entropy_bits=None if count is None else entropy_bits(count),
        clipped_share=seen.clipped_share,
        sqnr_db=sqnr_db(seen),
        accumulator_bound=accumulator_bound,
        accumulator_bits=None if accumulator_bound is None else accumulator_bound.bit_length() + 1,
        weight_bytes=math.ceil(math.prod(seen.shape) * seen.bits / 8) if seen.kind == "weight" else None,
    )


def entropy_bits(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Shannon's entropy of the frequencies, in bits: 0 where all are one code, b where all 2^b are equally frequent."""
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log2(share)).sum()))


def sqnr_db(seen: Observed) -> float | None:
    """Signal-to-quantization-noise ratio in dB; None where it is unknown, or infinite, or of nothing."""
    if seen.values is None or seen.codes is None or seen.scale is None or not seen.approximates:
        return None
    x = seen.values.astype(np.float64)
    signal, noise = float((x**2).sum()), float(((x - seen.codes * seen.scale) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
