"""Convolution by hand on a 4x4 image, small enough to check with pencil and paper."""

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from qattrain.explain.lab import Explanation, Lab, Table
from qattrain.quant.functional import conv2d

IMAGE = [[1, 2, 0, 1], [0, 1, 3, 2], [2, 0, 1, 1], [1, 2, 1, 0]]
KERNEL = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
BIAS = 1.0
ARRIVING = [[1, 0], [0, 2]]  # gradient of the loss with respect to the four outputs
CASES = {  # shape of x, shape of w, stride, padding
    "stride 2, padding 1": ((2, 3, 9, 8), (4, 3, 3, 3), 2, 1),
    "padding 0": ((2, 3, 8, 8), (4, 3, 5, 5), 1, 0),
    "oblong kernel, padding 2": ((2, 2, 7, 10), (3, 2, 2, 5), 1, 2),
}
PARTS = ("output", "to the input", "to the weight", "to the bias")


def compare(x: Tensor, weight: Tensor, bias: Tensor, arriving: Tensor | None, stride: int, padding: int) -> list[float]:
    """Largest difference between `functional.conv2d` and `F.conv2d`, for the output and each of three gradients."""
    results = []
    for by_hand in (True, False):
        a, b, c = (t.clone().requires_grad_() for t in (x, weight, bias))
        y = conv2d(a, b, c, (stride, stride), (padding, padding)) if by_hand else F.conv2d(a, b, c, stride, padding)
        grads = torch.autograd.grad(y, (a, b, c), torch.ones_like(y) if arriving is None else arriving)
        results.append([y.detach(), *grads])
    return [(mine - theirs).abs().max().item() for mine, theirs in zip(*results, strict=True)]


def explain(_lab: Lab) -> Explanation:
    """The 4x4 example with every intermediate result, then random cases against torch."""
    x = torch.tensor(IMAGE, dtype=torch.float32).reshape(1, 1, 4, 4)
    weight = torch.tensor(KERNEL, dtype=torch.float32).reshape(1, 1, 3, 3)
    bias, arriving = torch.tensor([BIAS]), torch.tensor(ARRIVING, dtype=torch.float32).reshape(1, 1, 2, 2)
    windows = x.unfold(2, 3, 1).unfold(3, 3, 1)  # (1, 1, 2, 2, 3, 3), views without a copy
    a, b, c = (t.clone().requires_grad_() for t in (x, weight, bias))
    y = conv2d(a, b, c)
    to_x, to_weight, to_bias = torch.autograd.grad(y, (a, b, c), arriving)
    generator = torch.Generator().manual_seed(0)
    found = {"4x4 above": compare(x, weight, bias, arriving, 1, 0)}
    for name, (x_shape, w_shape, stride, padding) in CASES.items():
        r_x, r_w, r_b = (torch.randn(shape, generator=generator) for shape in (x_shape, w_shape, w_shape[:1]))
        found[name] = compare(r_x, r_w, r_b, None, stride, padding)
    first = windows[0, 0, 0, 0]
    pairs = zip(first.flatten().tolist(), weight.flatten().tolist(), strict=True)
    products = " + ".join(f"({pixel:g})({w:g})" for pixel, w in pairs if w)
    return Explanation(
        numbers={
            "output": y.detach()[0, 0].tolist(),
            "gradients": {"input": to_x[0, 0].tolist(), "weight": to_weight[0, 0].tolist(), "bias": to_bias.item()},
            "largest_difference_to_torch": {name: dict(zip(PARTS, d, strict=True)) for name, d in found.items()},
        },
        tables=[
            Table(
                "largest difference between our Conv2d and F.conv2d (float32)",
                ["case", "output", "dL/dx", "dL/dw", "dL/db"],
                [[name, *(f"{value:.1e}" if value else "0" for value in values)] for name, values in found.items()],
            )
        ],
        answer=[
            "unfold along height, then along width, gives every 3x3 window as a view: (1, 1, 4, 4) becomes "
            f"{tuple(windows.shape)}. einsum('nchwkj,dckj->ndhw') multiplies each window by the kernel and sums. "
            f"The first output: {products} + {BIAS:g} (bias) = {y[0, 0, 0, 0].item():g}.",
            "In the backward pass, G is the gradient that arrives. The bias gets the sum of G "
            f"(= {to_bias.item():g}). The weight gets the sum of the same windows, weighted by G. The input gets G "
            "sent back through each weight to the pixels it saw: the sum of G shifted by (k, j), times w[k, j].",
            "On the 4x4 image the output and all gradients equal torch's exactly; on the random cases they differ by "
            f"at most {max(max(values) for values in found.values()):.1e}, because float32 sums run in another order. "
            "With padding p, the gradient of the padded input is cropped with narrow(p, H), never with [p:-p], which "
            "is empty at p = 0.",
        ],
        look=["qattrain.quant.functional.Conv2d (train with it: --set model.ops=explicit)"],
        paper="Dumoulin, Visin 2016, 'A guide to convolution arithmetic for deep learning'",
        figure=_figure(x, weight, windows, y.detach(), arriving, (to_x, to_weight)),
    )


def _figure(
    x: Tensor, weight: Tensor, windows: Tensor, y: Tensor, arriving: Tensor, gradients: tuple[Tensor, Tensor]
) -> Figure:
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    above.suptitle("Forward: every window times the kernel, summed, plus the bias", fontsize=11)
    below.suptitle("Backward: the gradient that arrives, and two of the three that leave", fontsize=11)
    forward = above.subplots(1, 7, width_ratios=[4, 3, 3, 3, 3, 3, 2])
    seen = [(f"window {i},{j}", windows[0, 0, i, j]) for i in range(2) for j in range(2)]
    matrices = [("input x, 4x4", x[0, 0]), *seen, ("kernel w, 3x3", weight[0, 0]), ("output y, 2x2", y[0, 0])]
    matrices += [("G = dL/dy", arriving[0, 0]), ("dL/dx: G sent back through w", gradients[0][0, 0])]
    matrices += [("dL/dw: windows weighted by G", gradients[1][0, 0])]
    backward = below.subplots(1, 3, width_ratios=[2, 4, 3])
    for axes, (title, values) in zip([*forward, *backward], matrices, strict=True):
        _numbers(axes, title, values)
    figure.suptitle(f"A convolution on a 4x4 image, bias {BIAS:g} (numbers without units; row i, column j)")
    return figure


def _numbers(axes: Axes, title: str, values: Tensor) -> None:
    bound = max(values.abs().max().item(), 1.0)
    limit = 2.2 * bound  # pale, so that the numbers are legible
    axes.imshow(values.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:g}", ha="center", va="center", fontsize=9)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    axes.tick_params(labelsize=7)
