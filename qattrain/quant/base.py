"""What every quantizer has in common: its place (weight or activation), its grid, and how a scale is shared.

A quantizer is an `nn.Module` that maps a real tensor to a `QTensor`. It holds whatever it learns or observes, so that a
state dict is all that is needed to reproduce its codes.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.quant import kernels, native
from qattrain.quant.functional import Staircase
from qattrain.quant.grid import QTensor
from qattrain.quant.surrogates import SURROGATES

Role = Literal["weight", "activation"]


def check_surrogate(name: str) -> None:
    """Raises ConfigError if `name` is no key of SURROGATES."""
    if name not in SURROGATES:
        raise ConfigError(f"surrogate {name!r}: allowed: {', '.join(SURROGATES)}")


class Quantizer(nn.Module, ABC):
    """Base class. Subclasses say in their docstring: formula, gradient, range, paper.

    bits: 1..8. role: "weight" (codes may follow the tensor at every step) or "activation" (what was seen in training is
    kept for evaluation). shape: of the scale, broadcastable against the tensor: () for one scale, (C, 1, 1, 1) or
    (C, 1) for one per output channel. signed: whether codes are negative as well. surrogate: a key of SURROGATES.
    """

    weight_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8)  # widths at which it can hold weights
    default_bits: ClassVar[int] = 4
    weights: ClassVar[str | None] = None  # name of the quantizer that takes its weights; None: itself
    activations: ClassVar[str | None] = None  # name of the quantizer that takes its activations; None: itself
    signed_activations: ClassVar[str | None] = None  # the same for signed values, if its own are never negative
    decays: ClassVar[bool] = False  # whether weight decay acts on what it learns: on a scale, it only narrows the grid

    qmin: int
    qmax: int
    step: int = 1  # between neighbouring codes
    approximates: bool = True  # whether the real value of a code is meant to be near x, so that an error can be told
    rectify: bool = False  # quantize max(x, 0): the ReLU in front of an activation's quantizer is part of it
    codes_dtype: torch.dtype | None = None  # of codes while training; None: float32 or wider

    def __init__(
        self, bits: int, *, role: Role, shape: tuple[int, ...] = (), signed: bool = True, surrogate: str = "clipped"
    ) -> None:
        super().__init__()
        check_surrogate(surrogate)
        if role == "weight" and bits not in self.weight_bits:
            allowed = ", ".join(map(str, self.weight_bits))
            raise ConfigError(f"{type(self).__name__} with {bits} bits for weights: allowed: {allowed}")
        if role == "activation" and signed and self.signed_activations:
            raise ConfigError(
                f"{type(self).__name__} for signed activations: its codes are never negative; "
                f"allowed: signed=False, or quantizer {self.signed_activations!r}"
            )
        self.bits, self.role, self.shape, self.signed, self.surrogate = bits, role, shape, signed, surrogate
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Set `qmin` and `qmax`, and register parameters and buffers; the last step of the constructor."""

    @abstractmethod
    def forward(self, x: Tensor) -> QTensor:
        """Codes of x. The scale of the result is detached; a learned scale gets its gradient through the codes."""

    @abstractmethod
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Fix the scale from outside for values in [low, high] (each of `shape`): post-training quantization."""

    def training_dtype(self) -> torch.dtype | None:
        """`codes_dtype` while training, else None."""
        return self.codes_dtype if self.training else None

    def rectified(self, x: Tensor) -> Tensor:
        """x, or max(x, 0) where a ReLU is part of this quantizer; detached."""
        return x.detach().relu() if self.rectify else x.detach()

    @property
    def levels(self) -> int:
        """How many different codes there are."""
        return (self.qmax - self.qmin) // self.step + 1

    def shared_dims(self, x: Tensor) -> list[int]:
        """Dimensions of x over which a scale is shared."""
        return [d for d in range(x.dim()) if not self.shape or self.shape[d] == 1]

    def shared_count(self, x: Tensor) -> int:
        """How many elements of x share a scale."""
        return x.numel() // math.prod(self.shape)

    def mean_magnitude(self, x: Tensor) -> Tensor:
        """Mean of |x| over the elements that share a scale; of `shape`."""
        return x.detach().abs().mean(self.shared_dims(x), keepdim=bool(self.shape))

    def on_grid(self, x: Tensor, scale: Tensor, zero_point: Tensor | int) -> QTensor:
        """x as codes qmin..qmax of this scale and zero point, with the surrogate's gradient."""
        with torch.no_grad():
            codes = native.run(
                native.is_compiled(),
                kernels.grid_codes,
                *(x.detach(), scale, zero_point, self.qmin, self.qmax, self.training_dtype()),
            )
        codes = Staircase.apply(  # type: ignore[no-untyped-call]
            *(x, codes, scale, scale, zero_point, self.qmin, self.qmax, self.surrogate, self.rectify)
        )
        return QTensor(codes, scale, zero_point)

    def clipped_share(self, x: Tensor, q: QTensor) -> float | None:
        """Share of x that lies outside the grid, so that `q` has it clipped; None where the design clips nothing."""
        assert q.scale is not None
        v = x / q.scale + q.zero_point
        outside = (v < self.qmin - 0.5) | (v >= self.qmax + 0.5)
        return outside.float().mean().item()

    def extra_repr(self) -> str:
        return f"bits={self.bits}, role={self.role}, codes {self.qmin}..{self.qmax}, surrogate={self.surrogate}"


class InitializedQuantizer(Quantizer):
    """A quantizer whose state comes from the first tensor it sees, or from `set_range`, and is then kept.

    `initialized` (a buffer, so that it is in the state dict) says whether that happened.
    """

    initialized: Tensor

    def setup(self) -> None:
        self.register_buffer("initialized", torch.tensor(False))
        self._known_initialized = False  # spares a device synchronization at every forward

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Set the state from the first tensor."""

    def ensure_initialized(self, x: Tensor) -> None:
        """Initialize from x if nothing else has; to be called at the head of `forward`."""
        if not self._known_initialized:
            if not bool(self.initialized):
                with torch.no_grad():
                    self.initialize(self.rectified(x))
            self.mark_initialized()

    def mark_initialized(self) -> None:
        self.initialized.fill_(True)
        self._known_initialized = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known_initialized = False  # the state dict knows better
        super()._load_from_state_dict(*args, **kwargs)


class RangeQuantizer(InitializedQuantizer):
    """A quantizer whose scale follows from the range [low, high] it observes while training, and always holds 0.

    Weights: the range of the tensor itself, at every training step. Activations: moving averages of each batch's
    smallest and largest value (`momentum` is the new batch's share). At one bit twice the mean stands for the largest
    value: as the only level above 0 that would be far too high, and training on it blows up. Evaluation observes
    nothing.
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
        low, high = torch.aminmax(x.flatten()) if not self.shape else self._range_by_channel(x)
        return low.clamp_max(0), high.clamp_min(0)

    def _range_by_channel(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = self.shared_dims(x)
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
