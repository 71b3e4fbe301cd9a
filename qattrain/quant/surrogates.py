"""SURROGATES: what the backward pass uses in place of the derivative of a staircase.

`q = clip(round(v), low, high)` has the derivative 0 almost everywhere, so nothing before it would learn. The backward
pass therefore pretends that another function was applied. Each entry below is such a function, written as its
vector-Jacobian product: it takes the incoming gradient and `v`, and returns the outgoing gradient.

To try your own, write a function of this form and add it to the table; `--set quant.surrogate=NAME` then selects it
(after `pip install -e .`: a plain install runs a copy of these files):

    SURROGATES["half"] = lambda grad, v, low, high: grad / 2
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Surrogate = Callable[[Tensor, Tensor, Any, Any], Tensor]  # the bounds are numbers, or tensors that broadcast


def identity(grad: Tensor, v: Tensor, low: Any, high: Any) -> Tensor:  # noqa: ARG001
    """Pretend y = v: the gradient passes unchanged, also where the staircase has saturated.

    Source: Bengio, Leonard, Courville 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    return grad


def clipped(grad: Tensor, v: Tensor, low: Any, high: Any) -> Tensor:
    """Pretend y = clip(v, low, high): the gradient passes where low <= v <= high, and is 0 outside (default).

    Source: Hubara et al. 2016, "Binarized Neural Networks"; LSQ's own choice (Esser et al. 2020, eq. 5).
    """
    return torch.where((v >= low) & (v <= high), grad, 0.0)


def tanh(grad: Tensor, v: Tensor, low: Any, high: Any, sharpness: float = 2.0) -> Tensor:
    """Pretend every step is a tanh: steep at the rounding threshold, flat where v sits on a code; 0 outside.

    With u = v - floor(v) - 1/2 in [-1/2, 1/2) the step is tanh(k u) / (2 tanh(k / 2)) and its derivative
    k (1 - tanh(k u)^2) / (2 tanh(k / 2)); its mean over a step is 1. k is `sharpness`.

    Source: Gong et al. 2019, "Differentiable Soft Quantization", eq. 5 to 8.
    """
    u = v - torch.floor(v) - 0.5
    slope = sharpness * (1 - torch.tanh(sharpness * u) ** 2) / (2 * math.tanh(sharpness / 2))
    return torch.where((v >= low) & (v <= high), grad * slope, 0.0)


def polynomial(grad: Tensor, v: Tensor, low: Any, high: Any) -> Tensor:
    """Pretend every step is a ramp of two parabolas, two steps wide: gradients reach beyond the range and fade out.

    The derivative of each ramp is a triangle, 1 at its threshold and 0 one step away; neighbors add up to 1. So the
    gradient is 1 from the first threshold to the last, and falls to 0 at low - 1/2 and high + 1/2. It also replaces a
    ReLU in front: values slightly below 0 can recover. It helps most with a single threshold, at 1 bit.

    Source: Liu et al. 2018, "Bi-Real Net" (ApproxSign), there for the sign alone.
    """
    return grad * torch.minimum(v - low, high - v).add(0.5).clamp(0, 1)


SURROGATES: dict[str, Surrogate] = {
    "identity": identity,
    "clipped": clipped,
    "tanh": tanh,
    "polynomial": polynomial,
}
STAND_FOR_RELU = frozenset({polynomial})  # these also replace a ReLU in front of the staircase
