"""Learned step size quantization, the default: the step of every grid is a trained parameter."""

import math

import torch
from torch import Tensor, nn

from qattrain.quant.base import InitializedQuantizer
from qattrain.quant.functional import LearnedStep
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range


class LSQQuantizer(InitializedQuantizer):
    """LSQ.

    Formula: q = clip(round(x / s), qmin, qmax), x_hat = s q; s starts at 2 mean|x| / sqrt(qmax) of the first tensor.
    Gradient: see `functional.LearnedStep`; that of s is scaled by 1 / sqrt(elements * qmax), elements being the weights
        that share s, or the features of one example.
    Range: weights -2^(b-1) .. 2^(b-1)-1, b = 2..8; activations 0 .. 2^a-1, a = 1..8. s >= 2^-20.
    Source: Esser et al. 2020, "Learned Step Size Quantization".
    """

    def setup(self) -> None:
        super().setup()
        self.qmin, self.qmax = code_range(self.bits, self.signed)
        self.scale = nn.Parameter(torch.ones(self.shape))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        self.scale.copy_((2 * self.mean_magnitude(x) / math.sqrt(max(self.qmax, 1))).clamp_min(MIN_SCALE))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        above = high / self.qmax if self.qmax else torch.zeros_like(high)
        below = low / self.qmin if self.qmin else torch.zeros_like(low)
        self.scale.copy_(torch.maximum(above, below).clamp_min(MIN_SCALE))
        self.mark_initialized()

    def forward(self, x: Tensor) -> QTensor:
        self.ensure_initialized(x)
        elements = self.shared_count(x) if self.role == "weight" else max(math.prod(x.shape[1:]), 1)
        gradient_scale = 1 / math.sqrt(elements * max(self.qmax, 1))
        codes = LearnedStep.apply(  # type: ignore[no-untyped-call]
            *(x, self.scale, self.qmin, self.qmax, gradient_scale, self.surrogate, self.rectify, self.training_dtype())
        )
        return QTensor(codes, self.scale.detach().clamp_min(MIN_SCALE))
