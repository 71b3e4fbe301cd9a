"""The kernels of `kernels.py` compiled from `native.c`, for the cases that training on a CPU needs.

Each function here takes the arguments of the kernel of the same name and returns the same up to float rounding, or None
for a case it does not cover (float64, other devices, the user's own surrogate, tensors with gaps); `run` then calls
that kernel. The compiler is optional; no mathematics exists only here.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qattrain.files.compiler import shared_library
from qattrain.quant import kernels
from qattrain.quant.surrogates import Surrogate, clipped, identity

_compiled: ContextVar[bool] = ContextVar("compiled", default=False)


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    """Within it, forward passes and their backward passes run compiled (or not)."""
    token = _compiled.set(on)
    try:
        yield
    finally:
        _compiled.reset(token)


def is_compiled() -> bool:
    """Whether kernels run compiled. A forward keeps the answer for its backward, which may run in another thread."""
    return _compiled.get()


def run(compile_it: bool, kernel: Callable[..., Any], *args: Any) -> Any:
    """kernel(*args), compiled if asked for and covered. Raises ConfigError if no compiler works."""
    result = NATIVE[kernel](*args) if compile_it else None
    return kernel(*args) if result is None else result


def prepare() -> None:
    """Compile what is not in the cache yet. Raises ConfigError if that fails."""
    _library(torch.float32), _library(torch.bfloat16)


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return shared_library("qattrain.quant", "native.c", ("-DBF16",) if dtype == torch.bfloat16 else ())


def _grid_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int, dtype: torch.dtype | None
) -> Tensor | None:
    layout, dtype = _rows(x, scale), dtype or torch.float32
    if layout is None or dtype not in (torch.float32, torch.bfloat16):
        return None
    codes = torch.empty_like(x, dtype=dtype)
    offset = float(zero_point)
    _call(dtype, "grid_codes", x, *layout[:2], scale, layout[2], offset, float(qmin), float(qmax), codes)
    return codes


def _learned_step_gradients(
    grad_codes: Tensor,
    x: Tensor,
    step: Tensor,
    qmin: int,
    qmax: int,
    gradient_scale: float,
    surrogate: Surrogate,
    rectify: bool,
) -> tuple[Tensor, Tensor] | None:
    layout = _gradient_rows(grad_codes, x, step, surrogate)
    if layout is None:
        return None
    grad_x, grad_step, sums = torch.empty_like(x), torch.empty_like(step), torch.empty(layout[0])
    args = (grad_codes, x, *layout[:2], step, layout[2], float(qmin), float(qmax), float(gradient_scale))
    flags = int(surrogate is clipped), int(rectify)
    _call(grad_codes.dtype, "learned_step_gradients", *args, *flags, grad_x, grad_step, sums)
    return grad_x, grad_step


def _learned_clip_gradients(
    grad_codes: Tensor, x: Tensor, step: Tensor, qmax: int, surrogate: Surrogate, rectify: bool
) -> tuple[Tensor, Tensor] | None:
    layout = _gradient_rows(grad_codes, x, step, surrogate)
    if layout is None:
        return None
    grad_x, grad_alpha, sums = torch.empty_like(x), torch.empty_like(step), torch.empty(layout[0])
    args = (grad_codes, x, *layout[:2], step, float(qmax), int(surrogate is clipped), int(rectify))
    _call(grad_codes.dtype, "learned_clip_gradients", *args, grad_x, grad_alpha, sums)
    return grad_x, grad_alpha


def _staircase_gradient(
    grad_codes: Tensor,
    x: Tensor,
    scale: Tensor,
    unit: Tensor | float,
    offset: Tensor | float,
    low: Tensor | float,
    high: Tensor | float,
    surrogate: Surrogate,
    rectify: bool,
) -> Tensor | None:
    layout = _gradient_rows(grad_codes, x, scale, surrogate)
    if layout is None:
        return None
    units = torch.as_tensor(unit, dtype=torch.float32).expand_as(scale).contiguous()
    ends = [torch.as_tensor(end, dtype=torch.float32).expand_as(scale).flatten() for end in (low, high)]
    bounds = torch.stack(ends, 1)
    grad_x = torch.empty_like(x)
    args = (grad_codes, x, *layout[:2], scale, units, float(offset), bounds, layout[2])
    _call(grad_codes.dtype, "staircase_gradient", *args, int(surrogate is clipped), int(rectify), grad_x)
    return grad_x


def _rescale(
    acc: Tensor, bias: Tensor | None, scale: Tensor | None, on_grid: bool, trailing: int, pool: int
) -> tuple[Tensor, Tensor | None] | None:
    layout = _channels_last(acc, trailing, pool)
    if layout is None or not (_is_float32(bias) and _is_float32(scale)):
        return None
    images, height, width, channels = layout
    columns, shared = width // pool, int(scale is not None and scale.numel() == 1)
    y_dtype = acc.dtype if scale is None else torch.float32
    y = _images(images, height // pool, columns, channels, y_dtype, trailing)
    winners = _images(images, height // pool, columns, channels, torch.uint8, trailing) if pool > 1 else None
    room = torch.empty((torch.get_num_threads() + 2, columns, channels))
    _call(acc.dtype, "rescale", acc, *layout, pool, bias, scale, shared, int(on_grid), y, winners, room)
    return y, winners


def _rescale_gradients(
    grad_y: Tensor,
    winners: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    on_grid: bool,
    trailing: int,
    pool: int,
    sides: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None] | None:
    expected = dtype if scale is None else torch.float32
    covered = _channels_last(grad_y, trailing, 1) is not None and dtype in (torch.float32, torch.bfloat16)
    covered = covered and grad_y.dtype == expected and _is_float32(bias) and _is_float32(scale)
    if not covered or (winners is not None and winners.dtype != torch.uint8):
        return None
    images, channels = grad_y.shape[:2]
    height, width = sides if trailing else (1, 1)
    threads, columns, shared = torch.get_num_threads(), width // pool, int(scale is not None and scale.numel() == 1)
    grad_acc = _images(images, height, width, channels, dtype, trailing)
    grad_bias = None if bias is None else torch.empty_like(bias)
    lines, room = torch.empty((threads, columns, channels), dtype=dtype), torch.zeros((threads + 1, columns, channels))
    args = (grad_y, winners, images, height, width, channels, pool, bias, scale, shared, int(on_grid))
    _call(dtype, "rescale_gradients", *args, grad_acc, grad_bias, lines, room)
    return grad_acc, grad_bias


NATIVE: dict[Callable[..., Any], Callable[..., Any]] = {
    kernels.grid_codes: _grid_codes,
    kernels.learned_step_gradients: _learned_step_gradients,
    kernels.learned_clip_gradients: _learned_clip_gradients,
    kernels.staircase_gradient: _staircase_gradient,
    kernels.rescale: _rescale,
    kernels.rescale_gradients: _rescale_gradients,
}


def _call(dtype: torch.dtype, name: str, *args: Tensor | float | None) -> None:
    """The C function of that name for values of `dtype`: tensors as addresses, ints as int64, floats as float."""
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in args]
    function = getattr(_library(dtype), name)
    if function.argtypes is None:
        kinds = {float: ctypes.c_float, int: ctypes.c_int64}
        function.argtypes = [*(kinds.get(type(value), ctypes.c_void_p) for value in args), ctypes.c_int64]
    function(*values, torch.get_num_threads())


def _rows(x: Tensor, scale: Tensor) -> tuple[int, int, int] | None:
    """(rows, columns, whether each row has its own scale) of float32 x without gaps, first index outermost."""
    if x.dtype != torch.float32 or scale.dtype != torch.float32 or x.is_cuda or x.dim() == 0 or x.numel() == 0:
        return None
    rows = len(x)
    columns = x.numel() // rows
    per_row = scale.numel() > 1
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    if not dense or (per_row and not (scale.numel() == rows == scale.shape[0] and scale.is_contiguous())):
        return None
    return rows, columns, int(per_row)


def _gradient_rows(grad: Tensor, x: Tensor, scale: Tensor, surrogate: Surrogate) -> tuple[int, int, int] | None:
    """As `_rows`; None also if a gradient of that format, or that surrogate, is not covered."""
    same_format = grad.stride() == x.stride() and grad.dtype in (torch.float32, torch.bfloat16)
    return _rows(x, scale) if same_format and surrogate in (clipped, identity) else None


def _channels_last(x: Tensor, trailing: int, pool: int) -> tuple[int, int, int, int] | None:
    """(images, height, width, channels) of x, channels innermost and no gaps; (N, C) is N images of one pixel."""
    if x.dtype not in (torch.float32, torch.bfloat16) or x.is_cuda or x.numel() == 0 or pool not in (1, 2):
        return None
    if trailing == 0 and x.dim() == 2 and x.is_contiguous():
        return len(x), 1, 1, x.shape[1]
    if trailing != 2 or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    if x.shape[2] % pool or x.shape[3] % pool:
        return None
    return len(x), x.shape[2], x.shape[3], x.shape[1]


def _is_float32(values: Tensor | None) -> bool:
    return values is None or (values.dtype == torch.float32 and values.is_contiguous())


def _images(images: int, height: int, width: int, channels: int, dtype: torch.dtype, trailing: int) -> Tensor:
    if trailing == 0:
        return torch.empty((images, channels), dtype=dtype)
    return torch.empty((images, channels, height, width), dtype=dtype, memory_format=torch.channels_last)
