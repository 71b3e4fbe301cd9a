"""The explicit autograd functions: every forward and every backward of this project's quantized layers, by hand.

- `Round`         rounding with a straight-through gradient
- `Staircase`     any codes computed from x, with a surrogate gradient
- `LearnedStep`   quantization whose step size is trained (LSQ)
- `LearnedClip`   quantization whose clipping level is trained (PACT)
- `TanhCodes`     weights squeezed into [-1, 1] by a tanh, then quantized (DoReFa)
- `Rescale`       integer accumulators to real values, `(acc + bias) * scale`
- `BatchNormalize`  the same, with a scale and a bias that normalize the batch
- `Linear`        the matrix product of a fully connected layer
- `Conv2d`        convolution as unfold and einsum

**Where the surrogate is.** In the backward of all but the last four: the line with `SURROGATES[...]`. `Round` applies
it there; the others pass it to the function of `kernels.py` that computes their gradient.

**Where the factor 2^n goes.** With `w_hat = 2^-n round(2^n w)` the chain rule gives `2^-n * 1 * 2^n = 1`: the scale of
the forward cancels the scale of the inner derivative. A layer that returns the raw `round(2^n w)` has the gradient
factor 2^n, and SGD then steps 4^n times too far; dropping the factor leaves 2^n. The fault is the missing division.

**Codes carry the gradient.** These functions return *codes* q, not real values, because layers multiply codes. A layer
multiplies by the scale s afterwards, so the gradient that reaches the codes is `g_q = s * g_xhat`. Dividing by s in the
backward therefore gives the gradient with respect to x_hat, and the scale can be a constant in every layer: the whole
gradient of a learned step is computed here, in one place.

**The two products**, `Linear` and `Conv2d`, equal torch's own in output and all gradients, and compute only the
gradients that are needed. Training uses torch's, which are faster, unless `--set model.ops=explicit` asks for these.
As functions, `linear(x, w)` and `conv2d(x, w, b, 2, 2)`, they take what torch's take. Their output is no single number,
so `backward()` alone is an error: pass it the gradient that arrives, such as `torch.ones_like(y)`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from qattrain.quant import kernels, native
from qattrain.quant.grid import round_half_up, widened
from qattrain.quant.surrogates import SURROGATES

Pair = int | tuple[int, int]  # one number for height and width, or both
Gradients = tuple[Tensor | None, ...]  # as many as forward took arguments, None where none is needed


class Round(Function):
    """y = floor(v + 1/2), half up; backward: the surrogate. v: any shape, float32 or wider.

    `Round.apply(v)` with the identity is the straight-through estimator (Bengio et al. 2013, section 4), the same
    gradient as `v + (round(v) - v).detach()`.
    """

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, surrogate: str = "identity", low: float = -math.inf, high: float = math.inf
    ) -> Tensor:
        ctx.surrogate, ctx.low, ctx.high = surrogate, low, high
        ctx.save_for_backward(v)
        return round_half_up(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        (v,) = ctx.saved_tensors
        return SURROGATES[ctx.surrogate](grad_output, v, ctx.low, ctx.high), None, None, None


class Staircase(Function):
    """q = codes, already computed from x; backward: g_x = surrogate(g_q, v) / scale with v = x / unit + offset.

    x, codes: of the same shape. scale: of the codes, broadcasts against x. v: x in steps of the staircase, as the
    surrogate sees it, with thresholds at k + 1/2 and the range low..high; unit, offset, low and high are numbers or
    tensors that broadcast. rectify: the codes are those of max(x, 0). Saves x and no other large tensor.
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
        x, scale = ctx.saved_tensors
        args = (kernels.formatted_as(grad_codes, x), x, scale, *ctx.map, SURROGATES[ctx.surrogate], ctx.rectify)
        grad_x = native.run(ctx.compiled, kernels.staircase_gradient, *args)
        return grad_x, *(None,) * 8


class LearnedStep(Function):
    """LSQ: q = clip(round(x / s), qmin, qmax) with a trained step s; returns codes in float32 or wider, or as `dtype`.

    With v = x / s and the surrogate's derivative Q'(v), the real value x_hat = s q has
        d x_hat / d x = Q'(v)          d x_hat / d s = q - v Q'(v),
    which for `clipped` is the paper's eq. 3: q - v inside the range, qmin or qmax outside. s broadcasts against x and
    is held at 2^-20 or above; its gradient is summed over the elements that share it and multiplied by `gradient_scale`
    (section 2.2: 1 / sqrt(elements * qmax), so that s learns at the pace of the weights). rectify: quantize max(x, 0),
    with qmin = 0; then Q'(v) is 0 for x <= 0, unless the surrogate also replaces the ReLU.

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
        args = (kernels.formatted_as(grad_codes, x), x, step, *ctx.grid, SURROGATES[ctx.surrogate], ctx.rectify)
        grad_x, grad_step = native.run(ctx.compiled, kernels.learned_step_gradients, *args)
        return grad_x, grad_step, *(None,) * 6


class LearnedClip(Function):
    """PACT: q = clip(round(x / s), 0, qmax), s = alpha / qmax, with a trained clipping level alpha; codes as `dtype`.

    The rounding is taken as the identity, so that the real value x_hat = s q has
        d x_hat / d x = Q'(x / s)          d x_hat / d alpha = 1 where x >= alpha, else 0
    with the surrogate's derivative Q', which for `clipped` is 1 inside the range. alpha has one element; s is held at
    2^-20 or above. rectify: quantize max(x, 0); then the derivative by x is 0 for x <= 0, unless the
    surrogate also replaces the ReLU.

    Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", eq. 1 to 3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        qmax: int,
        surrogate: str,
        rectify: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        step = alpha / qmax
        ctx.compiled, ctx.qmax, ctx.surrogate, ctx.rectify = native.is_compiled(), qmax, surrogate, rectify
        ctx.save_for_backward(x, step)
        codes: Tensor = native.run(ctx.compiled, kernels.grid_codes, x, step, 0, 0, qmax, dtype)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_codes: Tensor) -> Gradients:
        x, step = ctx.saved_tensors
        args = (kernels.formatted_as(grad_codes, x), x, step, ctx.qmax, SURROGATES[ctx.surrogate], ctx.rectify)
        grad_x, grad_alpha = native.run(ctx.compiled, kernels.learned_clip_gradients, *args)
        return grad_x, grad_alpha, *(None,) * 4


class TanhCodes(Function):
    """DoReFa: q = 2 round((2^b - 1) (t / 2m + 1/2)) - (2^b - 1) with t = tanh(x), m = max|t|; codes as `dtype`.

    Codes are the odd numbers of -(2^b - 1) .. 2^b - 1. The surrogate replaces the derivative of the rounding alone; the
    rest is the true derivative, also through the maximum, as in the reference implementation (tensorpack's `dorefa`).

    Source: Zhou et al. 2016, "DoReFa-Net", eq. 9.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, surrogate: str, dtype: torch.dtype | None = None) -> Tensor:
        ctx.bits, ctx.surrogate, ctx.dtype = bits, surrogate, x.dtype
        codes, *saved = kernels.tanh_codes(x, bits, dtype)
        ctx.save_for_backward(*saved)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_codes: Tensor) -> Gradients:
        tanh, largest = ctx.saved_tensors
        grad_codes = kernels.formatted_as(grad_codes, tanh)
        grad_x = kernels.tanh_codes_gradient(grad_codes, tanh, largest, ctx.bits, SURROGATES[ctx.surrogate])
        return grad_x.to(ctx.dtype), None, None, None


class Rescale(Function):
    """y = (max of acc over windows + b_q) * scale, per channel: accumulators of codes become real values.

    acc: (..., C, *trailing) in any floating dtype; `trailing` is the number of dimensions after the channel (2 for
    images).
    bias: (C,) or None. scale: (C,) or (1,), a constant, or None for a float layer. on_grid: the bias is rounded to the
    grid of the accumulators, b_q = clip(round(b / scale)), straight through; else b_q = b / scale. pool: height and
    width of the windows, 1 for none. y: float32 or wider, but of acc's dtype in a float layer. Of acc only the position
    of each window's largest element is saved.
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


class BatchNormalize(Function):
    """y = (acc + b) S per channel, with the S and b of `kernels.normalized_scale` for the statistics of this batch.

    acc: (N, C) or (N, C, H, W) accumulators in any floating dtype; everything is computed in float32 or wider. joint:
    (C,) or (1,), s_x s_w, or None where acc are real values: then b is not rounded. gain, shift: (C,), trained.
    Returns y and the mean and variance (biased) of the real values x = acc s, without gradients.

    Backward: the rounding of b is straight-through, and so is the least scale, which leaves the gradients of an
    ordinary batch normalization y = |gain| u + shift with u = (x - mean) / sigma over the n values of a channel:
        g_shift = sum g,   g_gain = sign(gain) sum g u,   g_x = |gain| / sigma (g - sum g / n - u sum(g u) / n)
    and g_acc = s g_x.
    Source: Ioffe, Szegedy 2015, "Batch Normalization"; on integers: Jacob et al. 2018, section 3.2.
    """

    @staticmethod
    def forward(
        ctx: Any, acc: Tensor, joint: Tensor | None, gain: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, dims, channels = widened(acc), [0, *range(2, acc.dim())], (-1, *(1,) * (acc.dim() - 2))
        variance, mean = torch.var_mean(wide, dims, correction=0)  # of the accumulators
        s = torch.ones_like(mean) if joint is None else joint
        real_mean, real_variance = mean * s, variance * s * s
        args = (s, gain, shift, real_mean, real_variance, eps)
        scale, bias = kernels.normalized_scale(*args, on_grid=joint is not None)
        y = (wide + bias.view(channels)).mul_(scale.view(channels))
        ctx.save_for_backward(acc, gain, mean, s / torch.sqrt(real_variance + eps))
        ctx.mark_non_differentiable(real_mean, real_variance)
        return y, real_mean, real_variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, _grad_mean: Tensor, _grad_variance: Tensor) -> Gradients:
        acc, gain, mean, inverse = ctx.saved_tensors  # inverse: s / sigma
        dims, channels = [0, *range(2, acc.dim())], (-1, *(1,) * (acc.dim() - 2))
        grad_y = widened(grad_y)
        normalized = (widened(acc) - mean.view(channels)).mul_(inverse.view(channels))
        grad_shift, grad_size = grad_y.sum(dims), (grad_y * normalized).sum(dims)
        count = acc.numel() // acc.shape[1]
        grad_acc = grad_y - (grad_shift / count).view(channels)
        grad_acc -= normalized.mul_((grad_size / count).view(channels))
        grad_acc *= (gain.abs() * inverse).view(channels)
        return grad_acc.to(acc.dtype), None, torch.where(gain < 0, -grad_size, grad_size), grad_shift, None


class Linear(Function):
    """y = x w^T + b. x: (..., in), weight: (out, in), bias: (out,) or None; equal to `F.linear`.

    backward, with G = dL/dy flattened to (N, out):  dL/dx = G w,  dL/dw = G^T x,  dL/db = sum of G over N.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = x @ weight.t()
        return y if bias is None else y + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad_rows = grad_y.reshape(-1, grad_y.shape[-1])  # (N, out)
        grad_x = grad_y @ weight if ctx.needs_input_grad[0] else None
        grad_weight = grad_rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        has_bias = len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2]
        grad_bias = grad_rows.sum(0) if has_bias else None
        return (grad_x, grad_weight, grad_bias)[: len(ctx.needs_input_grad)]


class Conv2d(Function):
    """2-D convolution from unfold and einsum; equal to `F.conv2d` in its output and all three gradients.

    x: (N, C, H, W), weight: (D, C, K, J), bias: (D,) or None; stride and padding: a number, or (height, width); padding
    may be 0.
    Unfolding along height and width gives every window as a view (no copy), and the convolution is one contraction
    over channels and window: `nchwkj,dckj->ndhw`. Memory grows by K * J during the contraction.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
    ) -> Tensor:
        assert x.shape[1] == weight.shape[1], f"x has {x.shape[1]} channels, the weight takes {weight.shape[1]}"
        ctx.stride, ctx.padding = _pair(stride), _pair(padding)
        ctx.save_for_backward(x, weight)
        y = torch.einsum("nchwkj,dckj->ndhw", _windows(_pad(x, ctx.padding), weight, ctx.stride), weight)
        return y if bias is None else y + bias.view(1, -1, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        (sh, sw), (ph, pw) = ctx.stride, ctx.padding
        padded = _pad(x, ctx.padding)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_padded = torch.zeros_like(padded)
            height, width = grad_y.shape[2:]
            for k in range(weight.shape[2]):  # every weight w[k, j] saw the input shifted by (k, j)
                for j in range(weight.shape[3]):
                    seen = grad_padded[:, :, k : k + sh * height : sh, j : j + sw * width : sw]
                    seen += torch.einsum("ndhw,dc->nchw", grad_y, weight[:, :, k, j])
            # narrow, not [pad:-pad]: with padding 0 the slice [0:-0] would be empty
            grad_x = grad_padded.narrow(2, ph, x.shape[2]).narrow(3, pw, x.shape[3])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.einsum("nchwkj,ndhw->dckj", _windows(padded, weight, ctx.stride), grad_y)
        if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2]:
            grad_bias = grad_y.sum((0, 2, 3))
        return (grad_x, grad_weight, grad_bias, None, None)[: len(ctx.needs_input_grad)]


def _pair(sides: Pair) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    height, width = padding
    return torch.nn.functional.pad(x, (width, width, height, height)) if height or width else x


def _windows(padded: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> every window as a view, (N, C, H', W', K, J)."""
    return padded.unfold(2, weight.shape[2], stride[0]).unfold(3, weight.shape[3], stride[1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`Linear` as a function: x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    result: Tensor = Linear.apply(x, weight, bias)
    return result


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
) -> Tensor:
    """`Conv2d` as a function: x (N, C, H, W), weight (D, C, K, J), bias (D,) or None -> (N, D, H', W').

    stride, padding: a number for both sides, or (height, width).
    """
    result: Tensor = Conv2d.apply(x, weight, bias, stride, padding)
    return result
