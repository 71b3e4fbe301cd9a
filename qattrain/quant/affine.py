"""Affine quantization: scale and zero point from the range of the tensor."""

from torch import Tensor

from qattrain.quant.base import RangeQuantizer
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, round_half_up


class AffineQuantizer(RangeQuantizer):
    """Scale and zero point.

    Formula: s = (max - min) / (2^b - 1), z = clip(round(-min / s), 0, 2^b - 1), q = clip(round(x / s + z), 0, 2^b - 1),
        x_hat = s (q - z). The range is widened to hold 0, so that 0 has the exact code z (zero padding, ReLU).
    Gradient: straight through where the surrogate lets it; s and z are statistics, not trained.
    Range: weights 0 .. 2^b-1, b = 2..8, one scale a layer, of the tensor itself; activations 0 .. 2^a-1, a = 1..8,
        moving averages of min and max, hence z = 0 behind a ReLU.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", sections 2.1 and 3.1.
    """

    def setup(self) -> None:
        self.shape = ()  # one scale a layer, by definition
        super().setup()
        self.qmin, self.qmax = code_range(self.bits, signed=False)

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        scale = ((self.high - self.low) / self.qmax).clamp_min(MIN_SCALE)
        zero_point = round_half_up(-self.low / scale).clamp_(0, self.qmax)
        return self.on_grid(x, scale, zero_point)
