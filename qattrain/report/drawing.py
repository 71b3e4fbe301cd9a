"""What all pictures share: series and their look, a figure as PNG, as SVG, as part of a page.

matplotlib's object interface is used throughout: no window system, no global state. In a page colours become CSS
variables, so that one drawing serves light and dark; black is the colour of the text.
"""

import io
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from qattrain.errors import ReportError
from qattrain.files import replace_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qattrain.experiments.comparison import Comparison


# Okabe and Ito's palette: told apart with any colour vision. Lines and markers tell series apart without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BEFORE = "#c0c0c0"  # of values before quantization: what lies behind
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


SHADES = " ░▒▓█"
BARS = " ▁▂▃▄▅▆▇█"
PNG_DPI = 120


def picture(image: NDArray[np.uint8]) -> str:
    """uint8 (28, 28) -> 14 lines of 28 characters, one for two pixels, one above the other: text is twice as high."""
    pairs = image.reshape(image.shape[0] // 2, 2, image.shape[1]).astype(np.int64).mean(1)
    shades = np.ceil(pairs * (len(SHADES) - 1) / 255).astype(int)
    return "\n".join("".join(SHADES[shade] for shade in row) for row in shades)


def bars(counts: NDArray[np.int64], width: int, logarithmic: bool = False) -> str:
    """Counts of neighbouring bins, (n,), as one line of at most `width` blocks, the highest full; "" for none.

    Neighbours are added up where there are more than `width`; what is not 0 is never shown as empty.
    """
    if not len(counts):
        return ""
    columns = np.add.reduceat(counts, np.unique(np.arange(width) * len(counts) // width))
    shown = np.log1p(columns) if logarithmic else columns
    heights = np.ceil(shown * (len(BARS) - 1) / max(shown.max(), 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    return saved(figure, "png", dpi=PNG_DPI)


def svg(figure: "Figure") -> bytes:
    """The figure as SVG; the same figure gives the same bytes. Letters are outlines: no font is needed to show it."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "qattrain", "svg.fonttype": "path"}):
        return saved(figure, "svg", metadata={"Date": None})


def saved(figure: "Figure", kind: str, **options: Any) -> bytes:
    """The figure as a file of that kind. A letter of a user's name that the font lacks is no reason to warn."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Laid out once: a second layout starts from the first one's, so that bytes would tell how often it was saved.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path, figures: dict[str, "Figure"]) -> list[Path]:
    """Write each figure (by its name) as PNG and SVG into `folder`, which is made if need be; all of them or none.

    Returns the paths. Raises ReportError where that cannot be done.
    """
    files = {f"{name}.{kind.__name__}": kind(figure) for name, figure in figures.items() for kind in (png, svg)}
    check_writable(folder)
    try:
        replace_files(folder, files)
    except OSError as error:
        raise ReportError(_unwritable(folder, error)) from None
    return [folder / name for name in files]


def check_writable(folder: Path) -> None:
    """Make `folder`, so that nobody computes for half a minute to learn that it cannot be. Raises ReportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReportError(_unwritable(folder, error)) from None


def _unwritable(folder: Path, error: OSError) -> str:
    return f"cannot write pictures into {folder}: {error.strerror or error}; name another folder"


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {color.lower(): f"var(--series-{index})" for index, color in enumerate(COLORS)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#b0b0b0": "var(--muted)",  # matplotlib's own, of grid lines
    BEFORE: "var(--faint)",
}


def inline_svg(figure: Figure, ident: str, title: str, description: str) -> Markup:
    """The figure as an `<svg role="img">` for a page. ident: unique in the page, of letters, digits and hyphens."""
    assert re.fullmatch(r"[\w-]+", ident), ident
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "qattrain"}):  # text stays text; ids do not change
        root = ElementTree.fromstring(saved(figure, "svg", transparent=True, metadata={"Date": None}))
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    for defs in root.findall(f"{{{SVG}}}defs"):
        for sheet in defs.findall(f"{{{SVG}}}style"):  # it would hold for the whole page
            defs.remove(sheet)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        _dress(element, ident, used)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{ident}-title {ident}-desc",
    }
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    drawn = ElementTree.tostring(root, encoding="unicode")
    drawn = re.sub(r"\s*\n\s*", " ", drawn).replace("> <", "><")
    head, _, body = drawn.partition(">")
    named = f'<title id="{ident}-title">{escape(title)}</title><desc id="{ident}-desc">{escape(description)}</desc>'
    return Markup(f"{head}>{named}{body}")  # ElementTree escaped what matplotlib drew


def _dress(element: ElementTree.Element, ident: str, used: set[str]) -> None:
    """Colours to variables; ids that nobody refers to away, the others made unique in the page."""
    attributes = element.attrib
    name = attributes.pop("id", None)
    if name in used:
        attributes["id"] = f"{ident}-{name}"
    for key in (f"{{{XLINK}}}href", "clip-path"):
        if "#" in attributes.get(key, ""):
            attributes[key] = attributes[key].replace("#", f"#{ident}-")
    if "style" in attributes:
        style = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;]*", r"font-size: \1", attributes["style"])  # before 3.10
        style = re.sub(r"; font-family: [^;]*", "", style)  # the page's own
        style = re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), style)
        attributes["style"] = style
