"""The straight-through estimator: the gradient of a staircase, and what replaces it."""

from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from qattrain.config import QuantConfig
from qattrain.explain.lab import MODEL, Explanation, Lab, Table, panels
from qattrain.layers import QuantConv2d
from qattrain.quant import SURROGATES, round_half_up
from qattrain.quant.functional import Round
from qattrain.report.console import percent
from qattrain.report.drawing import BACKGROUND, COLORS, DASHES

LOW, HIGH = -4, 3  # the codes of 3 bits
SHOWN = {"below": -5.2, "code": 1.0, "half": 1.5, "above": 4.2}
BARE = "bare round"
EPOCHS, FRACTION_BITS = 3, 4


def explain(lab: Lab) -> Explanation:
    """Gradients in numbers, then trainings that differ only in the surrogate."""
    gradients = measured_gradients()
    at = surrogate_gradients()
    trained = trainings(lab)
    forms = gradients["largest_difference_of_the_two_forms"]
    bare, identity = trained[BARE], trained["identity"]
    return Explanation(
        numbers={"gradients": gradients, "surrogates": at, "training": trained},
        tables=[
            Table(
                f"gradient that leaves for a gradient of 1 that arrives (3 bits, codes {LOW} to {HIGH}); mean within "
                "the range",
                ["backward", *(f"{place} ({v:g})" for place, v in SHOWN.items()), "mean"],
                [[name, *(f"{value:.3f}" for value in found.values())] for name, found in at.items()],
            ),
            Table(
                f"{EPOCHS} epochs, both convolutions round(2^{FRACTION_BITS} w) / 2^{FRACTION_BITS}; {lab.data_line}",
                ["backward", "test accuracy", "convolution codes that moved"],
                [[name, *map(percent, found.values())] for name, found in trained.items()],
            ),
        ],
        answer=[
            f"Autograd's gradient of round is 0 everywhere: on {gradients['points']:,} points the largest is "
            f"{gradients['bare_largest']:g}. A weight that is rounded like this never learns.",
            "The straight-through estimator is one line: in the backward pass, return the gradient as if y = x. It can "
            "be written as a custom Function, or as x + (round(x) - x).detach(): the gradients of the two differ by "
            f"{forms:g}, their outputs by {gradients['largest_forward_difference']:g}. They are the same thing, but "
            "the Function has a separate backward, which you can change.",
            f"With a bare round, training still works (here {percent(bare['test_accuracy'])}, compared with "
            f"{percent(identity['test_accuracy'])} with the straight-through gradient): the biases, and the layers "
            f"after the convolutions, which are float here, still learn. But {percent(bare['codes_moved'])} of the "
            f"convolutions' codes changed, compared with {percent(identity['codes_moved'])}: they stayed as random as "
            "they were initialized. A falling loss does not prove that the rounded layers learn; check whether their "
            "codes change.",
            "Outside the range the staircase stays flat. identity keeps pushing such weights although nothing changes; "
            "clipped and tanh stop them there (the clip zones in the picture); polynomial fades out within half a step "
            "on either side of each end of the range.",
        ],
        look=[
            "qattrain.quant.functional.Round.backward: the line with SURROGATES[...] is the surrogate gradient",
            "qattrain.quant.surrogates.SURROGATES: write your own function, add a line to this table, and choose it "
            "with --set quant.surrogate=NAME",
        ],
        paper="Bengio, Leonard, Courville 2013, section 4; clipping: Hubara et al. 2016; tanh: Gong et al. 2019; "
        "polynomial: Liu et al. 2018",
        figure=_figure(at),
    )


def measured_gradients() -> dict[str, float]:
    """Gradients of bare round, of the Function and of the detach form, for the same random gradient that arrives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(10_001).uniform_(-6, 5, generator=generator).requires_grad_()
    arriving = torch.randn(x.shape, generator=generator)

    def through(y: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, arriving)[0]

    custom, detached = Round.apply(x), x + (round_half_up(x) - x).detach()  # type: ignore[no-untyped-call]
    of_custom, of_detached = through(custom), through(detached)
    return {
        "points": len(x),
        "bare_largest": through(torch.round(x)).abs().max().item(),
        "custom_largest_difference_to_what_arrived": (of_custom - arriving).abs().max().item(),
        "largest_difference_of_the_two_forms": (of_custom - of_detached).abs().max().item(),
        "largest_forward_difference": (custom - detached).abs().max().item(),
    }


def surrogate_gradients() -> dict[str, dict[str, float]]:
    """Gradients of bare round and of `Round` with every surrogate: at the points SHOWN, and the mean in the range."""
    places = torch.tensor(list(SHOWN.values()), dtype=torch.float64)
    inside = torch.linspace(LOW, HIGH, 7001, dtype=torch.float64)[:-1]
    found = {}
    for name in [BARE, *SURROGATES]:
        values = _gradient(name, torch.cat([places, inside]))
        found[name] = dict(zip(SHOWN, values[: len(places)].tolist(), strict=True))
        found[name]["mean inside"] = values[len(places) :].mean().item()
    return found


def _gradient(name: str, v: Tensor) -> Tensor:
    v = v.clone().requires_grad_()
    y = torch.round(v) if name == BARE else Round.apply(v, name, LOW, HIGH)  # type: ignore[no-untyped-call]
    return torch.autograd.grad(y.sum(), v)[0]


def trainings(lab: Lab) -> dict[str, dict[str, float]]:
    """Both convolutions as round(2^4 w) / 2^4, everything else float, trained with a bare round and each surrogate.

    There is no weight decay, which would move weights that no gradient reaches.
    """
    others = dict.fromkeys(["fc1", "fc2", *MODEL.chain.activation_layers], 32)
    names, found = [BARE, *SURROGATES], {}
    SURROGATES[BARE] = lambda grad, _v, _low, _high: torch.zeros_like(grad)  # what autograd makes of a bare round
    try:
        for name in names:
            quant = QuantConfig(quantizer="pow2", bits=4, n=FRACTION_BITS, layer_bits=others, surrogate=name)
            codes: list[Tensor] = []  # after every step
            model = lab.train(quant, EPOCHS, partial(_keep_codes, codes), settings={"weight_decay": 0.0})
            moved = (codes[-1] != codes[0]).double().mean().item()
            found[name] = {"test_accuracy": lab.accuracy(model), "codes_moved": moved}
    finally:
        del SURROGATES[BARE]
    return found


@torch.no_grad()
def _keep_codes(kept: list[Tensor], model: nn.Module, _epoch: int) -> None:
    convolutions = [layer for layer in model.children() if isinstance(layer, QuantConv2d)]
    kept.append(torch.cat([layer.quantized_weight().codes.flatten() for layer in convolutions]))


def _figure(gradients: dict[str, dict[str, float]]) -> Figure:
    passed = [found["mean inside"] for name, found in gradients.items() if name != BARE]
    title = (
        f"Rounding has a gradient of {gradients[BARE]['mean inside']:g}; surrogates pass {min(passed):.2f} to "
        f"{max(passed):.2f} on average (3 bits)"
    )
    figure, [[forward], [backward]] = panels(title, 2, 1, size=(6.6, 6.4), sharex=True)
    v = torch.linspace(LOW - 2, HIGH + 2, 1801, dtype=torch.float64)
    forward.plot(v, round_half_up(v).clamp(LOW, HIGH), color="black", lw=1.8, label="forward: clip(round(v))")
    forward.plot(v, v, color=COLORS[2], ls=DASHES[1], lw=1.2, label="pretended by identity: v")
    forward.plot(v, v.clamp(LOW, HIGH), color=COLORS[3], ls=DASHES[2], lw=2, label="pretended by clipped: clip(v)")
    forward.set(title="Forward: a staircase", ylabel="code (steps)")
    for index, name in enumerate(gradients):
        color = "black" if name == BARE else COLORS[2 + (index - 1) % (len(COLORS) - 2)]
        style = {"color": color, "ls": DASHES[index % len(DASHES)], "lw": 1.6, "zorder": 9 - index}  # dashes on top
        backward.plot(v, _gradient(name, v), **style, label=name)
    backward.set(
        title="Backward: what leaves for a gradient of 1", xlabel="v = weight / scale (steps)", ylabel="gradient (1)"
    )
    for index, axes in enumerate((forward, backward)):
        for low, high in ((LOW - 2, LOW), (HIGH, HIGH + 2)):
            zone = "clip zone: codes cannot follow" if index == 0 and low < LOW else None
            axes.axvspan(low, high, color=BACKGROUND, alpha=0.4, lw=0, zorder=0, label=zone)
        axes.set_xlim(LOW - 2, HIGH + 2)
    forward.legend(fontsize=8, loc="upper left")
    backward.set_ylim(-0.1, 1.8)
    backward.legend(fontsize=8, loc="upper center", ncols=3)
    return figure
