"""Batch normalization of integer sums: trained like `nn.BatchNorm2d`, evaluated and shipped as a scale and a bias."""

from typing import Any

import torch
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.quant import QTensor, functional, kernels


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization of the sums of a layer with `bn=True`: QTensor (N, C) or (N, C, H, W) -> real values.

    num_features: C. eps, momentum: as in `nn.BatchNorm2d`, whose parameters and statistics it has. In training it
    normalizes by the batch (`functional.BatchNormalize`); in evaluation it is a scale and a bias on the grid per
    channel, y = (acc + b) S (`folded`), and these are what the integer network has. A gain counts by its magnitude, so
    that S is positive and max-pooling can come before it. Raises ConfigError for other inputs.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    by_magnitude: Tensor
    momentum: float

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.register_buffer("by_magnitude", torch.tensor(True))  # tells its state from that of nn.BatchNorm2d

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Raises ConfigError for negative gains of an `nn.BatchNorm2d`."""
        mark, gains = f"{prefix}by_magnitude", state_dict.get(f"{prefix}weight")
        if mark not in state_dict and gains is not None:
            _refuse_negative(gains, f"{prefix}weight")
            state_dict = {**state_dict, mark: self.by_magnitude}
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _check_input_dim(self, _input: Tensor) -> None: ...

    def folded(self, joint: Tensor | None) -> tuple[Tensor, Tensor]:
        """(S, b) of the running statistics, float64 (C,). joint: s_x s_w, (C,) or (1,); None: real values, no grid."""
        mean, variance = self.running_mean.double(), self.running_var.double()
        s = torch.ones_like(mean) if joint is None else joint.double().flatten()
        gain, shift = self.weight.detach().double(), self.bias.detach().double()
        return kernels.normalized_scale(s, gain, shift, mean, variance, self.eps, on_grid=joint is not None)

    def forward(self, x: QTensor) -> Tensor:  # type: ignore[override]
        if not isinstance(x, QTensor):
            raise ConfigError(
                "BatchNorm takes the sums of the layer before it: give that layer bn=True; for real values use "
                "nn.BatchNorm2d"
            )
        joint = None if x.scale is None else x.scale.flatten()
        if self.training:
            y, mean, variance = functional.BatchNormalize.apply(x.codes, joint, self.weight, self.bias, self.eps)
            count = x.codes.numel() // x.codes.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
                self.num_batches_tracked += 1
            result: Tensor = y
            return result
        scale, bias = self.folded(joint)
        channels = (-1, *(1,) * (x.codes.dim() - 2))
        y = (x.codes.double() + bias.view(channels)) * scale.view(channels)
        return y if joint is not None else y.to(x.codes.dtype)

    @classmethod
    def from_float(cls, norm: nn.Module, bias: Tensor | None = None) -> "BatchNorm":
        """Parameters and statistics of an `nn.BatchNorm2d` or `nn.BatchNorm1d`. bias: of the layer before it, if any.

        Raises ConfigError for negative gains, which would turn maxima into minima, and without running statistics.
        """
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm), norm
        if norm.running_mean is None or norm.running_var is None or norm.weight is None or norm.momentum is None:
            raise ConfigError(
                f"{norm}: it lacks running statistics, trained gains or a momentum; allowed: affine=True, "
                "track_running_stats=True, momentum a number"
            )
        _refuse_negative(norm.weight, type(norm).__name__)
        result = cls(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device, norm.weight.dtype)
        result.load_state_dict(norm.state_dict())
        if bias is not None:  # (x + bias) - mean
            result.running_mean -= bias.detach()
        return result.train(norm.training)


def _refuse_negative(gains: Tensor, source: str) -> None:
    negative = (gains < 0).nonzero().flatten().tolist()
    if negative:
        shown = ", ".join(map(str, negative[:8])) + (", ..." if len(negative) > 8 else "")
        raise ConfigError(
            f"{source} has negative gains in channels {shown}: they have no integer form; flip the sign of these "
            "gains, and of these channels' weights, biases and running means before them"
        )
