"""What the quantizers have in common: their grid, their scale's shape, and where a scale that is kept comes from.

A quantizer is an `nn.Module` that maps a real tensor to a `QTensor`. It holds whatever it learns or observes, so a
state dict is enough to reproduce its codes.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qattrain.errors import ConfigError, pick
from qattrain.quant import kernels, native
from qattrain.quant.functional import Staircase
from qattrain.quant.grid import MIN_SCALE, QTensor, code_range
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
    random: ClassVar[bool] = False  # whether training draws codes at random (from torch's generator); evaluation never
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
        return x.amin(self.shared_dims(x), keepdim=True), x.amax(self.shared_dims(x), keepdim=True)

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
