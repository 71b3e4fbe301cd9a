"""What the autograd functions compute, element by element: pure functions, each forward next to its backward.

They run as written here or, once `native.c` is compiled, each in a single pass over memory; the functions of
`functional.py` let `native.run` choose. Only elementwise work is here; products are fast already. Nothing here knows
about autograd, modules or layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qattrain.quant.grid import MIN_SCALE, round_half_up, widened
from qattrain.quant.surrogates import STAND_FOR_RELU, Surrogate

MAX_BIAS_CODE = 2**22 - 1

# --- quantizing ---------------------------------------------------------------------------------------------------


def grid_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int, dtype: torch.dtype | None
) -> Tensor:
    """clip(round(x / s + z), qmin, qmax), computed in float32 or wider and returned as `dtype` (None: as computed)."""
    codes = round_half_up(widened(x) / scale.clamp_min(MIN_SCALE) + zero_point).clamp_(qmin, qmax)
    return codes if dtype is None else codes.to(dtype)


def staircase_gradient(
    grad_codes: Tensor,
    x: Tensor,
    scale: Tensor,
    unit: Tensor,
    offset: Tensor | float,
    low: Tensor | float,
    high: Tensor | float,
    surrogate: Surrogate,
    rectify: bool,
) -> Tensor:
    """g_x = surrogate(g_q, v) / s with v = x / unit + offset; zero where a ReLU in front blocks it."""
    wide = widened(x)
    grad_x = surrogate(grad_codes.to(wide.dtype), wide / unit + offset, low, high) / scale
    return through_relu(grad_x, x, surrogate, rectify).to(x.dtype)


def through_relu(grad_x: Tensor, x: Tensor, surrogate: Surrogate, rectify: bool) -> Tensor:
    """The part of the surrogate's gradient that passes a ReLU in front of the staircase, if there is one."""
    return torch.where(x > 0, grad_x, 0.0) if rectify and surrogate not in STAND_FOR_RELU else grad_x


def learned_step_gradients(
    grad_codes: Tensor,
    x: Tensor,
    step: Tensor,
    qmin: int,
    qmax: int,
    gradient_scale: float,
    surrogate: Surrogate,
    rectify: bool,
) -> tuple[Tensor, Tensor]:
    """(g_x, g_s) of `functional.LearnedStep`, g_s of the shape of `step`."""
    s, wide = step.clamp_min(MIN_SCALE), widened(x)
    grad_codes = grad_codes.to(wide.dtype)
    v = wide / s
    grad_v = through_relu(surrogate(grad_codes, v, qmin, qmax), x, surrogate, rectify)
    codes = round_half_up(v).clamp_(qmin, qmax)
    per_element = grad_codes * codes - grad_v * v
    return (grad_v / s).to(x.dtype), per_element.sum_to_size(s.shape) / s * gradient_scale


def learned_clip_gradients(
    grad_codes: Tensor, x: Tensor, step: Tensor, qmax: int, surrogate: Surrogate, rectify: bool
) -> tuple[Tensor, Tensor]:
    """(g_x, g_alpha) of `functional.LearnedClip`, g_alpha of the shape of `step`, which has one element."""
    s = step.clamp_min(MIN_SCALE)
    grad_x = staircase_gradient(grad_codes, x, s, s, 0, 0, qmax, surrogate, rectify)
    beyond = torch.where(widened(x) / s >= qmax, grad_codes, 0.0)
    return grad_x, widened(beyond).sum().to(s.dtype).view_as(s) / s


def tanh_codes(x: Tensor, bits: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, t, m) with t = tanh(x), m = max|t|, codes = 2 round((2^b - 1) (t / 2m + 1/2)) - (2^b - 1) as `dtype`."""
    levels, tanh = 2**bits - 1, torch.tanh(widened(x))
    largest = tanh.abs().amax().clamp_min(MIN_SCALE)  # if all are nearly 0, gradients stay bounded
    codes = 2 * round_half_up(levels * (tanh / (2 * largest) + 0.5)) - levels
    return codes if dtype is None else codes.to(dtype), tanh, largest


def tanh_codes_gradient(grad_codes: Tensor, tanh: Tensor, largest: Tensor, bits: int, surrogate: Surrogate) -> Tensor:
    """g_x of `functional.TanhCodes`, in the dtype of t.

    With v = (2^b - 1) (t / 2m + 1/2) and the surrogate's derivative Q'(v), codes have
        d q / d t = Q'(v) (2^b - 1) / m          d q / d m = -Q'(v) (2^b - 1) t / m^2          d t / d x = 1 - t^2,
    and m is |t| at the largest element; if several are equal, they share its gradient.
    """
    levels = 2**bits - 1
    v = levels * (tanh / (2 * largest) + 0.5)
    grad_tanh = surrogate(grad_codes.to(tanh.dtype), v, 0, levels) * (levels / largest)
    at_largest = (tanh.abs() == largest).to(tanh.dtype)
    grad_largest = -(grad_tanh * tanh).sum() / largest
    grad_tanh = grad_tanh + grad_largest / at_largest.sum().clamp_min(1) * at_largest * tanh.sign()
    grad_x: Tensor = grad_tanh * (1 - tanh * tanh)
    return grad_x


def ternary_codes(x: Tensor, dims: list[int], keep: bool, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scale, step) of weights x whose scale is shared over `dims`; the thresholds lie at +-step / 2."""
    magnitude = x.abs()
    threshold = 0.7 * magnitude.mean(dims, keepdim=keep)
    kept = magnitude > threshold
    codes = torch.where(kept, x.sign(), 0.0).to(dtype or x.dtype)
    count = kept.to(x.dtype).sum(dims, keepdim=keep).clamp_min(1)
    scale = torch.where(kept, magnitude, 0.0).sum(dims, keepdim=keep) / count
    return codes, scale.clamp_min(MIN_SCALE), 2 * threshold.clamp_min(MIN_SCALE)


def formatted_as(grad: Tensor, x: Tensor) -> Tensor:
    """The same numbers in the memory format of x: elementwise work on two different formats is several times slower."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x, dtype=grad.dtype).copy_(grad)


# --- accumulators to real values ----------------------------------------------------------------------------------


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """b_q = clip(round(b / (s_x s_w)), +-(2^22 - 1)): bias (C,) on the grid of the accumulators, scale (C,) or (1,)."""
    return round_half_up(bias / scale).clamp_(-MAX_BIAS_CODE, MAX_BIAS_CODE)


def normalized_scale(
    joint: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float, on_grid: bool = True
) -> tuple[Tensor, Tensor]:
    """(S, b) of a batch normalization, so that it gives (acc + b) S: all of it lies in a scale and a bias per channel.

        S = s |gain| / sqrt(variance + eps), at least 2^-20        b = (shift - |gain| mean / sqrt(variance + eps)) / S

    All are (C,), joint s may be (1,); mean and variance are those of the real values acc s. on_grid: b is rounded and
    clipped like every bias, to +-(2^22 - 1). Training calls this with the statistics of a batch, evaluation and
    `lower` with the running ones, in float64.
    """
    ratio = gain.abs() / torch.sqrt(variance + eps)
    scale = (joint * ratio).clamp_min(MIN_SCALE)
    bias = shift - ratio * mean
    return scale, bias_codes(bias, scale) if on_grid else bias / scale


def rescale(
    acc: Tensor, bias: Tensor | None, scale: Tensor | None, on_grid: bool, trailing: int, pool: int
) -> tuple[Tensor, Tensor | None]:
    """(y, winners): max over windows of acc, plus bias, times scale. See `functional.Rescale`.

    winners: index 0 .. pool^2 - 1 of the element taken from each window, in the dtype of acc; of equal elements the
    first, as in `F.max_pool2d`; None without pooling.
    """
    winners = None
    if pool > 1:
        first, *others = _window_elements(acc, pool)
        winners = torch.zeros_like(first)
        for number, element in enumerate(others, start=1):
            winners = torch.where(element > first, float(number), winners)
            first = torch.maximum(first, element)
        acc = first
    channels = (-1, *(1,) * trailing)
    if scale is None:
        return (acc if bias is None else acc + bias.to(acc.dtype).view(channels)), winners
    if bias is not None:  # in float32 or wider, and so is the sum
        acc = acc + (bias_codes(bias, scale) if on_grid else bias / scale).view(channels)
    return acc * scale.view(channels), winners


def rescale_gradients(
    grad_y: Tensor,
    winners: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    on_grid: bool,
    trailing: int,
    pool: int,
    sides: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """(g_acc, g_bias). sides: height and width of acc; dtype: of acc."""
    channels = (-1, *(1,) * trailing)
    grad_acc = (grad_y if scale is None else grad_y * scale.view(channels)).to(dtype)
    if winners is not None:
        grad_acc = _into_windows(grad_acc, winners, pool, sides)
    if bias is None:
        return grad_acc, None
    grad_bias = widened(grad_y).sum_to_size(grad_y.shape[-len(channels)], *channels[1:]).flatten()
    if on_grid and scale is not None:
        grad_bias = torch.where((bias / scale).abs() <= MAX_BIAS_CODE, grad_bias, 0.0)
    return grad_acc, grad_bias.to(bias.dtype)


def _window_elements(acc: Tensor, pool: int) -> list[Tensor]:
    """The pool^2 elements of every window, each (..., H // pool, W // pool); a remainder at the border is dropped."""
    height, width = (side // pool * pool for side in acc.shape[-2:])
    return [acc[..., i:height:pool, j:width:pool] for i in range(pool) for j in range(pool)]


def _into_windows(grad: Tensor, winners: Tensor, pool: int, sides: tuple[int, ...]) -> Tensor:
    """(..., H', W') into (..., H, W): each gradient goes to the winner of its window, 0 to the other elements."""
    batched = grad if grad.dim() == 4 else grad.unsqueeze(0)
    taken = winners.view_as(grad).view_as(batched).permute(1, 2, 3, 0)[:, :, None, :, None]  # (C, H', 1, W', 1, N)
    spread = batched.permute(1, 2, 3, 0)[:, :, None, :, None]
    number = torch.arange(pool * pool, dtype=winners.dtype, device=winners.device).view(1, 1, pool, 1, pool, 1)
    windows = torch.where(taken == number, spread, 0.0)  # (C, H', pool, W', pool, N)
    dense = windows.flatten(3, 4).flatten(1, 2).permute(3, 0, 1, 2)
    height, width = sides
    if dense.shape[-2:] != (height, width):
        dense = F.pad(dense, (0, width - dense.shape[-1], 0, height - dense.shape[-2]))
    return dense if grad.dim() == 4 else dense.squeeze(0)
