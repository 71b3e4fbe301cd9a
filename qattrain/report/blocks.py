"""What a page is made of: sections of texts, tables, charts, pictures and commands. No HTML in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup


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
