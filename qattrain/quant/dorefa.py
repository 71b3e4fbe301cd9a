"""DoReFa: weights squeezed by a tanh onto levels evenly around 0, activations clipped to [0, 1]."""

import torch
from torch import Tensor

from qattrain.quant.base import Quantizer
from qattrain.quant.functional import TanhCodes
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, odd_code_range


class DorefaQuantizer(Quantizer):
    """DoReFa-Net, forward; its quantized gradients are left out.

    Formula: weights t = tanh(w), q = 2 round((2^b - 1) (t / (2 max|t|) + 1/2)) - (2^b - 1), w_hat = s q; the paper's s
        is 1 / (2^b - 1), so that weights always span [-1, 1]. Activations q = round((2^a - 1) clip(x, 0, 1)),
        s = 1 / (2^a - 1).
    Deviation: s is such that weights have the variance 2 / fan_in, s^2 mean(q^2) = 2 / fan_in, a constant to autograd.
        The paper's layers have a batch normalization behind them that undoes any factor; ours have none, sums become
        large, and activations saturate. At 4 bits after 2 epochs of MNIST, one seed: 94.0 % with the paper's s, 98.7 %
        so, 98.3 % with the variance 1 / fan_out of the source named below.
    Gradient: weights, see `functional.TanhCodes`; activations straight through where the surrogate lets it.
    Range: weights the odd numbers of -(2^b - 1) .. 2^b - 1, b = 2..8, one scale a layer; activations 0 .. 2^a-1,
        a = 1..8, those of signed values are LSQ's. Post-training quantization gives the largest code the largest
        magnitude of its range, in place of both formulas for s. s >= 2^-20.
    Source: Zhou et al. 2016, "DoReFa-Net", eq. 5 to 11; the factor: Jin, Yang, Liao 2020, "Towards Efficient Training
        for Neural Network Quantization", section 3 (constant rescaling).
    """

    signed_activations = "lsq"
    largest: Tensor  # value that the largest code stands for; 0 where the variance decides

    def setup(self) -> None:
        self.shape = ()  # one scale a layer, by definition
        if self.role == "weight":
            self.qmin, self.qmax, self.step = odd_code_range(self.bits)
            self.approximates = False  # the size of weights has no meaning, only their ratios
        else:
            self.qmin, self.qmax = code_range(self.bits, signed=False)
        self.register_buffer("largest", torch.tensor(0.0 if self.role == "weight" else 1.0))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.largest.copy_(torch.maximum(-low, high).clamp_min(MIN_SCALE * self.qmax))

    def clipped_share(self, x: Tensor, q: QTensor) -> float | None:
        """None for weights: they are squeezed by design, not cut off."""
        return None if self.role == "weight" else super().clipped_share(x, q)

    def forward(self, x: Tensor) -> QTensor:
        scale = (self.largest / self.qmax).clamp_min(MIN_SCALE)
        if self.role == "activation":
            return self.on_grid(x, scale, 0)
        codes = TanhCodes.apply(x, self.bits, self.surrogate, self.training_dtype())  # type: ignore[no-untyped-call]
        with torch.no_grad():
            mean_square = codes.to(x.dtype).square().mean()  # at least 1: codes are odd
            rescaled = (2 / (x[0].numel() * mean_square)).sqrt().clamp_min(MIN_SCALE)
            return QTensor(codes, torch.where(self.largest > 0, scale, rescaled))
