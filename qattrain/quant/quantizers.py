"""The quantizers, side by side: each with its formula, gradient, range and paper. `base.py` has what they share."""

import math

import torch
from torch import Tensor, nn

from qattrain.quant import kernels
from qattrain.quant.base import ClosedFormQuantizer, InitializedQuantizer, Quantizer, RangeQuantizer
from qattrain.quant.functional import LearnedClip, LearnedStep, Staircase, TanhCodes
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, nearest_power_of_two, odd_codes, round_half_up


class LSQQuantizer(InitializedQuantizer):
    """LSQ.

    Formula: q = clip(round(x / s), qmin, qmax), x_hat = s q; s starts at 2 mean|x| / sqrt(qmax) of the first tensor.
    Gradient: see `functional.LearnedStep`; that of s is scaled by 1 / sqrt(elements * qmax), where elements are the
        weights that share s, or the features of one example.
    Range: weights -2^(b-1) .. 2^(b-1)-1, b = 2..8; activations 0 .. 2^a-1, a = 1..8. s >= 2^-20.
    Source: Esser et al. 2020, "Learned Step Size Quantization".
    """

    summary = "learned step size"

    def setup(self) -> None:
        super().setup()
        self.scale = nn.Parameter(torch.ones(self.shape))

    def initialize(self, x: Tensor) -> None:
        self.scale.copy_((2 * self.mean_magnitude(x) / math.sqrt(max(self.qmax, 1))).clamp_min(MIN_SCALE))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.scale.copy_(self.fitting_scale(low, high))
        self.mark_initialized()

    def forward(self, x: Tensor) -> QTensor:
        self.ensure_initialized(x)
        elements = x.numel() // math.prod(self.shape) if self.role == "weight" else max(math.prod(x.shape[1:]), 1)
        gradient_scale = 1 / math.sqrt(elements * max(self.qmax, 1))
        args = (gradient_scale, self.surrogate, self.rectify, self.training_dtype())
        codes = LearnedStep.apply(x, self.scale, self.qmin, self.qmax, *args)
        return QTensor(codes, self.scale.detach().clamp_min(MIN_SCALE))


class AffineQuantizer(RangeQuantizer):
    """Scale and zero point.

    Formula: s = (max - min) / (2^b - 1), z = clip(round(-min / s), 0, 2^b - 1), q = clip(round(x / s + z), 0, 2^b - 1),
        x_hat = s (q - z). The range is widened to hold 0, so that 0 has the exact code z (zero padding, ReLU).
    Gradient: the surrogate's; s and z are statistics, not trained.
    Range: weights 0 .. 2^b-1, b = 2..8, one scale per layer, of the tensor itself; activations 0 .. 2^a-1, a = 1..8,
        moving averages of min and max, hence z = 0 after a ReLU.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", sections 2.1 and 3.1.
    """

    summary = "scale and zero point"
    one_scale = True

    def codes(self) -> range:
        return range(code_range(self.bits, signed=False)[1] + 1)

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        scale = ((self.high - self.low) / self.qmax).clamp_min(MIN_SCALE)
        zero_point = round_half_up(-self.low / scale).clamp_(0, self.qmax)
        return self.on_grid(x, scale, zero_point)


class Pow2Quantizer(RangeQuantizer):
    """Fixed point with n fraction bits.

    Formula: q = clip(round(2^n x), qmin, qmax), x_hat = 2^-n q. 2^-n is the power of two nearest to the scale at which
        the observed range just fits the codes, so that at most 30 % of the range is clipped and no code is wasted; or n
        is `fraction_bits` when given. At two bits nearly all codes would then be 0, because few values are near the
        largest: there the scale is the one nearest to mean(x^2) / (mean |x| sqrt(qmax)). LeNet on MNIST, 2 epochs,
        three seeds: 98.9 %, with the range 97.2 %; at 3 bits and more there is no clear difference.
    Gradient: the surrogate's; 2^-n * 1 * 2^n = 1, no factor remains.
    Range: weights -2^(b-1) .. 2^(b-1)-1, b = 2..8, n per output channel; activations 0 .. 2^a-1, a = 1..8. n <= 20.
    Source: Lin, Talathi, Annapureddy 2016, "Fixed Point Quantization of Deep Convolutional Networks", section 3.
    """

    summary = "fixed point, 2^n"
    fraction_bits: int | None = None

    def _range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = super()._range_of(x)
        if self.bits != 2:
            return low, high
        typical = self.mean_magnitude(x.square()) / self.mean_magnitude(x).clamp_min(MIN_SCALE)
        scale = torch.minimum(typical / math.sqrt(self.qmax), self.fitting_scale(low, high))
        return self.qmin * scale, self.qmax * scale

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        if self.fraction_bits is not None:
            return self.on_grid(x, torch.full_like(self.high, 2.0**-self.fraction_bits), 0)
        return self.on_grid(x, nearest_power_of_two(self.fitting_scale(self.low, self.high)), 0)


class DorefaQuantizer(Quantizer):
    """DoReFa-Net's forward pass; its quantized gradients are left out.

    Formula: weights t = tanh(w), q = 2 round((2^b - 1) (t / (2 max|t|) + 1/2)) - (2^b - 1), w_hat = s q; the paper's s
        is 1 / (2^b - 1), so that weights always span [-1, 1]. Activations q = round((2^a - 1) clip(x, 0, 1)),
        s = 1 / (2^a - 1).
    Deviation: s gives the weights the variance 2 / fan_in, s^2 mean(q^2) = 2 / fan_in, and is a constant to autograd.
        The paper's layers are followed by a batch normalization that undoes any factor; ours are not, so sums become
        large and activations saturate. At 4 bits after 2 epochs of MNIST, one seed: 94.0 % with the paper's s, 98.7 %
        with ours, 98.3 % with the variance 1 / fan_out of the source named below.
    Gradient: weights, see `functional.TanhCodes`; activations, the surrogate's.
    Range: weights the odd numbers of -(2^b - 1) .. 2^b - 1, b = 2..8, one scale per layer; activations 0 .. 2^a-1,
        a = 1..8, signed ones use LSQ. Post-training quantization gives the largest code the largest
        magnitude of its range, in place of both formulas for s. s >= 2^-20.
    Source: Zhou et al. 2016, "DoReFa-Net", eq. 5 to 11; the factor: Jin, Yang, Liao 2020, "Towards Efficient Training
        for Neural Network Quantization", section 3 (constant rescaling).
    """

    summary = "tanh"
    one_scale = True
    signed_activations = "lsq"
    largest: Tensor  # value that the largest code stands for; 0 where the variance decides

    def codes(self) -> range:
        return odd_codes(self.bits) if self.role == "weight" else super().codes()

    def setup(self) -> None:
        self.approximates = self.role == "activation"  # the size of weights has no meaning, only their ratios
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
        codes = TanhCodes.apply(x, self.bits, self.surrogate, self.training_dtype())
        with torch.no_grad():
            mean_square = codes.to(x.dtype).square().mean()  # at least 1: codes are odd
            rescaled = (2 / (x[0].numel() * mean_square)).sqrt().clamp_min(MIN_SCALE)
            return QTensor(codes, torch.where(self.largest > 0, scale, rescaled))


class PactQuantizer(InitializedQuantizer):
    """Parameterized clipping activation.

    Formula: q = round((2^a - 1) clip(x, 0, alpha) / alpha), x_hat = alpha / (2^a - 1) q. alpha starts at the largest
        value of the first batch, at one bit at twice the mean: at 4 bits that is as good as a constant 8 (99.1 % both,
        2 epochs of MNIST, one seed), while at one bit no value reaches half of 8, and the network learns nothing.
    Gradient: see `functional.LearnedClip`; weight decay acts on alpha as on weights (section 3: lambda_alpha = lambda).
    Range: activations 0 .. 2^a-1, a = 1..8; signed ones use LSQ. Weights use DoReFa, b = 2..8.
        alpha / (2^a - 1) >= 2^-20.
    Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", section 3.
    """

    summary = "learned clipping"
    one_scale = True
    weights = "dorefa"
    signed_activations = "lsq"
    decays = True

    def setup(self) -> None:
        assert self.role == "activation", self.role
        super().setup()
        self.alpha = nn.Parameter(torch.ones(()))

    def initialize(self, x: Tensor) -> None:
        high = 2 * self.mean_magnitude(x) if self.bits == 1 else x.amax()
        self.set_range(torch.zeros_like(high), high)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:  # noqa: ARG002
        self.alpha.copy_(high.clamp_min(MIN_SCALE * self.qmax))
        self.mark_initialized()

    def forward(self, x: Tensor) -> QTensor:
        self.ensure_initialized(x)
        codes = LearnedClip.apply(x, self.alpha, self.qmax, self.surrogate, self.rectify, self.training_dtype())
        return QTensor(codes, (self.alpha.detach() / self.qmax).clamp_min(MIN_SCALE))


class TernaryQuantizer(ClosedFormQuantizer):
    """Ternary weight network.

    Formula: q = sign(w) where |w| > 0.7 mean|w|, else 0; s = mean of |w| over those; w_hat = s q.
    Gradient: the surrogate's, with the range |w| <= 1; s is a statistic, not trained.
    Range: {-1, 0, 1}, packed in 2 bits; only `--bits 2`. Activations are LSQ's. s >= 2^-20.
    Source: Li, Zhang, Liu 2016, "Ternary Weight Networks", eq. 3 to 6.
    """

    summary = "-1, 0, 1"
    weight_bits = (2,)
    default_bits = 2

    def codes(self) -> range:
        return range(-1, 2)

    def forward(self, x: Tensor) -> QTensor:
        with torch.no_grad():
            dims, keep = self.shared_dims(x), bool(self.shape)
            codes, scale, step = kernels.ternary_codes(x, dims, keep, self.training_dtype())
        codes = Staircase.apply(x, codes, scale, step, 0, -1 / step, 1 / step, self.surrogate)
        return QTensor(codes, scale)


class BinaryQuantizer(ClosedFormQuantizer):
    """Binary weight network.

    Formula: q = +1 where w >= 0, else -1; s = mean|w|; w_hat = s q. With `power_of_two` (for `pow2` at one bit) s is
        rounded to the power of two nearest in the logarithm.
    Gradient: the surrogate's, with the range |w| <= 1; s is a statistic, not trained.
    Range: {-1, +1}, packed bit 0 means -1; only `--bits 1`. Activations are LSQ's. s >= 2^-20.
    Source: Rastegari et al. 2016, "XNOR-Net", section 3.1 (Binary-Weight-Networks); clipping: Courbariaux et al. 2015,
        "BinaryConnect", section 2.4.
    """

    summary = "-1, 1"
    weight_bits = (1,)
    default_bits = 1
    power_of_two: bool = False

    def codes(self) -> range:
        return odd_codes(self.bits)

    def forward(self, x: Tensor) -> QTensor:
        with torch.no_grad():
            codes = torch.where(x >= 0, 1.0, -1.0).to(self.training_dtype() or x.dtype)
            scale = self.mean_magnitude(x).clamp_min(MIN_SCALE)
            if self.power_of_two:
                scale = nearest_power_of_two(scale)
        # v = (x - 1) / 2: one step, from -1 to 0, with its threshold -1/2 at x = 0
        codes = Staircase.apply(x, codes, scale, 2.0, -0.5, -1, 0, self.surrogate)
        return QTensor(codes, scale)
