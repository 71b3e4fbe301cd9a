"""The page of a report: what it is made of, and how that becomes one self-contained HTML file.

A page is a list of sections, each with blocks of text, tables, charts, small images and commands. The file needs no
network, and everything a user wrote is escaped, also characters that do not show. Its one script, `templates/page.js`,
only adds comfort: the page is whole without it. The browser runs that script and no other, because the page names its
digest.
"""

import base64
import hashlib
import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

import qattrain
from qattrain.config import ExperimentConfig
from qattrain.config.sources import leaves
from qattrain.files.escapes import visible
from qattrain.report.console import UNKNOWN, Table
from qattrain.report.drawing import Series, chart_figure, draw_lines
from qattrain.report.inline import draw
from qattrain.report.sources import GENERATOR

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


class Tables(NamedTuple):
    """Small tables, side by side where there is room; with a summary, hidden until it is opened."""

    tables: Sequence[Table]
    summary: str = ""


class ErrorTable(NamedTuple):
    """A confusion matrix, and images of its wrong cells, hidden until they are opened.

    cells: of every image its row (the true class) and its column (the predicted one), numbered from 0.
    """

    table: Table
    images: Tiles
    cells: Sequence[tuple[int, int]]


class Commands(NamedTuple):
    """Command lines to copy, each a list of arguments."""

    caption: str
    lines: Sequence[Sequence[str]]


Block = Text | Facts | Table | Tables | Charts | Tiles | ErrorTable | Commands


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
    """A row for every value that is not the same everywhere; folded below it, the others.

    Same everywhere: in all networks and, for a configuration, in the defaults. what: "configuration" or "environment".
    recorded: the name of each network and its values, {} if it has none. side_by_side: a column for each network; if
    False, only what they have in common is shown.
    """
    known = {name: _flat(values) for name, values in recorded if values}
    columns = {"default": _flat(ExperimentConfig().model_dump(mode="json"))} if what == "configuration" else {}
    blocks: list[Block] = [Text(f"{name} does not record its {what}.") for name, values in recorded if not values]
    shown, same = [], []
    for key in dict.fromkeys(key for values in known.values() for key in values):
        row = [values.get(key, UNKNOWN) for values in known.values()]
        usual = [values.get(key, UNKNOWN) for values in columns.values()]
        if len({*row, *usual}) == 1:
            same.append([key, row[0]])
        elif side_by_side or len(set(row)) == 1:
            shown.append([key, *(row if side_by_side else row[:1]), *usual])
    if shown:
        title = f"{what}: what differs{' from the defaults' if columns else ''}".capitalize()
        names = [*(known if side_by_side else ["value"]), *columns]
        blocks.append(Table(title, ["setting", *names], shown, names, compact=True))
    if same:
        title = "Everything else, as by default" if columns else "What all have in common" if len(known) > 1 else what
        blocks.append(Table(title.capitalize(), ["setting", "value"], same, ["value"], folded=True, compact=True))
    return Section(ident, what.capitalize(), blocks)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted names and values as text; `-` for what is not set."""
    return {".".join(path): UNKNOWN if value in (None, {}) else str(value) for path, value in leaves(values)}


def _shown(value: Any) -> Any:
    """What a template writes for a value: of our own text, Markup, every character."""
    return visible(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def count_charts(sections: Sequence[Section]) -> int:
    """The number of drawings in these sections and their parts."""
    blocks = [block for section in sections for block in section.blocks]
    here = sum(len(block.charts) for block in blocks if isinstance(block, Charts))
    return here + sum(count_charts(section.parts) for section in sections)


def render(
    title: str, lead: str, sections: Sequence[Section], command: str, drawn: Callable[[], object] = lambda: None
) -> bytes:
    """The page, UTF-8. title: also its headline. command: the one that writes it. drawn: called after every chart."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)
    environment.filters["quoted"] = shlex.quote
    environment.filters["kind"] = lambda block: type(block).__name__

    def svg(chart: Chart) -> Markup:
        drawing = draw(chart.figure, f"chart-{next(numbers)}")
        drawn()
        return drawing.named(chart.title, chart.description)

    environment.filters["svg"] = svg
    script = TEMPLATES.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        command=command,
        generator=f"{GENERATOR} {qattrain.__version__}",
        style=Markup(TEMPLATES.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        next_number=numbers.__next__,
    )
    return page.strip().encode("utf-8", "surrogateescape") + b"\n"
