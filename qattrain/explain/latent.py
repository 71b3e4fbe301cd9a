"""The float weights behind the codes: how often codes flip, and how small an update is compared with the grid."""

from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from qattrain.config import QuantConfig
from qattrain.explain.lab import MODEL, Explanation, Lab, Table, panels
from qattrain.layers.network import weight_layers
from qattrain.report.console import percent
from qattrain.report.drawing import COLORS

BITS, EPOCHS = 4, 6
LAYERS = MODEL.chain.weight_layers
TRACED = "conv2"


@dataclass
class Watch:
    """Records all weights after every optimizer step.

    codes, weights: the latest of every layer. flips: by epoch and layer, how many codes changed from one step to the
    next. ends: by epoch, all codes at its end; 0: after the first step. small: how many of all `updates` of a weight
    were below half a step of its grid. medians: median size of the updates in grid steps, by layer and step. trace: one
    layer's weights in grid steps, (steps, weights).
    """

    codes: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    flips: dict[int, dict[str, int]] = field(default_factory=dict)
    ends: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    small: int = 0
    updates: int = 0
    medians: list[float] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, model: nn.Module, epoch: int) -> None:
        flips = self.flips.setdefault(epoch, dict.fromkeys(LAYERS, 0))
        for name, layer in weight_layers(model).items():
            q = layer.quantized_weight()
            assert q.scale is not None
            codes, scale = q.codes, q.scale
            weight = layer.weight.detach().clone()
            if name in self.codes:
                flips[name] += int((codes != self.codes[name]).sum())
                moved = (weight - self.weights[name]).abs() / scale
                self.small += int((moved < 0.5).sum())
                self.updates += moved.numel()
                self.medians.append(moved.median().item())
            self.codes[name], self.weights[name] = codes, weight
            if name == TRACED:
                self.trace.append((weight / scale).flatten())
        self.ends.setdefault(0, dict(self.codes))
        self.ends[epoch] = dict(self.codes)


def watched(lab: Lab, schedule: str) -> tuple[Watch, float]:
    """The record of a 4-bit network's training, and its test accuracy."""
    watch = Watch()
    model = lab.train(QuantConfig(bits=BITS), EPOCHS, watch, settings={"schedule": schedule})
    return watch, lab.accuracy(model)


def epochs_of(watch: Watch) -> list[dict[str, Any]]:
    """By epoch: flips per weight in every layer, all flips, and the share of codes that changed over the epoch."""
    sizes = {name: codes.numel() for name, codes in watch.codes.items()}
    found = []
    for epoch, flips in watch.flips.items():
        before, after = watch.ends[epoch - 1], watch.ends[epoch]
        changed = sum(int((after[name] != before[name]).sum()) for name in LAYERS)
        found.append(
            {
                "epoch": epoch,
                "flips_per_weight": {name: flips[name] / sizes[name] for name in LAYERS},
                "flips": sum(flips.values()),
                "changed": changed / sum(sizes.values()),
            }
        )
    return found


def explain(lab: Lab) -> Explanation:
    """The default training, and one with a constant learning rate."""
    watch, accuracy = watched(lab, "one-cycle")
    constant, constant_accuracy = watched(lab, "constant")
    per_epoch, of_constant = epochs_of(watch), epochs_of(constant)
    weights = sum(codes.numel() for codes in watch.codes.values())
    median, share_small = float(torch.tensor(watch.medians).median()), watch.small / watch.updates
    first, last, total = per_epoch[0], per_epoch[-1], sum(row["flips"] for row in per_epoch)
    elsewhere = sum(int((watch.codes[name] != watch.ends[0][name]).sum()) for name in LAYERS) / weights
    return Explanation(
        numbers={
            "data": lab.data_line,
            "bits": BITS,
            "test_accuracy": accuracy,
            "epochs": per_epoch,
            "flips": total,
            "weights": weights,
            "codes_that_ended_elsewhere": elsewhere,
            "updates_below_half_a_step": share_small,
            "median_update_steps": median,
            "constant_rate": {"test_accuracy": constant_accuracy, "epochs": of_constant},
        },
        tables=[
            Table(
                "flips per 100 weights, all flips, codes changed in the epoch; all flips at a constant learning rate; "
                f"{BITS} bits, {weights:,} weights, {lab.data_line}",
                ["epoch", *LAYERS, "all flips", "changed", "constant rate"],
                [
                    [
                        str(row["epoch"]),
                        *(f"{100 * row['flips_per_weight'][name]:.1f}" for name in LAYERS),
                        f"{row['flips']:,}",
                        percent(row["changed"]),
                        f"{other['flips']:,}",
                    ]
                    for row, other in zip(per_epoch, of_constant, strict=True)
                ],
            )
        ],
        answer=[
            "Because a training step is far smaller than a step of the grid: the median update of a weight was "
            f"{median:.2g} grid steps, and {percent(share_small)} of all updates were below half a step. If only codes "
            "were kept, each of those updates would be rounded away, and training would make no progress. The float "
            "weight is the memory in which small updates add up until the code flips.",
            f"Codes flipped {total:,} times, {total / weights:.2f} times per weight: {first['flips']:,} in the first "
            f"epoch, {last['flips']:,} in the last. {percent(elsewhere)} of the codes ended on another value than they "
            "began with.",
            "A weight whose best value lies between two codes crosses the threshold again and again (right panel). It "
            "settles because the learning rate falls to 0; at a constant rate the last epoch still had "
            f"{of_constant[-1]['flips']:,} flips (accuracy {percent(constant_accuracy)} against {percent(accuracy)}).",
            "After training the float weights are discarded: the exported network holds only codes and scales.",
        ],
        look=[
            "qattrain.layers.QuantLinear.quantized_weight: every forward pass makes new codes from the float weight",
            "qattrain.training.optimization.SCHEDULES: --set train.schedule=constant is the second training above",
        ],
        paper="float weights behind codes: Courbariaux et al. 2015 (BinaryConnect); oscillations: Nagel et al. 2022",
        figure=_figure(per_epoch, watch, lab.data_line),
    )


def _figure(per_epoch: list[dict[str, Any]], watch: Watch, data: str) -> Figure:
    trace = torch.stack(watch.trace)  # (steps, weights)
    codes = (trace + 0.5).floor().clamp(-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1)
    busiest = int((codes[1:] != codes[:-1]).sum(0).argmax())
    figure, [[flips, one]] = panels(f"Float weights behind {BITS}-bit codes ({data})")
    epochs = [row["epoch"] for row in per_epoch]
    for name, line, marker, color in zip(LAYERS, ("-", "--", ":", "-."), "os^D", COLORS, strict=False):
        values = [100 * row["flips_per_weight"][name] for row in per_epoch]
        flips.plot(epochs, values, ls=line, marker=marker, ms=4, color=color, label=name)
    flips.set(title="How often codes flip", xlabel="epoch", ylabel="flips per 100 weights and epoch", ylim=(0, None))
    flips.legend()
    steps, latent = range(1, len(trace) + 1), trace[:, busiest]
    one.plot(steps, latent, color=COLORS[0], lw=1, label="float weight / scale")
    one.step(steps, codes[:, busiest], color="black", lw=1.4, where="mid", label="its code")
    low, high = int(latent.min().floor()), int(latent.max().ceil())
    for code in range(low, high):
        one.axhline(code + 0.5, color="0.5", ls=":", lw=1, label="rounding thresholds" if code == low else None)
    one.set(title=f"The {TRACED} weight that flipped most", xlabel="training step", ylabel="grid steps")
    one.legend(fontsize=8)
    return figure
