"""The quantizers, side by side: what they have in common, then each with its formula, gradient, range and paper.

A quantizer is an `nn.Module` that maps a real tensor to a `QTensor`. It holds whatever it learns or observes, so a
state dict is enough to reproduce its codes.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qattrain.errors import ConfigError, pick
from qattrain.quant import kernels, native
from qattrain.quant.functional import LearnedClip, LearnedStep, Staircase, TanhCodes
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range, nearest_power_of_two, odd_codes, round_half_up
from qattrain.quant.surrogates import SURROGATES

Role = Literal["weight", "activation"]


class Quantizer(nn.Module, ABC):
    """Base class. Subclasses say in their docstring: formula, gradient, range, paper.

    bits: 1..8. role: "weight" (codes may follow the tensor at every step) or "activation" (what was seen in training is
    kept for evaluation). shape: of the scale, broadcastable against the tensor: () for one scale, (C, 1, 1, 1) or
    (C, 1) for one per output channel. signed: whether codes are negative as well. surrogate: a key of SURROGATES.
    """

    summary: ClassVar[str]  # what it is, in a few words
    weight_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8)  # widths it allows for weights
    default_bits: ClassVar[int] = 4
    one_scale: ClassVar[bool] = False  # whether a layer always has one scale, whatever `shape` says
    weights: ClassVar[str | None] = None  # name of the quantizer that takes its weights; None: itself
    activations: ClassVar[str | None] = None  # name of the quantizer that takes its activations; None: itself
    signed_activations: ClassVar[str | None] = None  # the same for signed values, if its own are never negative
    decays: ClassVar[bool] = False  # whether weight decay acts on its parameters: a scale that decays narrows the grid

    approximates: bool = True  # whether the real value of a code is meant to be near x, so that there is an error
    rectify: bool = False  # quantize max(x, 0): the ReLU in front of an activation's quantizer is part of it
    codes_dtype: torch.dtype | None = None  # of codes while training; None: float32 or wider

    def __init__(
        self, bits: int, *, role: Role, shape: tuple[int, ...] = (), signed: bool = True, surrogate: str = "clipped"
    ) -> None:
        super().__init__()
        pick(SURROGATES, surrogate, "surrogate")
        if role == "weight" and bits not in self.weight_bits:
            allowed = ", ".join(map(str, self.weight_bits))
            raise ConfigError(f"{type(self).__name__} with {bits} bits for weights: allowed: {allowed}")
        if role == "activation" and signed and self.signed_activations:
            raise ConfigError(
                f"{type(self).__name__} for signed activations: its codes are never negative; "
                f"allowed: signed=False, or quantizer {self.signed_activations!r}"
            )
        self.bits, self.role, self.signed, self.surrogate = bits, role, signed, surrogate
        self.shape = () if self.one_scale else shape
        self.grid = self.codes()
        self.qmin, self.qmax = self.grid[0], self.grid[-1]
        self.setup()

    def codes(self) -> range:
        """All possible codes, ascending."""
        lowest, largest = code_range(self.bits, self.signed)
        return range(lowest, largest + 1)

    def setup(self) -> None:
        """Register parameters and buffers; the last step of the constructor."""

    @abstractmethod
    def forward(self, x: Tensor) -> QTensor:
        """Codes of x. The scale of the result is detached; a learned scale gets its gradient through the codes."""

    @abstractmethod
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Fix the scale from outside for values in [low, high] (each of `shape`): post-training quantization."""

    @property
    def name(self) -> str:
        """As in QUANTIZERS, and as recorded: `LSQQuantizer` is `lsq`."""
        return type(self).__name__.removesuffix("Quantizer").lower()

    def training_dtype(self) -> torch.dtype | None:
        """`codes_dtype` while training, else None."""
        return self.codes_dtype if self.training else None

    def rectified(self, x: Tensor) -> Tensor:
        """x, or max(x, 0) where a ReLU is part of this quantizer; detached."""
        return x.detach().relu() if self.rectify else x.detach()

    def shared_dims(self, x: Tensor) -> list[int]:
        """Dimensions of x over which a scale is shared."""
        return [d for d in range(x.dim()) if not self.shape or self.shape[d] == 1]

    def mean_magnitude(self, x: Tensor) -> Tensor:
        """Mean of |x| over the elements that share a scale; of `shape`."""
        return x.detach().abs().mean(self.shared_dims(x), keepdim=bool(self.shape))

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest of the elements that share a scale; each of `shape`."""
        if not self.shape:
            low, high = torch.aminmax(x.flatten())
            return low, high
        dims = self.shared_dims(x)
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)

    def fitting_scale(self, low: Tensor, high: Tensor) -> Tensor:
        """The smallest scale at which the codes reach from low to high (each of `shape`), at least 2^-20."""
        needed = high / max(self.qmax, 1)
        if self.qmin:
            needed = torch.maximum(needed, low / self.qmin)
        return needed.clamp_min(MIN_SCALE)

    def on_grid(self, x: Tensor, scale: Tensor, zero_point: Tensor | int) -> QTensor:
        """x as codes qmin..qmax of this scale and zero point, with the surrogate's gradient."""
        low, high = self.qmin, self.qmax
        with torch.no_grad():
            args = (x, scale, zero_point, low, high, self.training_dtype())
            codes = native.run(native.is_compiled(), kernels.grid_codes, *args)
        codes = Staircase.apply(x, codes, scale, scale, zero_point, low, high, self.surrogate, self.rectify)
        return QTensor(codes, scale, zero_point)

    def clipped_share(self, x: Tensor, q: QTensor) -> float | None:
        """Share of x that lies outside the grid and is clipped in `q`; None where the design clips nothing."""
        assert q.scale is not None
        v = x / q.scale + q.zero_point
        outside = (v < self.qmin - 0.5) | (v >= self.qmax + 0.5)
        return outside.float().mean().item()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Without any state of this quantizer, the weights are those of a float network: it keeps its own state."""
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, role={self.role}, codes {self.qmin}..{self.qmax}, surrogate={self.surrogate}"


class InitializedQuantizer(Quantizer):
    """A quantizer whose state is set by the first tensor it sees, or by `set_range`, and then kept.

    `initialized` (a buffer, so that it is in the state dict) says whether that has happened.
    """

    initialized: Tensor

    def setup(self) -> None:
        self.register_buffer("initialized", torch.tensor(False))
        self._known_initialized = False  # avoids a device synchronization in every forward pass

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Set the state from the first tensor."""

    def ensure_initialized(self, x: Tensor) -> None:
        """Initialize from x if nothing else has; call it first in `forward`."""
        if not self._known_initialized:
            if not bool(self.initialized):
                with torch.no_grad():
                    self.initialize(self.rectified(x))
            self.mark_initialized()

    def mark_initialized(self) -> None:
        self.initialized.fill_(True)
        self._known_initialized = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known_initialized = False  # the loaded state decides
        super()._load_from_state_dict(*args, **kwargs)


class RangeQuantizer(InitializedQuantizer):
    """A quantizer whose scale follows from the range [low, high] it observes in training; the range always holds 0.

    Weights: the range of the tensor itself, at every training step. Activations: moving averages of each batch's
    smallest and largest value (`momentum` is the share of the new batch). At one bit, twice the mean replaces the
    largest value, which would be far too high for the only level above 0: training would diverge. Evaluation leaves the
    range as it is.
    """

    low: Tensor
    high: Tensor
    momentum: ClassVar[float] = 0.05

    def setup(self) -> None:
        super().setup()
        self.register_buffer("low", torch.zeros(self.shape))
        self.register_buffer("high", torch.zeros(self.shape))

    def initialize(self, x: Tensor) -> None:
        self.set_range(*self._range_of(x))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low.clamp_max(0))
        self.high.copy_(high.clamp_min(0))
        self.mark_initialized()

    def observe(self, x: Tensor) -> None:
        """Update the range from x, in training mode only."""
        self.ensure_initialized(x)
        if self.training:
            with torch.no_grad():
                share = 1.0 if self.role == "weight" else self.momentum
                for kept, new in zip((self.low, self.high), self._range_of(self.rectified(x)), strict=True):
                    kept.lerp_(new.to(kept.dtype), share)

    def _range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits == 1:
            return torch.zeros_like(self.low), 2 * self.mean_magnitude(x)
        low, high = self.extremes(x)
        return low.clamp_max(0), high.clamp_min(0)


class ClosedFormQuantizer(Quantizer):
    """Weights whose codes and scale are a closed form of the tensor, so that no range can be set."""

    activations = "lsq"

    def set_range(self, low: Tensor, high: Tensor) -> None: ...

    def clipped_share(self, x: Tensor, q: QTensor) -> None:
        """None: magnitudes are replaced by design, not cut off."""


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
        is `fraction_bits` when given. At two bits such a range would leave nearly all codes 0, because few values are
        near the largest: the scale is that of a typical large value instead, (sum x^2 / sum |x|) / sqrt(qmax), as LSQ's
        starts from the mean. (Nearly uniform or exponential values have their smallest squared error about there.)
        LeNet at 2 bits after 2 epochs on 4,000 images of MNIST, three seeds: 88.7 % with the range, 96.3 % so; at 3
        bits and more there is no clear difference.
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
        dims, keep = self.shared_dims(x), bool(self.shape)
        total = x.abs().sum(dims, keepdim=keep).clamp_min(MIN_SCALE)
        typical = x.square().sum(dims, keepdim=keep) / total / math.sqrt(self.qmax)
        scale = torch.minimum(typical, self.fitting_scale(low, high))
        return self.qmin * scale, self.qmax * scale

    def forward(self, x: Tensor) -> QTensor:
        self.observe(x)
        if self.fraction_bits is not None:
            return self.on_grid(x, torch.full_like(self.high, 2.0**-self.fraction_bits), 0)
        return self.on_grid(x, self.fitting_power(), 0)

    def fitting_power(self) -> Tensor:
        """The 2^-n that suits the observed range, whatever `fraction_bits` is; of `shape`."""
        return nearest_power_of_two(self.fitting_scale(self.low, self.high))


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
            limit = 1 / step
        codes = Staircase.apply(x, codes, scale, step, 0, -limit, limit, self.surrogate)
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
