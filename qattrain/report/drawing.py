"""What all pictures share: the look of each method, lines and intervals, and a figure as PNG, as SVG, or as text.

A method has one colour and one marker, whatever the picture; its networks differ in dash and in how the marker is
filled. Titles say what the data show.

matplotlib's object interface is used throughout: no window system, no global state.
"""

import io
import math
import re
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from qattrain.config import FLOAT_BITS
from qattrain.errors import ReportError, system_errors
from qattrain.files import replace_files
from qattrain.files.escapes import visible
from qattrain.report.console import p_value, percent
from qattrain.report.labels import label_lines

if TYPE_CHECKING:
    from qattrain.experiments.comparison import Comparison, Row

# The hues of Okabe and Ito, distinct to every kind of colour vision, dark enough for text on white (contrast 4.5).
COLORS = ("#0072b2", "#c14f00", "#00795a", "#ab4a84", "#966600", "#2077a8", "#000000")
MARKERS = ("o", "s", "^", "v", "P", "X", "D")
DASHES = ("-", "--", "-.", ":")
FILLINGS: tuple[dict[str, str], ...] = (  # of the markers; white is the paper
    {},
    {"markerfacecolor": "white"},
    {"fillstyle": "left", "markerfacecoloralt": "white"},
    {"fillstyle": "top", "markerfacecoloralt": "white"},
)
GRID = "#b0b0b0"  # matplotlib's own, of grid lines
BACKGROUND = "#c0c0c0"  # of what is drawn behind something else, such as values before quantization
OTHERS = "#5b656e"  # other people's results
# What every colour of a published picture becomes on dark paper.
DARK = dict(zip(COLORS, ("#56b4e9", "#ff9655", "#2dc79a", "#e6a0cb", "#efc04c", "#9ad4f5", "#e6e9ec"), strict=True)) | {
    "#ffffff": "#0d1117",
    GRID: "#7b868f",
    "#cccccc": "#5a646d",  # matplotlib's own, around legends
    BACKGROUND: "#5a646d",
    OTHERS: "#a9b3bc",
}
LONGEST_NAME = 40
TITLE = {"fontsize": 11, "fontweight": "bold"}
LEAST_ERROR = 1e-4  # drawn for smaller errors: a logarithmic axis has no 0
FEWEST_LABELS = 4  # of an axis of accuracies
BY_CHANCE = 0.05  # a p-value from which a difference may be chance

CHART_LABEL = 12  # letters beside a line of a chart on a page
LEGEND_INCHES = 0.19  # of a line of a legend
CHART_INCHES = (4.2, 3.1)  # of a chart on a page: small, so that its text is readable on a phone


class Look(NamedTuple):
    """The colour and the marker of a method."""

    color: str
    marker: str


METHODS = {"fp32": "float", "ptq": "PTQ", "qat": "QAT"}  # as files name them -> as pictures do
# Of every method. Other quantizers than QAT's usual one have looks of their own, where several are in one picture.
LOOKS = {
    "QAT": Look(COLORS[0], MARKERS[0]),
    "PTQ": Look(COLORS[1], MARKERS[1]),
    "packed": Look(COLORS[2], MARKERS[2]),
    "float": Look(COLORS[6], MARKERS[6]),
    "others": Look(OTHERS, "*"),
    "lsq": Look(COLORS[0], MARKERS[0]),
    "affine": Look(COLORS[2], MARKERS[2]),
    "pow2": Look(COLORS[3], MARKERS[3]),
    "dorefa": Look(COLORS[4], MARKERS[4]),
    "pact": Look(COLORS[5], MARKERS[5]),
    "ternary": Look(COLORS[2], "<"),
    "binary": Look(COLORS[3], ">"),
}


class Series(NamedTuple):
    """A line: its name in the legend, x, y, and optionally the size of the error bar above and below each point.

    method: a key of LOOKS; without one a series looks as its number says. least: smaller y are drawn there, because a
    logarithmic axis has no 0.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    method: str | None = None
    least: float = 0.0


def series_style(index: int, **others: Any) -> dict[str, Any]:
    """How a series that is no method looks, by its number; `others` replace or add to it."""
    style = {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }
    return style | others


def method_style(method: str, variant: int = 0, **others: Any) -> dict[str, Any]:
    """How a method looks in every picture. method: a key of LOOKS; an unknown one looks like QAT.

    variant: counts the series of that method in the picture, from 0; 16 differ. `others` replace or add to it.
    """
    look = LOOKS.get(method, LOOKS["QAT"])
    style = {"color": look.color, "marker": look.marker, "linestyle": DASHES[variant % len(DASHES)]}
    return style | FILLINGS[(variant + variant // len(DASHES)) % len(FILLINGS)] | others


def series_styles(methods: Sequence[str | None], **others: Any) -> list[dict[str, Any]]:
    """The look of each of these series: its method's, or its number's if it has none."""
    return [
        series_style(index, **others)
        if method is None
        else method_style(method, methods[:index].count(method), **others)
        for index, method in enumerate(methods)
    ]


def plotted_name(name: str) -> str:
    """A user's name as matplotlib should show it: shortened, `$` escaped, not hidden for starting with `_`."""
    half, name = LONGEST_NAME // 2 - 1, visible(name)
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    return " " * short.startswith("_") + short.replace("$", r"\$")


def heading(text: str, columns: int = 90) -> str:
    """A title with a user's names in it, for matplotlib: `$` escaped, wrapped between words."""
    lines = [textwrap.fill(visible(line), columns) for line in text.split("\n")]
    return "\n".join(lines).replace("$", r"\$")


def finding(figure: Figure, sentence: str, columns: int = 72) -> None:
    """Give the figure a sentence as its title: what the data show. No line begins with a percent sign."""
    figure.suptitle(heading(sentence.replace(" %", "\N{NO-BREAK SPACE}%"), columns), **TITLE)


def chart_figure(draw: Callable[[Axes], None], extra_inches: float = 0.0, columns: int = 1) -> Figure:
    """A chart for a page. Names that do not fit beside the ends of lines are in a legend below, in so many columns.

    The figure is high enough for it.
    """
    figure = Figure(figsize=(CHART_INCHES[0], CHART_INCHES[1] + extra_inches), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    names = axes.get_legend_handles_labels()[1]
    if names and not label_lines(axes, CHART_LABEL):
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        figure.set_figheight(figure.get_figheight() + LEGEND_INCHES * (math.ceil(len(names) / columns) - 2))
    return figure


def draw_lines(axes: Axes, series: Sequence[Series], xlabel: str, ylabel: str) -> None:
    """Every series that has points; x is whole numbers such as epochs, y is logarithmic, which its label says."""
    axes.set_yscale("log", nonpositive="clip")
    styles = series_styles([one.method for one in series], markersize=4)
    for one, style in zip(series, styles, strict=True):
        if len(one.x):
            drawn = [max(y, one.least) for y in one.y]
            axes.errorbar(one.x, drawn, one.spread, label=plotted_name(one.name), capsize=3, **style)
    axes.set(xlabel=xlabel, ylabel=f"{ylabel}, logarithmic")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def error_series(name: str, history: Sequence[dict[str, Any]], test_images: int, method: str | None = None) -> Series:
    """Test error in percent after each trained epoch. No error is drawn as half an image: the axis has no 0."""
    trained = [record for record in history if record["epoch"] > 0]
    errors = [100 * (1 - record["test_accuracy"]) for record in trained]
    epochs = [record["epoch"] for record in trained]
    return Series(name, epochs, errors, method=method, least=100 * 0.5 / test_images)


def drawn_error(accuracy: float) -> float:
    """Where an accuracy lies on the axis of `accuracy_axis`: its error, as a fraction."""
    return float(max(1 - accuracy, LEAST_ERROR))


def accuracy_axis(axes: Axes, images: str, top: float, bottom: float) -> None:
    """Accuracy upwards, spread out towards 100 %: a logarithmic axis of the error, labelled as accuracy.

    images: which ones it is of, such as "test". top, bottom: the largest and the smallest error of the axis.
    """
    axes.set(ylabel=f"{images} accuracy (%),\nlogarithmic in the error", ylim=(top, bottom), yscale="log")
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100)):  # the coarsest that gives enough labels
        steps = [digit * 10.0**power for power in range(-6, 1) for digit in digits]
        steps = [step for step in steps if bottom <= step <= top]
        if len(steps) >= FEWEST_LABELS:
            break
    axes.set_yticks(steps or [bottom, top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def draw_intervals(
    axes: Axes,
    rows: Sequence[tuple[str, float, tuple[float, float]]],
    methods: Sequence[str | None] | None = None,
) -> None:
    """A row for each name, accuracy and 95 % interval (fractions), from top to bottom. methods: keys of LOOKS."""
    styles = series_styles(methods or [None] * len(rows), linestyle="none", markersize=6)
    for index, ((_, accuracy, interval), style) in enumerate(zip(rows, styles, strict=True)):
        centre, low, high = (100 * value for value in (accuracy, *interval))
        axes.errorbar([centre], [index], xerr=[[centre - low], [high - centre]], capsize=4, **style)
        axes.annotate(percent(accuracy), (centre, index), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rows)), [plotted_name(name) for name, _, _ in rows])
    axes.set(xlabel="test accuracy (%)")
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.3, axis="x")


def comparison_figure(comparison: "Comparison") -> bytes:
    """A PNG: test error over the epochs of every trained run, and each method's accuracy with its 95 % interval."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    curves, intervals = figure.subplots(1, 2)
    names = [row_name(row) for row in comparison.rows]
    methods = [row_method(row, history) for row, history in zip(comparison.rows, comparison.histories, strict=True)]
    series = [
        error_series(name, history, comparison.test_images, method)
        for name, history, method in zip(names, comparison.histories, methods, strict=True)
    ]
    draw_lines(curves, series, "epoch", "test error (%)")
    spared = any(error < one.least for one in series for error in one.y)
    curves.set_title("after every epoch" + (", no error drawn as half an image" if spared else ""), fontsize=10)
    if curves.lines and not label_lines(curves):
        curves.legend(fontsize=9)
    rows = zip(names, comparison.rows, strict=True)
    draw_intervals(intervals, [(name, row.accuracy, row.accuracy_ci95) for name, row in rows], methods)
    intervals.set_title("at the end, with 95 % Wilson intervals", fontsize=10)
    stand_in = " (stand-in for MNIST)" if comparison.notice else ""
    about = f"{comparison.dataset}{stand_in}, {comparison.test_images:,} test images; p: McNemar's test"
    finding(figure, comparison_finding(comparison), 105)
    figure.supxlabel(about, fontsize=9)
    return png(figure)


def row_method(row: "Row", history: Sequence[dict[str, Any]]) -> str:
    """`float`, `PTQ` or `QAT`. A checkpoint without a trained epoch was quantized after training."""
    if row.method in METHODS:
        return METHODS[row.method]
    if row.bits == row.act_bits == FLOAT_BITS:
        return "float"
    return "QAT" if any(record["epoch"] > 0 for record in history) else "PTQ"


def row_name(row: "Row") -> str:
    """`float`, `4-bit QAT`, `2/8-bit PTQ` (weights/activations), or a run's name."""
    if row.method not in METHODS:
        return row.method
    bits = f"{row.bits}-bit " if row.bits == row.act_bits else f"{row.bits}/{row.act_bits}-bit "
    return ("" if row.method == "fp32" else bits) + METHODS[row.method]


def comparison_finding(comparison: "Comparison") -> str:
    """The result of a comparison as a sentence: how far every other network is from the first one."""
    first, *others = comparison.rows
    parts = []
    for row in others:
        p = p_value(row.mcnemar_p)
        p = f"p {p}" if p.startswith("<") else f"p = {p}"
        if row.delta == 0:
            parts.append(f"{row_name(row)} is as accurate as {row_name(first)} ({p})")
        else:
            side = "above" if row.delta > 0 else "below"
            chance = ", which may be chance" if row.mcnemar_p >= BY_CHANCE else ""
            parts.append(f"{row_name(row)} is {abs(100 * row.delta):.2f} points {side} {row_name(first)}{chance} ({p})")
    return "; ".join(parts)


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


def on_dark_paper(drawing: bytes) -> bytes:
    """What `svg` made, for dark paper: every colour becomes that of DARK, which must have it."""
    dark = re.sub(r"#[0-9a-f]{6}\b", lambda color: DARK[color[0]], drawing.decode())
    # matplotlib leaves out the fill of black letters: they take that of the whole.
    return dark.replace("<svg ", f'<svg fill="{DARK["#000000"]}" ', 1).encode()


def saved(figure: Figure, kind: str, **options: Any) -> bytes:
    """The figure as a file of that kind. Letters of a user's name that the font lacks cause no warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from (current )?font")
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
