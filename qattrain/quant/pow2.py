"""Fixed point: every scale is a power of two, 2^-n, so that rescaling is a shift."""

import torch
from torch import Tensor

from qattrain.quant.base import RangeQuantizer
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, nearest_power_of_two


class Pow2Quantizer(RangeQuantizer):
    """Fixed point with n fraction bits.

    Formula: q = clip(round(2^n x), qmin, qmax), x_hat = 2^-n q. 2^-n is the power of two nearest to the scale at which
        the observed range just fits the codes, so that at most 30 % of the range is clipped and no code is wasted; or n
        is `fraction_bits` when given.
    Gradient: straight through where the surrogate lets it; 2^-n * 1 * 2^n = 1, no factor remains.
    Range: weights -2^(b-1) .. 2^(b-1)-1, b = 2..8, n per output channel; activations 0 .. 2^a-1, a = 1..8. n <= 20.
    Source: Lin, Talathi, Annapureddy 2016, "Fixed Point Quantization of Deep Convolutional Networks", section 3.
    """

    fraction_bits: int | None = None

    def setup(self) -> None:
        super().setup()
        self.qmin, self.qmax = code_range(self.bits, self.signed)

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        return self.on_grid(x, self._scale(), 0)

    def _scale(self) -> Tensor:
        if self.fraction_bits is not None:
            return torch.full_like(self.high, 2.0**-self.fraction_bits)
        needed = self.high / max(self.qmax, 1)
        if self.qmin:
            needed = torch.maximum(needed, self.low / self.qmin)
        return nearest_power_of_two(needed.clamp_min(MIN_SCALE))
