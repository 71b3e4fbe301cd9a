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
            codes, scale, step = ternary_codes(x.detach(), self.shared_dims(x), bool(self.shape), self.training_dtype())
            limit = 1 / step
        codes = Staircase.apply(x, codes, scale, step, 0, -limit, limit, self.surrogate)  # type: ignore[no-untyped-call]
        return QTensor(codes, scale)


def ternary_codes(x: Tensor, dims: list[int], keep: bool, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scale, step) of weights x whose scale is shared over `dims`; the thresholds lie at +-step / 2."""
    magnitude = x.abs()
    threshold = 0.7 * magnitude.mean(dims, keepdim=keep)
    kept = magnitude > threshold
    codes = torch.where(kept, x.sign(), 0.0).to(dtype or x.dtype)
    count = torch.where(kept, 1.0, 0.0).to(x.dtype).sum(dims, keepdim=keep).clamp_min(1)
    scale = torch.where(kept, magnitude, 0.0).sum(dims, keepdim=keep) / count
    return codes, scale.clamp_min(MIN_SCALE), 2 * threshold.clamp_min(MIN_SCALE)
