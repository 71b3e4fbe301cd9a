"""Pictures, drawn with matplotlib's object interface: no window system, no global state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from qattrain.report.picture import png

if TYPE_CHECKING:  # it needs torch, pictures do not
    from qattrain.comparison import Comparison

# Okabe and Ito's palette: told apart with any colour vision. Lines and markers tell series apart without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
LONGEST_NAME = 40

CHART_INCHES = (4.2, 3.1)  # of a chart on a page: small, so that its text can be read on a phone


class Series(NamedTuple):
    """A line: what the legend says, x, y, and how far y is spread to either side of each point, if it is."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def styled(index: int) -> dict[str, Any]:
    """How the series of that number looks, wherever it is drawn."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 4,
    }


def plotted_name(name: str) -> str:
    """A user's name as matplotlib shows it: not too long, no formula, not hidden for its first letter."""
    half = LONGEST_NAME // 2 - 1
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    return " " * short.startswith("_") + short.replace("$", r"\$")


def draw_lines(axes: Axes, series: Sequence[Series], xlabel: str, ylabel: str) -> None:
    """Every series with points, over epochs or bits; y is logarithmic."""
    axes.set_yscale("log", nonpositive="clip")
    for index, (name, x, y, spread) in enumerate(series):
        if len(x):
            axes.errorbar(x, y, spread, label=plotted_name(name), capsize=3, **styled(index))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def error_series(name: str, history: Sequence[dict[str, Any]], test_images: int) -> Series:
    """Test error in percent over the trained epochs. On a logarithmic axis no error at all has no place: half an image
    stands for it."""
    trained = [record for record in history if record["epoch"] > 0]
    errors = [100 * max(1 - record["test_accuracy"], 0.5 / test_images) for record in trained]
    return Series(name, [record["epoch"] for record in trained], errors)


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float]]]) -> None:
    """Each row's name, accuracy and 95 % interval (fractions), from top to bottom."""
    for index, (_, accuracy, interval) in enumerate(rows):
        percent, low, high = (100 * value for value in (accuracy, *interval))
        style = styled(index) | {"linestyle": "none", "markersize": 6}
        axes.errorbar([percent], [index], xerr=[[percent - low], [high - percent]], capsize=4, **style)
        axes.annotate(f"{percent:.2f} %", (percent, index), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rows)), [plotted_name(name) for name, _, _ in rows])
    axes.set(xlabel="test accuracy (%)")
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.3, axis="x")


def comparison_figure(comparison: "Comparison") -> bytes:
    """A PNG: test error over the epochs of every trained run, and each method's accuracy with its 95 % interval."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    names = [f"{row.method} {row.bits}/{row.act_bits}" for row in comparison.rows]
    histories = zip(names, comparison.histories, strict=True)
    series = [error_series(name, history, comparison.test_images) for name, history in histories]
    draw_lines(curves, series, "epoch", "test error (%)")
    curves.set_title("Learning curves")
    if curves.lines:
        curves.legend()
    draw_intervals(
        bars, [(name, row.accuracy, row.accuracy_ci95) for name, row in zip(names, comparison.rows, strict=True)]
    )
    bars.set_title(f"{comparison.test_images:,} test images, 95 % Wilson intervals")
    stand_in = " (stand-in for MNIST)" if comparison.notice else ""
    figure.suptitle(f"{comparison.dataset}{stand_in}: {' vs '.join(map(plotted_name, names))}")
    return png(figure)
