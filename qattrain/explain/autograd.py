"""A custom linear function: its backward derived by hand, and how to check it."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from qattrain.explain.lab import Explanation, Lab, Table, panels
from qattrain.quant.functional import Linear, Round
from qattrain.report.drawing import COLORS

BATCH, INPUTS, OUTPUTS = 5, 4, 3
STEP = 1e-6  # of the finite differences


class ForgottenBatch(Linear):
    """`Linear` with a classic mistake: the weight gradient is averaged over the batch instead of summed."""

    @staticmethod
    def backward(ctx: object, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_weight, grad_bias = Linear.backward(ctx, grad_y)
        assert grad_weight is not None
        return grad_x, grad_weight / BATCH, grad_bias


class Watched(Linear):
    """`Linear` that keeps the gradients it returned last."""

    returned: ClassVar[tuple[Tensor | None, ...]] = ()

    @staticmethod
    def backward(ctx: object, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        Watched.returned = Linear.backward(ctx, grad_y)
        return Watched.returned


def checks(function: object, *inputs: Tensor) -> bool:
    """Whether gradcheck accepts `function`: it compares backward with finite differences, in float64."""
    try:
        return bool(torch.autograd.gradcheck(function, inputs))  # type: ignore[arg-type]
    except GradcheckError:
        return False


def numerical(function: object, inputs: list[Tensor], index: int, arriving: Tensor) -> Tensor:
    """The gradient of sum(arriving * y) with respect to inputs[index], by central differences."""
    result = torch.zeros_like(inputs[index])
    for position in range(result.numel()):
        sides = []
        for sign in (1, -1):
            moved = [t.detach().clone() for t in inputs]
            moved[index].view(-1)[position] += sign * STEP
            sides.append((function(*moved) * arriving).sum())  # type: ignore[operator]
        result.view(-1)[position] = (sides[0] - sides[1]) / (2 * STEP)
    return result


def explain(_lab: Lab) -> Explanation:
    """Linear against F.linear and gradcheck; then gradcheck on a mistake and on straight-through rounding."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((BATCH, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,))
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    arriving = torch.randn(BATCH, OUTPUTS, generator=generator, dtype=torch.float64)
    leaves = [x, weight, bias]
    y = Linear.apply(*leaves)  # type: ignore[no-untyped-call]
    mine = torch.autograd.grad(y, leaves, arriving)
    theirs = torch.autograd.grad(F.linear(*leaves), leaves, arriving)
    names = ("to x: G w", "to the weight: G^T x", "to the bias: sum of G")
    differences = [(a - b).abs().max().item() for a, b in zip(mine, theirs, strict=True)]
    by_differences = [numerical(Linear.apply, leaves, index, arriving) for index in range(3)]
    errors = [(a - b).abs().max().item() for a, b in zip(mine, by_differences, strict=True)]
    verdicts = {
        "Linear": checks(Linear.apply, *leaves),
        "Linear without bias": checks(Linear.apply, x, weight),
        "Linear, weight mean instead of sum": checks(ForgottenBatch.apply, *leaves),
        "Round, straight-through": checks(Round.apply, x),
    }
    (of_round,) = torch.autograd.grad(Round.apply(x).sum(), x)  # type: ignore[no-untyped-call]
    true_of_round = numerical(Round.apply, [x], 0, torch.ones_like(x))
    # With a constant x:
    Watched.apply(x.detach(), weight, bias).sum().backward(inputs=(weight, bias))  # type: ignore[no-untyped-call]
    asked = {"arguments": 3, "gradients": sum(gradient is not None for gradient in Watched.returned)}
    return Explanation(
        numbers={
            "largest_difference_to_torch": dict(zip(("x", "weight", "bias"), differences, strict=True)),
            "largest_difference_to_finite_differences": dict(zip(("x", "weight", "bias"), errors, strict=True)),
            "gradcheck": verdicts,
            "round_backward": of_round.mean().item(),
            "round_finite_difference": true_of_round.abs().max().item(),
            "computed_when_x_needs_none": asked,
        },
        tables=[
            Table(
                f"y = x w^T + b, x {BATCH}x{INPUTS}, w {OUTPUTS}x{INPUTS}, float64; largest difference",
                ["gradient", "to F.linear's", "to finite differences"],
                [[n, f"{d:.1e}" if d else "0", f"{e:.1e}"] for n, d, e in zip(names, differences, errors, strict=True)],
            ),
            Table("gradcheck", ["function", "accepts"], [[n, "yes" if ok else "no"] for n, ok in verdicts.items()]),
        ],
        answer=[
            "y[i, o] = sum over k of x[i, k] w[o, k] + b[o]. With G[i, o] = dL/dy[i, o], the chain rule gives "
            "dL/dx[i, k] = sum over o of G[i, o] w[o, k], that is G w; dL/dw[o, k] = sum over i of G[i, o] x[i, k], "
            "that is G^T x; dL/db[o] = sum over i of G[i, o]. The shapes alone almost determine this: each gradient "
            "has the shape of its input.",
            f"The three gradients differ from torch's by at most {max(differences):.1g} and from finite differences by "
            f"at most {max(errors):.1e}. gradcheck does the second comparison for you, in float64: it accepts Linear, "
            "with and without bias, and rejects the version that averages over the batch.",
            "backward returns one gradient for each argument of forward, or None where none is needed: with a constant "
            f"x it computes {asked['gradients']} of {asked['arguments']} (ctx.needs_input_grad).",
            f"gradcheck rejects straight-through rounding, as it must: backward returns {of_round.mean().item():g}, "
            f"but the difference quotient is {true_of_round.abs().max().item():g}. A surrogate is not a derivative; "
            "test it against its own formula instead.",
        ],
        look=[
            "qattrain.quant.functional.Linear (train with it: --set model.ops=explicit) and "
            "qattrain.quant.functional.Round",
            "tests/quant/test_functional.py: every function is checked in the same way",
        ],
        paper="PyTorch, 'Extending torch.autograd'; straight-through: Bengio, Leonard, Courville 2013",
        figure=_figure(mine, by_differences, (of_round, true_of_round)),
    )


def _figure(mine: tuple[Tensor, ...], other: list[Tensor], of_round: tuple[Tensor, Tensor]) -> Figure:
    figure, [[linear, rounding]] = panels("Backward against finite differences", size=(10, 4.6))
    labels = ("dL/dx", "dL/dw", "dL/db")
    for name, marker, color, a, b in zip(labels, "os^", COLORS, other, mine, strict=False):
        linear.plot(a.flatten(), b.detach().flatten(), marker, ms=6, mfc="none", color=color, label=name)
    linear.set_title("Linear: on the line, so it is the derivative", fontsize=10)
    true, said = of_round[1].flatten(), of_round[0].flatten()
    rounding.plot(true, said, "D", mfc="none", color=COLORS[3], label="Round, dy/dx")
    rounding.set_title("Straight-through rounding: far off it, on purpose", fontsize=10)
    rounding.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    for axes in (linear, rounding):
        ends = axes.get_xlim()
        axes.plot(ends, ends, color="black", ls="--", lw=0.8, label="equal")
        axes.set(xlabel="gradient by finite differences (1)", ylabel="gradient by backward (1)")
        axes.legend(loc="upper left", fontsize=9)
    return figure
