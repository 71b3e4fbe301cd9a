"""The two products of a network, as explicit autograd functions: a fully connected layer and a convolution.

- `Linear`  the matrix product of a fully connected layer
- `Conv2d`  convolution as unfold and einsum

Each equals torch's own in its output and all its gradients, and computes only the gradients that are needed. Training
uses torch's, which are faster, unless `--set model.ops=explicit` asks for these.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

Gradients = tuple[Tensor | None, ...]


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

    x: (N, C, H, W), weight: (D, C, K, J), bias: (D,) or None; stride and padding: (height, width), padding may be 0.
    Unfolding along height and width gives every window as a view (no copy), and the convolution is one contraction
    over channels and window: `nchwkj,dckj->ndhw`. Memory grows by K * J during the contraction.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
    ) -> Tensor:
        assert x.shape[1] == weight.shape[1], f"x has {x.shape[1]} channels, the weight takes {weight.shape[1]}"
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(x, weight)
        y = torch.einsum("nchwkj,dckj->ndhw", _windows(_pad(x, padding), weight, stride), weight)
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


def _pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    height, width = padding
    return torch.nn.functional.pad(x, (width, width, height, height)) if height or width else x


def _windows(padded: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> every window as a view, (N, C, H', W', K, J)."""
    return padded.unfold(2, weight.shape[2], stride[0]).unfold(3, weight.shape[3], stride[1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`Linear` as a function: x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    result: Tensor = Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """`Conv2d` as a function: x (N, C, H, W), weight (D, C, K, J), bias (D,) or None -> (N, D, H', W')."""
    result: Tensor = Conv2d.apply(x, weight, bias, stride, padding)  # type: ignore[no-untyped-call]
    return result
