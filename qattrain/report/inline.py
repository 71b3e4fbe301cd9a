"""A chart's figure as inline SVG: laid out and drawn once, in the page's own colours, with its points for the script.

Colours become CSS variables, so that one drawing serves light and dark screens; black is the colour of the text. Every
series with a name in a legend, or beside its line, is marked, so that the script can hide it and show its values.
"""

import io
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import BarContainer, Container, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from qattrain.files.escapes import visible
from qattrain.report.drawing import BACKGROUND, COLORS, GRID, OTHERS

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {color.lower(): f"var(--series-{index})" for index, color in enumerate(COLORS)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    GRID: "var(--muted)",
    BACKGROUND: "var(--faint)",
    OTHERS: "var(--soft)",
}
DOTS_PER_INCH = 72  # then an SVG's unit is a point
PAD = 4  # points around a chart
FIRST_GUESS = (0.16, 0.22, 0.8, 0.68)  # where the axes are before their labels are measured: left, bottom, size


class Drawing(NamedTuple):
    """A figure, drawn: its SVG without a name. ident: unique in the page, of letters, digits and hyphens."""

    ident: str
    head: str
    body: str

    def named(self, title: str, description: str) -> Markup:
        """An `<svg role="img">`."""
        named = f'<title id="{self.ident}-title">{escape(visible(title))}</title>'
        named += f'<desc id="{self.ident}-desc">{escape(visible(description))}</desc>'
        return Markup(f"{self.head}>{named}<{self.body}")  # ElementTree escaped what matplotlib drew


def draw(figure: Figure, ident: str) -> Drawing:
    """Draw a figure for a page; it cannot be used again."""
    _mark(figure)
    drawn = _draw(figure, ident)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn.decode()))
    root = ElementTree.fromstring(drawn)
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    for defs in root.findall(f"{{{SVG}}}defs"):
        for sheet in defs.findall(f"{{{SVG}}}style"):  # it would apply to the whole page
            defs.remove(sheet)
    for element in root.iter():
        if element.get("id") not in used:
            mark = re.fullmatch(r"(series|toggle)-(\d+)", element.attrib.pop("id", ""))
            if mark is not None:
                element.set(f"data-{mark[1]}", mark[2])
        if style := element.get("style"):
            style = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;]*", r"font-size: \1", style)  # before matplotlib 3.10
            style = re.sub(r"; font-family: [^;]*", "", style)  # the page's own is used
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), style))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{ident}-title {ident}-desc",
        "data-chart": json.dumps(_points(figure), separators=(",", ":")),
    }
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    text = re.sub(r"\s*\n\s*", " ", ElementTree.tostring(root, encoding="unicode")).replace("> <", "><")
    head, _, body = text.partition("><")
    return Drawing(ident, head, body)


def _draw(figure: Figure, salt: str) -> bytes:
    """The figure as SVG, drawn once; `savefig` with a layout engine draws it three times.

    salt: ids to which something in the drawing refers differ from those of other charts.
    """
    figure.set_dpi(DOTS_PER_INCH)
    figure.patch.set_visible(False)  # the page is the paper
    for axes in figure.axes:
        axes.patch.set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            _plain_decades(axis)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from (current )?font")  # in a user's name
        if len(figure.axes) == 1:
            _fit(figure, figure.axes[0])
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _fit(figure: Figure, axes: Axes) -> None:
    """Give the axes the room that labels, title and the legend below them leave.

    One measurement, where matplotlib's constrained layout takes several; another one if it changed the ticks.
    """
    figure.set_layout_engine("none")
    axes.set_position(FIRST_GUESS)
    canvas: Any = FigureCanvasAgg(figure)
    renderer, whole = canvas.get_renderer(), figure.bbox
    legends = sum(legend.get_window_extent(renderer).height for legend in figure.legends)
    for _ in range(2):
        ticks = _ticks(axes)
        outer, inner = axes.get_tightbbox(renderer), axes.bbox
        assert outer is not None
        left, bottom = inner.x0 - outer.x0 + PAD, inner.y0 - outer.y0 + PAD + legends
        right, top = outer.x1 - inner.x1 + PAD, outer.y1 - inner.y1 + PAD
        width, height = (whole.width - left - right) / whole.width, (whole.height - bottom - top) / whole.height
        axes.set_position((left / whole.width, bottom / whole.height, max(width, 0.1), max(height, 0.1)))
        if _ticks(axes) == ticks:
            break


def _ticks(axes: Axes) -> list[list[float]]:
    return [list(axis.get_majorticklocs()) for axis in (axes.xaxis, axes.yaxis)]


def _plain_decades(axis: Axis) -> None:
    """1e-05 instead of a formula, and no minor ticks, on a logarithmic axis of several decades."""
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high > 100 * low and isinstance(axis.get_major_formatter(), LogFormatter):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")


def _named(figure: Figure) -> Iterator[tuple[Axes, int, str, Artist | Container]]:
    """Everything drawn that has a name in a legend: its axes, the number and the name of its series, and itself."""
    numbers: dict[str, int] = {}
    for axes in figure.axes:
        for artist, name in zip(*axes.get_legend_handles_labels(), strict=True):
            yield axes, numbers.setdefault(name, len(numbers)), name, artist


def _mark(figure: Figure) -> None:
    """Give the parts of every series the id `series-N`, and texts that are its name `toggle-N`."""
    known = list(_named(figure))
    names = {name.strip(): number for _, number, name, _ in known}
    if len(names) < 2:
        return
    for axes, number, _, named in known:
        parts = _parts(named)
        if isinstance(named, Line2D):  # lines that look the same belong to it, but only the first has the name
            parts += [line for line in axes.lines if _look(line) == _look(named)]
        for part in parts:
            part.set_gid(f"series-{number}")
    texts = [text for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)]
    for text in [*texts, *(text for legend in legends for text in legend.get_texts())]:
        if text.get_text().strip() in names:
            text.set_gid(f"toggle-{names[text.get_text().strip()]}")


def _parts(named: Artist | Container) -> list[Artist]:
    if isinstance(named, ErrorbarContainer):
        line, caps, bars = named.lines
        return [part for part in (line, *caps, *bars) if part is not None]
    return list(named) if isinstance(named, Container) else [named]


def _look(line: Line2D) -> tuple[Any, ...]:
    return line.get_color(), line.get_linestyle(), line.get_marker()


def _points(figure: Figure) -> dict[str, Any]:
    """Of every series its name and points: x and y in the drawing's units, and both values as text."""
    series = []
    for axes, number, name, named in _named(figure):
        values = _values(axes, named)
        if values is None:
            continue
        places = axes.transData.transform(values)
        shown = [
            [round(x), round(figure.bbox.height - y), _text(axes.xaxis, a), _text(axes.yaxis, b)]
            for (x, y), (a, b) in zip(places.tolist(), values.tolist(), strict=True)
            if np.isfinite([x, y]).all()
        ]
        series.append({"number": number, "name": name.strip().replace(r"\$", "$"), "points": shown})
    labels = [" ".join(label.split()) for label in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())]
    return {"labels": [label.partition(", logarithmic")[0] for label in labels], "series": series}


def _values(axes: Axes, named: Artist | Container) -> Any:
    """The data of a series, (points, 2); None for what is no series of points, such as a limit."""
    if isinstance(named, BarContainer):
        return np.array([(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in named])
    if isinstance(named, StepPatch):
        heights, edges, _ = named.get_data()
        return np.stack([(edges[1:] + edges[:-1]) / 2, heights], axis=1)
    line = named.lines[0] if isinstance(named, ErrorbarContainer) else named
    if isinstance(line, Line2D) and all(line.get_transform().contains_branch_seperately(axes.transData)):
        return np.stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)], axis=1)
    return None


def _text(axis: Axis, value: float) -> str:
    """The value as the axis would write it. Where an axis has fixed values, points may have been moved aside."""
    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    if isinstance(axis, XAxis) and isinstance(locator, FixedLocator) and len(places := locator()):
        value = min(map(float, places), key=lambda place: abs(place - value))
    return str(formatter(value, None)) if isinstance(formatter, FuncFormatter) else f"{value:.4g}"
