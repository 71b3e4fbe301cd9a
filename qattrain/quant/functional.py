"""The explicit autograd functions: every forward and every backward of this project's quantized layers, by hand.

- `Round`         rounding with a straight-through gradient
- `Staircase`     any codes computed from x, with a surrogate gradient
- `LearnedStep`   quantization whose step size is trained (LSQ)
- `LearnedClip`   quantization whose clipping level is trained (PACT; `clipping.py`)
- `TanhCodes`     weights squeezed into [-1, 1] by a tanh, then quantized (DoReFa; `clipping.py`)
- `Rescale`       integer accumulators to real values, `(acc + bias) * scale`
- `Linear`        the matrix product of a fully connected layer (`products.py`)
- `Conv2d`        convolution as unfold and einsum (`products.py`)

**Where the surrogate is.** In the backward of all but the last three: the line that says `SURROGATES[...]`. `Round`
applies it there; the others hand it to the function of `kernels.py` that computes their gradient.

**Where the factor 2^n goes.** With `w_hat = 2^-n round(2^n w)` the chain rule gives `2^-n * 1 * 2^n = 1`: the scale of
the forward cancels the scale of the inner derivative. A layer that returns the raw `round(2^n w)` has the gradient
factor 2^n, and SGD then steps 4^n times too far; dropping the factor leaves 2^n. The fault is the missing division.

**Codes carry the gradient.** These functions return *codes* q, not real values, because layers multiply codes. A layer
multiplies by the scale s afterwards, so the gradient that reaches the codes is `g_q = s * g_xhat`. Hence dividing by s
in the backward gives the gradient with respect to x_hat, and the scale itself can stay a constant in every layer: the
whole gradient of a learned step is computed here, in one place.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from qattrain.quant import kernels, native
from qattrain.quant.clipping import LearnedClip, TanhCodes
from qattrain.quant.grid import MIN_SCALE, QTensor, dequantize, round_half_up
from qattrain.quant.products import Conv2d, Gradients, Linear, conv2d, linear
from qattrain.quant.surrogates import SURROGATES

__all__ = [
    "Conv2d",
    "LearnedClip",
    "LearnedStep",
    "Linear",
    "Rescale",
    "Round",
    "Staircase",
    "TanhCodes",
    "conv2d",
    "fake_quantize_learned",
    "linear",
]
INFINITY = float("inf")


class Round(Function):
    """y = floor(v + 1/2), half up; backward: the surrogate. v: any shape, float32 or wider.

    `Round.apply(v)` with the identity is the straight-through estimator (Bengio et al. 2013, section 4), the same
    gradient as `v + (round(v) - v).detach()`.
    """

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, surrogate: str = "identity", low: float = -INFINITY, high: float = INFINITY
    ) -> Tensor:
        ctx.surrogate, ctx.low, ctx.high = surrogate, low, high
        ctx.save_for_backward(v)
        return round_half_up(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        (v,) = ctx.saved_tensors
        grad_v = SURROGATES[ctx.surrogate](grad_output, v, ctx.low, ctx.high) if ctx.needs_input_grad[0] else None
        return grad_v, None, None, None


class Staircase(Function):
    """q = codes, already computed from x; backward: g_x = surrogate(g_q, v) / scale with v = x / unit + offset.

    x, codes: any shape, the same. scale: of the codes, broadcasts against x. v: x in units of the staircase's steps,
    what the surrogate sees, with its thresholds at k + 1/2 and its range low..high; unit, offset, low and high are
    numbers or tensors that broadcast. rectify: codes are those of max(x, 0). Saves x and no other large tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        unit: Tensor | float,
        offset: Tensor | float,
        low: Tensor | float,
        high: Tensor | float,
        surrogate: str,
        rectify: bool = False,
    ) -> Tensor:
        ctx.compiled, ctx.surrogate, ctx.rectify = native.is_compiled(), surrogate, rectify
        ctx.map = (unit, offset, low, high)
        ctx.save_for_backward(x, scale)
        return codes.view_as(codes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_codes: Tensor) -> Gradients:
        if not ctx.needs_input_grad[0]:
            return (None,) * 9
        x, scale = ctx.saved_tensors
        grad_codes = kernels.formatted_as(grad_codes, x)
        surrogate = SURROGATES[ctx.surrogate]
        grad_x = native.run(
            ctx.compiled, kernels.staircase_gradient, grad_codes, x, scale, *ctx.map, surrogate, ctx.rectify
        )
        return grad_x, *(None,) * 8


class LearnedStep(Function):
    """LSQ: q = clip(round(x / s), qmin, qmax) with a trained step s; returns codes in float32 or wider, or as `dtype`.

    With v = x / s and the surrogate's derivative Q'(v), the real value x_hat = s q has
        d x_hat / d x = Q'(v)          d x_hat / d s = q - v Q'(v),
    which for `clipped` is the paper's eq. 3: q - v inside the range, qmin or qmax outside. s broadcasts against x and
    is held at 2^-20 or above; its gradient is summed over the elements that share it and multiplied by `gradient_scale`
    (section 2.2: 1 / sqrt(elements * qmax), so that s learns at the pace of the weights). rectify: quantize max(x, 0),
    with qmin = 0; then Q'(v) is 0 for x <= 0, unless the surrogate stands for the ReLU, too.

    Source: Esser et al. 2020, "Learned Step Size Quantization".
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        qmin: int,
        qmax: int,
        gradient_scale: float,
        surrogate: str,
        rectify: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        ctx.compiled, ctx.surrogate, ctx.rectify = native.is_compiled(), surrogate, rectify
        ctx.grid = (qmin, qmax, gradient_scale)
        ctx.save_for_backward(x, step)
        codes: Tensor = native.run(ctx.compiled, kernels.grid_codes, x, step, 0, qmin, qmax, dtype)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_codes: Tensor) -> Gradients:
        x, step = ctx.saved_tensors
        grad_codes = kernels.formatted_as(grad_codes, x)
        grad_x, grad_step = native.run(
            ctx.compiled,
            kernels.learned_step_gradients,
            *(grad_codes, x, step, *ctx.grid, SURROGATES[ctx.surrogate], ctx.rectify),
        )
        return grad_x, grad_step, *(None,) * 6


def fake_quantize_learned(
    x: Tensor, step: Tensor, qmin: int, qmax: int, gradient_scale: float = 1.0, surrogate: str = "clipped"
) -> Tensor:
    """x_hat = s * clip(round(x / s)), real values with LSQ's gradients: the textbook form of `LearnedStep`."""
    codes = LearnedStep.apply(x, step, qmin, qmax, gradient_scale, surrogate)  # type: ignore[no-untyped-call]
    return dequantize(QTensor(codes, step.detach().clamp_min(MIN_SCALE)))


class Rescale(Function):
    """y = (max of acc over windows + b_q) * scale, per channel: accumulators of codes become real values.

    acc: (..., C, *trailing) in any floating dtype; `trailing` counts the dimensions behind the channel (2 for images).
    bias: (C,) or None. scale: (C,) or (1,), a constant, or None for a float layer. on_grid: the bias is rounded to the
    grid of the accumulators, b_q = clip(round(b / scale)), straight through; else b_q = b / scale. pool: height and
    width of the windows, 1 for none. y: float32 or wider, but of acc's dtype in a float layer. Of acc only the place of
    each window's largest element is saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        acc: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        on_grid: bool = True,
        trailing: int = 0,
        pool: int = 1,
    ) -> Tensor:
        ctx.compiled, ctx.plain = native.is_compiled(), (on_grid, trailing, pool, tuple(acc.shape[-2:]), acc.dtype)
        y, winners = native.run(ctx.compiled, kernels.rescale, acc, bias, scale, on_grid, trailing, pool)
        ctx.save_for_backward(winners, bias, scale)
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Gradients:
        grad_acc, grad_bias = native.run(
            ctx.compiled, kernels.rescale_gradients, grad_y, *ctx.saved_tensors, *ctx.plain
        )
        needs_acc, needs_bias, *_ = ctx.needs_input_grad
        return grad_acc if needs_acc else None, grad_bias if needs_bias else None, *(None,) * 4
