"""PACT: activations clipped at a trained level."""

import torch
from torch import Tensor, nn

from qattrain.quant.base import InitializedQuantizer
from qattrain.quant.functional import LearnedClip
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range


class PactQuantizer(InitializedQuantizer):
    """Parameterized clipping activation.

    Formula: q = round((2^a - 1) clip(x, 0, alpha) / alpha), x_hat = alpha / (2^a - 1) q. alpha starts at the largest
        value of the first batch, at one bit at twice the mean: at 4 bits as good as a constant 8 (99.1 % both, 2 epochs
        of MNIST, one seed), while at one bit nothing reaches half of 8, and the network learns nothing.
    Gradient: see `functional.LearnedClip`; weight decay acts on alpha as on weights (section 3: lambda_alpha = lambda).
    Range: activations 0 .. 2^a-1, a = 1..8; those of signed values are LSQ's. Weights are DoReFa's, b = 2..8.
        alpha / (2^a - 1) >= 2^-20.
    Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", section 3.
    """

    weights = "dorefa"
    signed_activations = "lsq"
    decays = True

    def setup(self) -> None:
        assert self.role == "activation", self.role
        super().setup()
        self.shape = ()
        self.qmin, self.qmax = code_range(self.bits, signed=False)
        self.alpha = nn.Parameter(torch.ones(()))

    def initialize(self, x: Tensor) -> None:
        self._set(2 * self.mean_magnitude(x) if self.bits == 1 else x.amax())

    def set_range(self, low: Tensor, high: Tensor) -> None:  # noqa: ARG002
        self._set(high)
        self.mark_initialized()

    def forward(self, x: Tensor) -> QTensor:
        self.ensure_initialized(x)
        codes = LearnedClip.apply(  # type: ignore[no-untyped-call]
            x, self.alpha, self.qmax, self.surrogate, self.rectify, self.training_dtype()
        )
        return QTensor(codes, (self.alpha.detach() / self.qmax).clamp_min(MIN_SCALE))

    @torch.no_grad()
    def _set(self, alpha: Tensor) -> None:
        self.alpha.copy_(alpha.clamp_min(MIN_SCALE * self.qmax))
