"""What a page is made of: sections of texts, tables, charts, pictures and commands. No HTML in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from qattrain.config.sources import leaves
from qattrain.report.drawing import CHART_INCHES, Series, draw_lines, inline_svg

UNKNOWN = "-"


class Shaded(NamedTuple):
    """A cell with a tint behind it. strength: 0 (none) to 1."""

    text: str
    strength: float


Cell = str | Shaded


@dataclass(frozen=True)
class Text:
    """A paragraph. notice: something nobody may miss."""

    text: str
    notice: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Facts:
    """Key figures: what each is, its value, and a remark."""

    facts: Sequence[tuple[str, str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows whose first cell is their heading. left: columns, by name, that hold text. folded: shown on demand.
    compact: many short rows."""

    ident: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: Sequence[str] = ()
    folded: bool = False
    compact: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption, and the table of what it shows."""

    svg: Markup
    title: str
    caption: str
    table: Table | None = None
    kind: str = "chart"


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room."""

    charts: Sequence[Chart]
    kind: str = "charts"


class Tile(NamedTuple):
    """A small image: its PNG as a data URI, what it shows in words, the lines below it."""

    source: str
    words: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Tiles:
    """Small images in a grid. side: of each, in CSS pixels."""

    title: str
    caption: str
    tiles: Sequence[Tile]
    side: int
    table: Table | None = None
    kind: str = "tiles"


@dataclass(frozen=True)
class Commands:
    """Lines to be typed, each a command with its arguments."""

    caption: str
    lines: Sequence[Sequence[str]]
    kind: str = "commands"


Block = Text | Facts | Table | Charts | Tiles | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    ident: str
    heading: str
    blocks: Sequence[Block] = ()
    parts: Sequence["Section"] = field(default=())


def line_chart(ident: str, title: str, series: Sequence[Series], labels: tuple[str, str], caption: str) -> Chart:
    """Lines over epochs, logarithmic, and their table; labels: of both axes, with units.

    A series without points is not shown; the others look as they would beside it.
    """
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    draw_lines(figure.subplots(), series, *labels)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    series = [one for one in series if len(one.x)]
    described = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    points = [dict(zip(one.x, one.y, strict=True)) for one in series]
    epochs = sorted({epoch for one in points for epoch in one})
    rows = [[f"{x:g}", *(f"{one[x]:.4g}" if x in one else UNKNOWN for one in points)] for x in epochs]
    table = Table(f"{ident}-table", f"{title}: {labels[1]}", [labels[0], *(one.name for one in series)], rows)
    svg = inline_svg(figure, ident, title, f"{labels[1]} over {labels[0]}: {described}.")
    return Chart(svg, title, caption, table)


def recorded_section(
    ident: str, what: str, recorded: Sequence[tuple[str, dict[str, Any]]], side_by_side: bool
) -> Section:
    """All values that every name has in common; where `side_by_side`, before them those that differ.

    what: "configuration" or "environment". recorded: names of networks and what is recorded of each, {} if nothing.
    """
    known = {name: _flat(values) for name, values in recorded if values}
    blocks: list[Block] = [Text(f"{name} does not record its {what}.") for name, values in recorded if not values]
    keys = dict.fromkeys(key for values in known.values() for key in values)
    table = {key: [values.get(key, UNKNOWN) for values in known.values()] for key in keys}
    differing = [[key, *row] for key, row in table.items() if len(set(row)) > 1]
    common = [[key, row[0]] for key, row in table.items() if len(set(row)) == 1]
    if differing and side_by_side:
        caption, columns = f"{what}: what differs".capitalize(), ["setting", *known]
        blocks.append(Table(f"{ident}-differs", caption, columns, differing, left=list(known), compact=True))
    if common:
        caption = f"{what}{'' if len(known) == 1 else ': what all have in common'}".capitalize()
        blocks.append(Table(f"{ident}-common", caption, ["setting", "value"], common, left=["value"], compact=True))
    return Section(ident, what.capitalize(), blocks)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted names and what they are; what is not set is `-`."""
    return {".".join(path): UNKNOWN if value in (None, {}) else str(value) for path, value in leaves(values)}
