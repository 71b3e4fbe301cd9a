"""A custom linear function, its backward derived, and how to know that it is right."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from qattrain.explain.lab import Explanation, Lab, Table
from qattrain.quant.functional import Linear, Round
from qattrain.report.drawing import COLORS

BATCH, INPUTS, OUTPUTS = 5, 4, 3
STEP = 1e-6  # of the finite differences


class ForgottenBatch(Linear):
    """`Linear` with a classic mistake: the gradient of the weight is averaged over the batch, not summed."""

    @staticmethod
    def backward(ctx: object, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_weight, grad_bias = Linear.backward(ctx, grad_y)
        assert grad_weight is not None
        return grad_x, grad_weight / BATCH, grad_bias


class Watched(Linear):
    """`Linear`, whose last gradients can be looked at."""

    returned: ClassVar[tuple[Tensor | None, ...]] = ()

    @staticmethod
    def backward(ctx: object, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        Watched.returned = Linear.backward(ctx, grad_y)
        return Watched.returned


def checks(function: object, *inputs: Tensor) -> bool:
    """Whether gradcheck accepts `function`: its backward against finite differences, in float64."""
    try:
        return bool(torch.autograd.gradcheck(function, inputs))  # type: ignore[arg-type]
    except GradcheckError:
        return False


def numerical(function: object, inputs: list[Tensor], index: int, arriving: Tensor) -> Tensor:
    """The gradient of sum(arriving * y) to inputs[index] by central differences."""
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
    """Linear against F.linear and gradcheck; the same check on a mistake, and on straight-through rounding."""
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
    asked = _gradients_asked_for(x, weight, bias)
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
            "that is G^T x; dL/db[o] = sum over i of G[i, o]. Shapes alone nearly force this: each gradient has the "
            "shape of its input.",
            f"The three differ from torch's own by at most {max(differences):.1g} and from finite differences by "
            f"{max(errors):.1e}. gradcheck does the latter for you, in float64: it accepts Linear, with and without "
            "bias, and refuses the version that takes the mean over the batch.",
            f"backward returns as many gradients as forward took arguments, None where none is needed: with x a "
            f"constant it computes {asked['gradients']} of {asked['arguments']} (ctx.needs_input_grad).",
            f"gradcheck refuses straight-through rounding, and must: its backward says {of_round.mean().item():g}, "
            f"the difference quotient {true_of_round.abs().max().item():g}. A surrogate is no derivative; test it "
            "against its own formula instead.",
        ],
        look=[
            "qattrain/quant/functional.py, class Linear (train on it with --set model.ops=explicit) and class Round",
            "tests/quant/test_functional.py: every function there is checked in this way",
        ],
        paper="PyTorch, 'Extending torch.autograd'; straight-through: Bengio, Leonard, Courville 2013",
        figure=_figure(mine, by_differences, (of_round, true_of_round)),
    )


def _gradients_asked_for(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, int]:
    """How many of Linear's three gradients are not None when x is a constant."""
    y = Watched.apply(x.detach(), weight, bias)  # type: ignore[no-untyped-call]
    torch.autograd.grad(y.sum(), (weight, bias))
    return {"arguments": 3, "gradients": sum(gradient is not None for gradient in Watched.returned)}


def _figure(mine: tuple[Tensor, ...], other: list[Tensor], of_round: tuple[Tensor, Tensor]) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    linear, rounding = figure.subplots(1, 2)
    for name, marker, color, a, b in zip(
        ("dL/dx", "dL/dw", "dL/db"), ("o", "s", "^"), COLORS, other, mine, strict=False
    ):
        linear.plot(a.flatten(), b.detach().flatten(), marker, ms=6, mfc="none", color=color, label=name)
    linear.set_title("Linear: on the line, it is the derivative", fontsize=10)
    true, said = of_round[1].flatten(), of_round[0].flatten()
    rounding.plot(true, said, "D", mfc="none", color=COLORS[3], label="Round, dy/dx")
    rounding.set_title("Straight-through rounding: far off it, on purpose", fontsize=10)
    rounding.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    for axes in (linear, rounding):
        ends = axes.get_xlim()
        axes.plot(ends, ends, color="black", ls="--", lw=0.8, label="equal")
        axes.set(xlabel="gradient by finite differences (1)", ylabel="gradient by backward (1)")
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize=9)
    figure.suptitle("Backward against finite differences")
    return figure
