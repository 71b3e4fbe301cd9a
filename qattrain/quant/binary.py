"""Binary weights: -1 or +1 times one magnitude per output channel."""

import torch
from torch import Tensor

from qattrain.quant.base import Quantizer
from qattrain.quant.functional import Staircase
from qattrain.quant.grid import MIN_SCALE, QTensor, nearest_power_of_two, odd_code_range


class BinaryQuantizer(Quantizer):
    """Binary weight network.

    Formula: q = +1 where w >= 0, else -1; s = mean|w|; w_hat = s q. With `power_of_two` (for `pow2` at one bit) s is
        rounded to the power of two nearest in the logarithm.
    Gradient: straight through where the surrogate lets it, its range being |w| <= 1; s is a statistic, not trained.
    Range: {-1, +1}, packed bit 0 means -1; only `--bits 1`. Activations are LSQ's. s >= 2^-20.
    Source: Rastegari et al. 2016, "XNOR-Net", section 3.1 (Binary-Weight-Networks); clipping: Courbariaux et al. 2015,
        "BinaryConnect", section 2.4.
    """

    weight_bits = (1,)
    default_bits = 1
    activations = "lsq"
    power_of_two: bool = False

    def setup(self) -> None:
        self.qmin, self.qmax, self.step = odd_code_range(self.bits)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Nothing to set: the scale is a closed form of the weights."""

    def clipped_share(self, x: Tensor, q: QTensor) -> None:
        """None: magnitudes are replaced by design, not cut off."""

    def forward(self, x: Tensor) -> QTensor:
        with torch.no_grad():
            codes, scale = binary_codes(x.detach(), self.shared_dims(x), bool(self.shape), self.training_dtype())
            if self.power_of_two:
                scale = nearest_power_of_two(scale)
        # v = (x - 1) / 2: one step, from -1 to 0, with its threshold -1/2 at x = 0
        codes = Staircase.apply(x, codes, scale, 2.0, -0.5, -1, 0, self.surrogate)  # type: ignore[no-untyped-call]
        return QTensor(codes, scale)


def binary_codes(x: Tensor, dims: list[int], keep: bool, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """(codes, scale) of weights x whose scale is shared over `dims`."""
    codes = torch.where(x >= 0, 1.0, -1.0).to(dtype or x.dtype)
    return codes, x.abs().mean(dims, keepdim=keep).clamp_min(MIN_SCALE)
