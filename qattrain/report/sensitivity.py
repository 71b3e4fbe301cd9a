"""The heat map of `qattrain sensitivity`: tensors over bits, the rise of the loss in each cell."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qattrain.report.console import counted
from qattrain.report.drawing import finding
from qattrain.training.sensitivity import BITS, Sensitivity

LEAST = 1e-4  # nats: smaller rises have the lightest colour


def sensitivity_figure(found: Sensitivity, title: str) -> Figure:
    """A row for each tensor, in the order of the network, from many bits to few; colours are on a logarithmic scale."""
    names = list(dict.fromkeys(rise.name for rise in found.rises))
    rises = np.array([rise.rise for rise in found.rises]).reshape(len(names), len(BITS))
    worst = max((rise for rise in found.rises if rise.kind == "weight"), key=lambda rise: rise.rise)
    figure = Figure(figsize=(7, 1.9 + 0.42 * len(names)), layout="constrained")
    most = f"by {worst.rise:.2f} at {counted(worst.bits, 'bit')}"
    finding(figure, f"Of all weights, those of {worst.name} raise the loss most: {most}\n({title})")
    axes = figure.subplots()
    largest = max(rises.max(), 10 * LEAST)
    image = axes.imshow(np.clip(rises, LEAST, None), cmap="Greys", norm=LogNorm(LEAST, largest), aspect="auto")
    for (row, column), rise in np.ndenumerate(rises):
        ink = "white" if rise > (LEAST * largest) ** 0.5 else "black"
        axes.text(column, row, f"{rise:+.4f}" if abs(rise) < 1 else f"{rise:+.2f}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(BITS)), list(map(str, BITS)))
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="bits of that tensor alone", ylabel="weights and activations")
    figure.colorbar(image, label="rise of the loss (nats)")
    return figure
