"""The autograd functions of DoReFa's weights and PACT's activations; `functional.py` has what all of them share.

- `LearnedClip`   quantization whose clipping level is trained
- `TanhCodes`     weights squeezed into [-1, 1] by a tanh, then quantized
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from qattrain.quant import kernels, native
from qattrain.quant.products import Gradients
from qattrain.quant.surrogates import SURROGATES


class LearnedClip(Function):
    """PACT: q = clip(round(x / s), 0, qmax), s = alpha / qmax, with a trained clipping level alpha; codes as `dtype`.

    The rounding is taken as the identity, so that the real value x_hat = s q has
        d x_hat / d x = Q'(x / s)          d x_hat / d alpha = 1 where x >= alpha, else 0
    with the surrogate's derivative Q', which for `clipped` is 1 inside the range. alpha has one element; s is held at
    2^-20 or above. rectify: quantize max(x, 0); then the derivative by x is 0 for x <= 0, unless the
    surrogate stands for the ReLU, too.

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
        grad_x, grad_alpha = native.run(
            ctx.compiled,
            kernels.learned_clip_gradients,
            *(kernels.formatted_as(grad_codes, x), x, step, ctx.qmax, SURROGATES[ctx.surrogate], ctx.rectify),
        )
        return grad_x, grad_alpha, *(None,) * 4


class TanhCodes(Function):
    """DoReFa: q = 2 round((2^b - 1) (t / 2m + 1/2)) - (2^b - 1) with t = tanh(x), m = max|t|; codes as `dtype`.

    Codes are the odd numbers of -(2^b - 1) .. 2^b - 1. Behind the surrogate, which sees the argument of the rounding,
    stands the true derivative, also through the maximum, as in the reference implementation (tensorpack's `dorefa`).

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
