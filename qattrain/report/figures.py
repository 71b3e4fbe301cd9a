"""Pictures, drawn with matplotlib's object interface: no window system, no global state."""

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:  # it needs torch, pictures do not
    from qattrain.comparison import Comparison

# Okabe and Ito's palette: told apart with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def comparison_figure(comparison: "Comparison") -> bytes:
    """A PNG: test error over the epochs of every trained run, and each method's accuracy with its 95 % interval."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    names = [f"{row.method} {row.bits}/{row.act_bits}" for row in comparison.rows]
    for index, (history, name) in enumerate(zip(comparison.histories, names, strict=True)):
        color = COLORS[index % len(COLORS)]
        trained = [record for record in history if record["epoch"] > 0]
        # On a logarithmic axis no error at all has no place: half an image stands for it.
        errors = [100 * max(1 - record["test_accuracy"], 0.5 / comparison.test_images) for record in trained]
        if trained:
            curves.plot([record["epoch"] for record in trained], errors, color=color, label=name, marker="o", ms=3)
        row = comparison.rows[index]
        low, high = (100 * bound for bound in row.accuracy_ci95)
        accuracy = 100 * row.accuracy
        bars.errorbar([accuracy], [index], xerr=[[accuracy - low], [high - accuracy]], fmt="o", color=color, capsize=4)
        bars.annotate(f"{accuracy:.2f} %", (accuracy, index), xytext=(0, 8), textcoords="offset points", ha="center")
    curves.set(xlabel="epoch", ylabel="test error (%)", title="Learning curves", yscale="log")
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_formatter("{x:g}")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.grid(alpha=0.3, which="both")
    if curves.lines:
        curves.legend()
    bars.set_yticks(range(len(names)), names)
    bars.set(xlabel="test accuracy (%)", title=f"{comparison.test_images:,} test images, 95 % Wilson intervals")
    bars.invert_yaxis()
    bars.margins(y=0.25)
    bars.grid(alpha=0.3, axis="x")
    stand_in = " (stand-in for MNIST)" if comparison.notice else ""
    figure.suptitle(f"{comparison.dataset}{stand_in}: {' vs '.join(names)}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
