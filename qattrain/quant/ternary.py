"""Ternary weights: -1, 0, +1 times one magnitude per output channel."""

import torch
from torch import Tensor

from qattrain.quant.base import Quantizer
from qattrain.quant.functional import Staircase
from qattrain.quant.grid import MIN_SCALE, QTensor


class TernaryQuantizer(Quantizer):
    """Ternary weight network.

    Formula: q = sign(w) where |w| > 0.7 mean|w|, else 0; s = mean of |w| over those; w_hat = s q.
    Gradient: straight through where the surrogate lets it, its range being |w| <= 1; s is a statistic, not trained.
    Range: {-1, 0, 1}, packed in 2 bits; only `--bits 2`. Activations are LSQ's. s >= 2^-20.
    Source: Li, Zhang, Liu 2016, "Ternary Weight Networks", eq. 3 to 6.
    """

    weight_bits = (2,)
    default_bits = 2
    activations = "lsq"

    def setup(self) -> None:
        self.qmin, self.qmax = -1, 1

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Nothing to set: the scale is a closed form of the weights."""

    def clipped_share(self, x: Tensor, q: QTensor) -> None:
        """None: magnitudes are replaced by design, not cut off."""

    def forward(self, x: Tensor) -> QTensor:
        with torch.no_grad():
            magnitude, threshold = x.abs(), 0.7 * self.mean_magnitude(x)
            kept = magnitude > threshold
            codes = torch.where(kept, x.sign(), 0.0)
            dims, keep = self.shared_dims(x), bool(self.shape)
            count = kept.sum(dims, keepdim=keep).clamp_min(1)
            scale = ((magnitude * kept).sum(dims, keepdim=keep) / count).clamp_min(MIN_SCALE)
            step = 2 * threshold.clamp_min(MIN_SCALE)  # the thresholds lie at +-step / 2
            v, limit = x / step, 1 / step
        codes = Staircase.apply(x, codes, scale, v, -limit, limit, self.surrogate)  # type: ignore[no-untyped-call]
        return QTensor(codes, scale)
