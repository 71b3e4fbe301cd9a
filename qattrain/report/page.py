"""The page of a report: what it is made of, and how that becomes one self-contained HTML file.

A page is a list of sections, each with blocks of text, tables, charts, small images and commands. The file needs no
network and runs no script, and everything a user wrote is escaped. In its charts colours become CSS variables, so that
one drawing serves light and dark screens; black is the colour of the text.
"""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import qattrain
from qattrain.config.sources import leaves
from qattrain.errors import ReportError, system_errors
from qattrain.files import replace_files
from qattrain.report.console import UNKNOWN, Table
from qattrain.report.drawing import BACKGROUND, COLORS, GRID, OTHERS, Series, chart_figure, draw_lines, svg

GENERATOR = "qattrain"  # by this a page is recognised as ours
TEMPLATES = Path(__file__).parent / "templates"


class Text(NamedTuple):
    """A paragraph. notice: something nobody may miss."""

    text: str
    notice: bool = False


class Facts(NamedTuple):
    """Key figures: the name of each, its value, and a remark."""

    facts: Sequence[tuple[str, str, str]]


class Chart(NamedTuple):
    """A drawing with its caption, its description for those who cannot see it, and the table of what it shows."""

    figure: Figure
    title: str
    caption: str
    description: str
    table: Table | None = None


class Charts(NamedTuple):
    """Charts, side by side where there is room."""

    charts: Sequence[Chart]


class Tile(NamedTuple):
    """A small image: its PNG as a data URI, its description, and the lines below it."""

    source: str
    words: str
    lines: Sequence[str]


class Tiles(NamedTuple):
    """Small images in a grid, `width` and `height` CSS pixels large each, and a table about them."""

    title: str
    caption: str
    tiles: Sequence[Tile]
    width: int
    height: int
    table: Table


class Commands(NamedTuple):
    """Command lines to copy, each a list of arguments."""

    caption: str
    lines: Sequence[Sequence[str]]


Block = Text | Facts | Table | Charts | Tiles | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. ident: its anchor, unique in the page."""

    ident: str
    heading: str
    blocks: Sequence[Block] = ()
    parts: Sequence["Section"] = ()


def line_chart(title: str, series: Sequence[Series], labels: tuple[str, str], caption: str) -> Chart:
    """Lines over epochs on a logarithmic axis, and their table. labels: of both axes, with units.

    A series without points is left out; the others keep the colours they would have beside it.
    """
    figure = chart_figure(lambda axes: draw_lines(axes, series, *labels))
    known = [one for one in series if len(one.x)]
    described = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in known)
    points = [dict(zip(one.x, one.y, strict=True)) for one in known]
    epochs = sorted({epoch for one in points for epoch in one})
    rows = [[f"{x:g}", *(f"{one[x]:.4g}" if x in one else UNKNOWN for one in points)] for x in epochs]
    table = Table(f"{title}: {labels[1]}", [labels[0], *(one.name for one in known)], rows)
    return Chart(figure, title, caption, f"{labels[1]} over {labels[0]}: {described}.", table)


def recorded_section(
    ident: str, what: str, recorded: Sequence[tuple[str, dict[str, Any]]], side_by_side: bool
) -> Section:
    """The values that all networks share; with `side_by_side`, before them those that differ.

    what: "configuration" or "environment". recorded: the name of each network and its values, {} if it has none.
    """
    known = {name: _flat(values) for name, values in recorded if values}
    blocks: list[Block] = [Text(f"{name} does not record its {what}.") for name, values in recorded if not values]
    keys = dict.fromkeys(key for values in known.values() for key in values)
    table = {key: [values.get(key, UNKNOWN) for values in known.values()] for key in keys}
    differing = [[key, *row] for key, row in table.items() if len(set(row)) > 1]
    common = [[key, row[0]] for key, row in table.items() if len(set(row)) == 1]
    if differing and side_by_side:
        title = f"{what}: what differs".capitalize()
        blocks.append(Table(title, ["setting", *known], differing, left=list(known), compact=True))
    if common:
        title = f"{what}{'' if len(known) == 1 else ': what all have in common'}".capitalize()
        blocks.append(Table(title, ["setting", "value"], common, left=["value"], compact=True))
    return Section(ident, what.capitalize(), blocks)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted names and values as text; `-` for what is not set."""
    return {".".join(path): UNKNOWN if value in (None, {}) else str(value) for path, value in leaves(values)}


def render(title: str, lead: str, sections: Sequence[Section], command: str) -> bytes:
    """The page, UTF-8. command: the one that writes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)
    environment.filters["quoted"] = shlex.quote
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["svg"] = lambda chart: inline_svg(chart, f"chart-{next(numbers)}")
    page = environment.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        command=command,
        generator=f"{GENERATOR} {qattrain.__version__}",
        style=Markup(TEMPLATES.joinpath("page.css").read_text(encoding="utf-8")),
        next_number=numbers.__next__,
    )
    return page.strip().encode("utf-8", "surrogateescape") + b"\n"


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {color.lower(): f"var(--series-{index})" for index, color in enumerate(COLORS)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    GRID: "var(--muted)",
    BACKGROUND: "var(--faint)",
    OTHERS: "var(--soft)",
}


def inline_svg(chart: Chart, ident: str) -> Markup:
    """The drawing as an `<svg role="img">`. ident: unique in the page, of letters, digits and hyphens."""
    # Salted with the ident, the ids to which something refers differ from those of other charts.
    root = ElementTree.fromstring(svg(chart.figure, fonttype="none", salt=ident, transparent=True))
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    for defs in root.findall(f"{{{SVG}}}defs"):
        for sheet in defs.findall(f"{{{SVG}}}style"):  # it would apply to the whole page
            defs.remove(sheet)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if style := element.get("style"):
            style = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;]*", r"font-size: \1", style)  # before matplotlib 3.10
            style = re.sub(r"; font-family: [^;]*", "", style)  # the page's own is used
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), style))
    view_box = root.attrib["viewBox"]
    root.attrib = {"viewBox": view_box, "role": "img", "aria-labelledby": f"{ident}-title {ident}-desc"}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    drawn = ElementTree.tostring(root, encoding="unicode")
    drawn = re.sub(r"\s*\n\s*", " ", drawn).replace("> <", "><")
    head, _, body = drawn.partition(">")
    title, description = escape(chart.title), escape(chart.description)
    named = f'<title id="{ident}-title">{title}</title><desc id="{ident}-desc">{description}</desc>'
    return Markup(f"{head}>{named}{body}")  # ElementTree escaped what matplotlib drew


def check_target(path: Path) -> None:
    """Raises ReportError if no page can be written there, or if a file there is not a page of this tool."""
    if path.is_dir():
        raise ReportError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ReportError(f"--out {path}: there is no folder {path.parent}; make it, or name another file")
    if not path.exists():
        return
    with system_errors(ReportError, f"--out {path}", "name another file"), path.open("rb") as file:
        start = file.read(2000)
    if f'name="generator" content="{GENERATOR} '.encode() not in start:
        raise ReportError(f"--out {path} exists and is not a qattrain report; name another file")


def write_page(path: Path, page: bytes) -> None:
    """Write the whole page or nothing. Raises ReportError."""
    with system_errors(ReportError, f"cannot write {path}", "name another file with --out"):
        replace_files(path.parent, {path.name: page})
