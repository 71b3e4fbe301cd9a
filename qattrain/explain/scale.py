"""The hand-made layer of many first attempts: weights times 2^n, rounded, and never divided by 2^n again.

This is the only file in which a layer is written the wrong way, on purpose, next to the right one.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from qattrain.data import batch_slices, epoch_order
from qattrain.explain.lab import SEED, Explanation, Lab, Table, panels
from qattrain.quant import round_half_up
from qattrain.quant.functional import Round
from qattrain.report.console import counted, percent
from qattrain.report.drawing import COLORS, DASHES, MARKERS

N = 4  # weights times 2^N
EPOCHS, BATCH = 6, 32
RATES = {"SGD": 0.05, "Adam": 1e-3}
DIVIDED, FACTOR, NO_FACTOR = "divided", "undivided, 2^n kept", "undivided, 2^n dropped"
FORMS = (DIVIDED, FACTOR, NO_FACTOR)
TRAININGS = (("SGD", False), ("Adam", False), ("SGD", True), ("Adam", True))  # optimizer, with batch normalization


class Scaled(torch.autograd.Function):
    """round(2^n w), not divided by 2^n; backward: the gradient that arrives, times 2^n if `keep`."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, keep: bool) -> Tensor:
        ctx.factor = 2.0**N if keep else 1.0
        return round_half_up(w * 2.0**N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


class HandMadeConv2d(nn.Conv2d):
    """A convolution with rounded weights in one of the three FORMS."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, form: str) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == DIVIDED:
            weight = Round.apply(self.weight * 2.0**N) / 2.0**N  # type: ignore[no-untyped-call]
        else:
            weight = Scaled.apply(self.weight, self.form == FACTOR)  # type: ignore[no-untyped-call]
        return F.conv2d(x, weight, self.bias)


@dataclass(frozen=True)
class Course:
    """One training: its setting, and after every epoch the loss, mean |w| of the convolutions, and test accuracy.

    A loss or a weight size that is not finite is None. first_gradient, first_logit: at the first step, the norm of the
    second convolution's gradient and the mean |logit|. classes_answered: how many different classes the trained network
    predicts over all test images.
    """

    form: str
    optimizer: str
    batch_norm: bool
    train_loss: list[float | None]
    weight_size: list[float | None]
    test_accuracy: list[float]
    first_gradient: float
    first_logit: float
    classes_answered: int


def network(form: str, batch_norm: bool, classes: int) -> nn.Sequential:
    """conv, pool, ReLU, conv, pool, ReLU, fully connected, with torch's initialization."""

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    first, second = HandMadeConv2d(1, 8, 5, form), HandMadeConv2d(8, 16, 5, form)
    pool = [nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(first, norm(8), *pool, second, norm(16), *pool, nn.Flatten(), nn.Linear(256, classes))


def train(lab: Lab, form: str, optimizer: str, batch_norm: bool) -> Course:
    """Train one network with plain SGD or with Adam; everything but the setting is the same."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    data, test = lab.dataset.train, lab.dataset.test
    model = network(form, batch_norm, lab.dataset.classes)
    convolutions = [module for module in model if isinstance(module, HandMadeConv2d)]
    stepper = torch.optim.SGD if optimizer == "SGD" else torch.optim.Adam
    steps = stepper(model.parameters(), RATES[optimizer])
    course = Course(form, optimizer, batch_norm, [], [], [], 0.0, 0.0, 0)
    images, firsts = data.images / 255, list[float]()
    for epoch in range(EPOCHS):
        model.train()
        order, losses = epoch_order(len(data.labels), SEED, epoch), 0.0
        for batch in batch_slices(len(order), BATCH):
            chosen = order[batch]
            logits = model(images[chosen])
            loss = F.cross_entropy(logits, data.labels[chosen])
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not firsts:
                grad = convolutions[1].weight.grad
                assert grad is not None
                firsts += [grad.norm().item(), logits.abs().mean().item()]
            steps.step()
            losses += loss.item() * len(chosen)
        weights = torch.cat([c.weight.detach().flatten() for c in convolutions])
        course.train_loss.append(_finite(losses / len(order)))
        course.weight_size.append(_finite(weights.abs().mean().item()))
        model.eval()
        with torch.no_grad():
            answers = model(test.images / 255).argmax(1)
        course.test_accuracy.append((answers == test.labels).double().mean().item())
    return replace(course, first_gradient=firsts[0], first_logit=firsts[1], classes_answered=len(set(answers.tolist())))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"


def explain(lab: Lab) -> Explanation:
    """Twelve trainings: three forms, two optimizers, with and without batch normalization."""
    courses = [train(lab, form, *training) for training in TRAININGS for form in FORMS]
    by = {(c.form, c.optimizer, c.batch_norm): c for c in courses}
    right, kept, dropped = (by[form, "SGD", False] for form in FORMS)
    masked = [by[FACTOR, o, b].test_accuracy[-1] for o, b in (("SGD", True), ("Adam", False), ("Adam", True))]
    rows = [
        [
            c.form.removeprefix("undivided, "),
            c.optimizer + (" + norm" if c.batch_norm else ""),
            f"{_shown(c.train_loss[0])} -> {_shown(c.train_loss[-1])}",
            _shown(c.weight_size[-1]),
            f"{c.first_gradient:.3g}",
            f"{c.first_logit:.3g}",
        ]
        for c in courses
    ]
    accuracies = [[form, *(percent(by[form, *training].test_accuracy[-1]) for training in TRAININGS)] for form in FORMS]
    return Explanation(
        numbers={"n": N, "epochs": EPOCHS, "data": lab.data_line, "courses": [asdict(c) for c in courses]},
        tables=[
            Table(
                f"{EPOCHS} epochs, batch {BATCH}, SGD {RATES['SGD']:g} without momentum, Adam {RATES['Adam']:g}; "
                f"{lab.data_line}; test accuracy",
                ["form", *(optimizer + (" + norm" if norm else "") for optimizer, norm in TRAININGS)],
                accuracies,
            ),
            Table(
                "loss of the first and the last epoch, mean |w| at the end; at the first step the gradient norm of the "
                "second convolution and the mean |logit|",
                ["form", "training", "training loss", "mean |w|", "|grad|", "|logit|"],
                rows,
                ("training",),
            ),
        ],
        answer=[
            "The bug is the missing division. w_hat = 2^-n round(2^n w) is a weight on a grid; round(2^n w) is "
            f"{2**N} times too large, in each of two layers: at the first step the mean |logit| is "
            f"{kept.first_logit:.3g} instead of {right.first_logit:.3g}, and the norm of the second convolution's "
            f"gradient is {kept.first_gradient:.3g} instead of {right.first_gradient:.3g}.",
            f"With plain SGD and no batch norm, accuracy ends at {percent(kept.test_accuracy[-1])}, compared with "
            f"{percent(right.test_accuracy[-1])} with the division. Over all {len(lab.dataset.test.labels):,} test "
            f"images the network gives {counted(kept.classes_answered, 'different answer')}; with the division it "
            f"gives {right.classes_answered}. In each layer the step is 2^n times too long and its effect 2^n times "
            f"too large, a factor of 4^n = {4**N} in all. That is also why the weights grow: mean |w| is "
            f"{_shown(kept.weight_size[-1])} instead of {_shown(right.weight_size[-1])}, after a few huge first steps.",
            "Can the factor 2^n of the gradient be dropped? With the division it cancels (2^-n * 1 * 2^n = 1), so "
            "there is nothing to drop. Without the division the true gradient contains it; dropping it biases the "
            f"gradient but makes the step 2^n times too large instead of 4^n: {percent(dropped.test_accuracy[-1])}.",
            "Batch norm divides out any common factor, and Adam divides each gradient by its own magnitude: the same "
            f"faulty layer reaches {percent(masked[0])} (SGD + batch norm), {percent(masked[1])} (Adam) and "
            f"{percent(masked[2])} (both). They mask the bug but do not fix it: the layer's output is still {2**N} "
            "times too large for anyone who exports it.",
        ],
        look=[
            "your layer: return round(w * 2**n) / 2**n, with the straight-through gradient and no factor",
            "the docstring of qattrain.quant.functional: 'Where the factor 2^n goes'",
            "qattrain.quant.quantizers.Pow2Quantizer: the right layer's quantizer (qattrain train --quantizer pow2 "
            "--set quant.n=4)",
            "qattrain.explain.scale.HandMadeConv2d: all three forms side by side",
        ],
        paper="Bengio, Leonard, Courville 2013 (straight-through); Lin, Talathi, Annapureddy 2016 (fixed point)",
        figure=_figure(by, lab.data_line, N),
    )


def _figure(by: dict[tuple[str, str, bool], Course], data: str, n: int) -> Figure:
    last = {key: 100 * course.test_accuracy[-1] for key, course in by.items()}
    masked = [last[FACTOR, optimizer, norm] for optimizer, norm in TRAININGS if (optimizer, norm) != ("SGD", False)]
    title = (
        f"Without the division by 2^{n}, SGD ends at {last[FACTOR, 'SGD', False]:.1f} % instead of "
        f"{last[DIVIDED, 'SGD', False]:.1f} %;\nwith Adam or batch norm at {min(masked):.1f} to {max(masked):.1f} %"
    )
    figure, [[over, ends]] = panels(title, size=(7.6, 4), width_ratios=[1, 1.1])
    names = [optimizer + (" + norm" if norm else "") for optimizer, norm in TRAININGS]
    for index, form in enumerate(FORMS):
        color, marker, line = COLORS[2 + index], MARKERS[2 + index], DASHES[index]
        percents = [100 * accuracy for accuracy in by[form, "SGD", False].test_accuracy]
        over.plot(range(1, EPOCHS + 1), percents, ls=line, marker=marker, ms=5, color=color)
        rows = [place + 0.2 * (index - 1) for place in range(len(TRAININGS))]
        ends.plot([last[form, *each] for each in TRAININGS], rows, marker, ms=6, color=color, label=form)
    over.set(title="SGD, no batch norm", xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    over.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends.set_yticks(range(len(names)), names)
    ends.set(title=f"after {counted(EPOCHS, 'epoch')}", xlabel="test accuracy (%)", xlim=(0, 103))
    ends.invert_yaxis()
    figure.legend(*ends.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, title=data)
    return figure
