"""What all pictures share: the look of a series, lines and intervals, and a figure as PNG, as SVG, or as text.

matplotlib's object interface is used throughout: no window system, no global state.
"""

import io
import math
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from qattrain.errors import ReportError, system_errors
from qattrain.files import replace_files
from qattrain.report.console import percent

if TYPE_CHECKING:
    from qattrain.experiments.comparison import Comparison

# The palette of Okabe and Ito, distinct to every kind of colour vision. Series also differ in marker and dash, so that
# they can be told apart without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
BACKGROUND = "#c0c0c0"  # of what is drawn behind something else, such as values before quantization
LONGEST_NAME = 40

CHART_INCHES = (4.2, 3.1)  # of a chart on a page: small, so that its text is readable on a phone


class Series(NamedTuple):
    """A line: its name in the legend, x, y, and optionally the size of the error bar above and below each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def series_style(index: int, **others: Any) -> dict[str, Any]:
    """How the series of that number looks in every picture; `others` replace or add to it."""
    style = {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "capsize": 4,
    }
    return style | others


def plotted_name(name: str) -> str:
    """A user's name as matplotlib should show it: shortened, `$` escaped, not hidden for starting with `_`."""
    half = LONGEST_NAME // 2 - 1
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    return " " * short.startswith("_") + short.replace("$", r"\$")


def heading(text: str, columns: int = 90) -> str:
    """A title with a user's names in it, for matplotlib: `$` escaped, wrapped between words."""
    lines = [textwrap.fill(line, columns) for line in text.split("\n")]
    return "\n".join(lines).replace("$", r"\$")


def chart_figure(draw: Callable[[Axes], None], extra_inches: float = 0.0, columns: int = 1) -> Figure:
    """A chart for a page, its legend, if it has one, below in so many columns."""
    figure = Figure(figsize=(CHART_INCHES[0], CHART_INCHES[1] + extra_inches), layout="constrained")
    draw(figure.subplots())
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return figure


def draw_lines(axes: Axes, series: Sequence[Series], xlabel: str, ylabel: str) -> None:
    """Every series that has points; x is whole numbers such as epochs, y is logarithmic."""
    axes.set_yscale("log", nonpositive="clip")
    for index, (name, x, y, spread) in enumerate(series):
        if len(x):
            axes.errorbar(x, y, spread, label=plotted_name(name), **series_style(index, markersize=4, capsize=3))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def error_series(name: str, history: Sequence[dict[str, Any]], test_images: int) -> Series:
    """Test error in percent after each trained epoch. A logarithmic axis has no 0: no error counts as half an image."""
    trained = [record for record in history if record["epoch"] > 0]
    errors = [100 * max(1 - record["test_accuracy"], 0.5 / test_images) for record in trained]
    return Series(name, [record["epoch"] for record in trained], errors)


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float]]]) -> None:
    """A row for each name, accuracy and 95 % interval (fractions), from top to bottom."""
    for index, (_, accuracy, interval) in enumerate(rows):
        centre, low, high = (100 * value for value in (accuracy, *interval))
        style = series_style(index, linestyle="none", markersize=6)
        axes.errorbar([centre], [index], xerr=[[centre - low], [high - centre]], **style)
        axes.annotate(percent(accuracy), (centre, index), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rows)), [plotted_name(name) for name, _, _ in rows])
    axes.set(xlabel="test accuracy (%)")
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.3, axis="x")


def comparison_figure(comparison: "Comparison") -> bytes:
    """A PNG: test error over the epochs of every trained run, and each method's accuracy with its 95 % interval."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, intervals = figure.subplots(1, 2)
    names = [f"{row.method} {row.bits}/{row.act_bits}" for row in comparison.rows]
    histories = zip(names, comparison.histories, strict=True)
    series = [error_series(name, history, comparison.test_images) for name, history in histories]
    draw_lines(curves, series, "epoch", "test error (%)")
    curves.set_title("Learning curves")
    if curves.lines:
        curves.legend()
    rows = zip(names, comparison.rows, strict=True)
    draw_intervals(intervals, [(name, row.accuracy, row.accuracy_ci95) for name, row in rows])
    intervals.set_title(f"{comparison.test_images:,} test images, 95 % Wilson intervals")
    stand_in = " (stand-in for MNIST)" if comparison.notice else ""
    figure.suptitle(f"{comparison.dataset}{stand_in}: {' vs '.join(map(plotted_name, names))}")
    return png(figure)


SHADES = " ░▒▓█"
BARS = " ▁▂▃▄▅▆▇█"
PNG_DPI = 120


LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
PICTURE_COLUMNS = 80


def picture(image: NDArray[np.uint8]) -> str:
    """uint8 (H, W), or (H, W, 3) in colour, as text: a character for two pixels, one above the other, or for more.

    Text is twice as high as wide. At most 80 characters in a line; pixels that share a character are averaged.
    """
    grey = image.astype(np.float64)
    if grey.ndim == 3:
        grey = grey @ LUMINANCE
    step = math.ceil(grey.shape[1] / PICTURE_COLUMNS)
    sums, counts = grey, np.ones(grey.shape)
    for axis, size in ((0, 2 * step), (1, step)):
        starts = np.arange(0, grey.shape[axis], size)
        sums, counts = np.add.reduceat(sums, starts, axis), np.add.reduceat(counts, starts, axis)
    shades = np.ceil(np.round(sums / counts, 6) * (len(SHADES) - 1) / 255).astype(int)
    return "\n".join("".join(SHADES[shade] for shade in row) for row in shades)


def bars(counts: NDArray[np.int64], width: int, logarithmic: bool = False) -> str:
    """A histogram, counts (n,), as one line of at most `width` blocks, the highest one full; "" without counts.

    With more than `width` counts neighbours are added up. A count that is not 0 is never shown as empty.
    """
    if not len(counts):
        return ""
    columns = np.add.reduceat(counts, np.unique(np.arange(width) * len(counts) // width))
    shown = np.log1p(columns) if logarithmic else columns
    heights = np.ceil(shown * (len(BARS) - 1) / max(shown.max(), 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    return saved(figure, "png", dpi=PNG_DPI)


def svg(figure: Figure, fonttype: str = "path", salt: str = "qattrain", **options: Any) -> bytes:
    """The figure as SVG; the same figure gives the same bytes.

    fonttype: "path" draws letters as outlines, so that no font is needed; "none" keeps them as text. salt: figures with
    different salts have different ids for their markers and clip paths.
    """
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": fonttype}):
        return saved(figure, "svg", metadata={"Date": None}, **options)


def saved(figure: Figure, kind: str, **options: Any) -> bytes:
    """The figure as a file of that kind. Letters of a user's name that the font lacks cause no warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Lay it out once: a second layout would start from the first, and the bytes depend on how often it was saved.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def picture_files(figures: dict[str, Figure]) -> dict[str, bytes]:
    """File name -> content: each figure, by its name, as PNG and SVG."""
    return {f"{name}.{kind.__name__}": kind(figure) for name, figure in figures.items() for kind in (png, svg)}


def write_pictures(folder: Path, figures: dict[str, Figure]) -> list[Path]:
    """Write `picture_files` into `folder`, which is made if missing: all of them or none.

    Returns the paths. Raises ReportError.
    """
    files = picture_files(figures)
    check_writable(folder)
    with _writing_into(folder):
        replace_files(folder, files)
    return [folder / name for name in files]


def check_writable(folder: Path) -> None:
    """Make `folder`, and fail before any long computation if nothing can be written there. Raises ReportError."""
    with _writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _writing_into(folder: Path) -> AbstractContextManager[None]:
    return system_errors(ReportError, f"cannot write pictures into {folder}", "name another folder")
