"""What the tool prints: results on stdout, progress and notices on stderr. With `--json`, stdout has one JSON object.

Also the one kind of table, which the terminal and the page of a report both show, and how numbers are written.
"""

import codecs
import io
import itertools
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from qattrain.files.escapes import visible

UNKNOWN = "-"  # a value that is missing or does not apply
FILE_COLUMNS = 160  # of text that goes to a file or a pipe
WIDEST_PROSE = 100  # longer lines are hard to read
NARROWEST_PROSE = 24  # of a column of prose: where less is left, it is shown below
GAPS = (3, 2)  # spaces between the columns of a table, and where that is too wide
RULE = "─"
ASCII = dict(
    zip("░▒▓█▁▂▃▄▅▆▇─…·—", ".:+#_.-=+*%-..-", strict=True)
)  # our own signs, where an encoding has only letters


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns, the most important columns first.

    left: names of the columns, besides the first, that hold text, not numbers. keys: how many leading columns say what
    a row is about. prose: columns of sentences, which may be wrapped. strong: columns that stand out.

    On a page only: folded: hidden until it is opened; compact: little space between rows; tints: for each cell how
    strongly it is tinted, 0 (not at all) to 1.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()
    folded: bool = False
    compact: bool = False
    tints: Sequence[Sequence[float]] = ()
    keys: int = 1
    prose: Sequence[str] = ()
    strong: Sequence[str] = ()

    @classmethod
    def of(cls, title: str, cells: Sequence[Mapping[str, str]], left: Sequence[str] = (), **others: Any) -> "Table":
        """From rows that map the columns, the same in every row, to text. There must be at least one row."""
        return cls(title, list(cells[0]), [list(row.values()) for row in cells], left, **others)


class Printer(RichConsole):
    """Prints through rich, bars and boxes too; of control characters only rich's own and ends of lines get through."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What every way of printing comes down to, but for `out`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))


class Console:
    """The only printer of the tool. With `as_json`, stdout carries the JSON object and nothing else.

    Names in a line may be of a stranger: whatever they hold, a line stays one line, and every character shows.
    is_live: whether stderr is a screen on which a bar can be drawn over and over.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.progress = _printer(sys.stderr)
        # Results go to stderr where stdout is taken.
        self.rich = self.progress if as_json else _printer(sys.stdout)
        self.is_live = self.progress.is_terminal and not self.progress.is_dumb_terminal

    def text(self, line: str, strong: str = "", dim: str = "") -> None:
        """A line of the result, on a terminal wrapped between words; a part of it may stand out, another one recede."""
        shown = Text(visible(line))
        for part, style in ((strong, "bold"), (dim, "dim")):
            if part:
                shown.highlight_words([visible(part)], style)
        self.rich.print(shown, soft_wrap=not self.rich.is_terminal)

    def picture(self, lines: str) -> None:
        """A picture made of signs, printed unchanged."""
        self.rich.print(Text(lines), soft_wrap=True)

    def command(self, what_for: str, words: Sequence[str]) -> None:
        """A command to copy, never wrapped."""
        self.rich.print(Text(visible(f"{what_for}:  {shlex.join(words)}")), soft_wrap=True)

    def status(self, line: str) -> None:
        """A line about what is happening, not part of the result: on stderr."""
        self.progress.print(Text(visible(line)), soft_wrap=not self.progress.is_terminal)

    def busy(self, line: str) -> AbstractContextManager[object]:
        """Within it the line is shown on stderr, if that is a terminal; on a live one it vanishes at the end."""
        if self.is_live:
            return self.progress.status(Text(visible(line)), spinner="line")
        if self.progress.is_terminal:
            self.status(line)
        return nullcontext()

    def heading(self, text: str) -> None:
        """A heading: bold, wrapped between words."""
        self.rich.print(Text(text, style="bold"), width=min(WIDEST_PROSE, self.rich.width))

    def paragraph(self, text: str) -> None:
        """Prose, wrapped between words, followed by an empty line."""
        self.rich.print(Text(text + "\n"), width=min(WIDEST_PROSE, self.rich.width))

    def notice(self, text: str | None) -> None:
        """Something nobody may miss, in a box; nothing for None."""
        if text is not None:
            width = min(WIDEST_PROSE, self.progress.width)
            self.progress.print(Panel(Text(visible(text)), title="NOTICE", border_style="bold yellow", width=width))

    def table(self, table: Table) -> None:
        """The columns and rows of a table, without its title; nothing is cut, however narrow the screen is."""
        for line in laid_out(table, self.rich.width):
            self.rich.print(line, soft_wrap=True)
        self.rich.print()

    def saved(self, run_dir: Path, unusable: str | None) -> None:
        """Where a run is saved, and the command that evaluates it; or why that would be refused."""
        self.text(f"saved in {run_dir}", dim=str(run_dir))
        if unusable is None:
            self.command("evaluate it again with", ["qattrain", "eval", str(run_dir)])
        else:
            self.notice(f"It can be neither evaluated again nor exported: {unusable}")

    def result(self, value: dict[str, Any]) -> None:
        """The command's JSON object, if `--json` was given."""
        if self.as_json:
            text = json.dumps(value, allow_nan=False).replace("\x7f", r"\u007f")  # the one that JSON leaves as it is
            _printer(sys.stdout).out(text, highlight=False)


def _printer(stream: TextIO) -> Printer:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="qattrain")
    # A file or pipe has no width of its own: wide enough that no table is cut.
    return Printer(file=stream, width=None if stream.isatty() or "COLUMNS" in os.environ else FILE_COLUMNS)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(ASCII.get(letter, "?") for letter in letters), error.end


codecs.register_error("qattrain", _in_ascii)


class _Column:
    """A column of a table on a terminal. width: of its widest cell, and of its heading on one line or on several."""

    def __init__(self, table: Table, index: int) -> None:
        name = table.columns[index]
        self.name = visible(name)
        self.cells = [visible(row[index]) for row in table.rows]
        self.is_left = index == 0 or name in table.left or name in table.prose
        self.is_prose = name in table.prose
        self.style = "bold" if name in table.strong else ""
        self.broad = max(map(cell_len, [self.name, *self.cells]))
        self.slim = max(map(cell_len, [*self.name.split(), *self.cells]))

    def lines(self, number: int, width: int) -> list[str]:
        """The lines of a cell."""
        cell = self.cells[number]
        return textwrap.wrap(cell, width) if self.is_prose else [cell]


def laid_out(table: Table, width: int) -> Iterator[Text]:
    """The lines of a table on a screen so many characters wide. No cell is cut.

    Where the columns do not fit beside each other, headings are broken between words; then the table is split into
    several, one below the other, with the key columns in each, or, if these leave little room, on a line of their own.
    """
    columns = [_Column(table, index) for index in range(len(table.columns))]
    for is_slim, gap in ((False, GAPS[0]), (True, GAPS[1])):
        if widths := _widths(columns, width, gap, is_slim):
            yield from _lines(columns, widths, gap)
            return
    first = table.keys if table.keys < len(columns) else 0
    keys, others, gap = columns[:first], columns[first:], GAPS[1]
    taken = sum(key.slim + gap for key in keys)
    is_apart = taken > width / 2.5 or any(taken + column.slim > width for column in others if not column.is_prose)
    repeated = [] if is_apart else keys
    while others:
        count = 1
        while count < len(others) and _widths(repeated + others[: count + 1], width, gap, is_slim=True):
            count += 1
        part, others = repeated + others[:count], others[count:]
        widths = _widths(part, width, gap, is_slim=True) or [min(column.slim, width) for column in part]
        yield from _lines(part, widths, gap, keys if is_apart else ())
        if others:
            yield Text()


def _widths(columns: Sequence[_Column], width: int, gap: int, is_slim: bool) -> list[int] | None:
    """How wide each column is on a screen of `width`; None if they do not fit. A column of prose gives way."""
    widths = [column.slim if is_slim else column.broad for column in columns]
    excess = sum(widths) + gap * (len(columns) - 1) - width
    for index, column in enumerate(columns):
        if column.is_prose and excess > 0:
            narrower = max(NARROWEST_PROSE, widths[index] - excess)
            excess -= max(0, widths[index] - narrower)
            widths[index] = min(widths[index], narrower)
    return widths if excess <= 0 else None


def _lines(
    columns: Sequence[_Column], widths: Sequence[int], gap: int, apart: Sequence[_Column] = ()
) -> Iterator[Text]:
    """Headings, a rule and the rows. apart: key columns, shown on a line above each row."""

    def beside(cells: Sequence[Sequence[str]], styles: Sequence[str]) -> Iterator[Text]:
        """Cells of one or more lines."""
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            line = Text()
            for column, part, wide, style in zip(columns, parts, widths, styles, strict=True):
                space = " " * (wide - cell_len(part))
                line.append(" " * gap if column is not columns[0] else "")
                line.append(part + space if column.is_left else space + part, style)
            line.rstrip()
            yield line

    headings = [
        textwrap.wrap(column.name, wide, break_long_words=False) for column, wide in zip(columns, widths, strict=True)
    ]
    height = max(map(len, headings))
    yield from beside([[""] * (height - len(lines)) + lines for lines in headings], ["bold"] * len(columns))
    yield Text(RULE * (sum(widths) + gap * (len(widths) - 1)), "dim")
    styles = [column.style for column in columns]
    for number in range(len(columns[0].cells)):
        if apart:
            others = (f"  {key.name} {key.cells[number]}" for key in apart[1:])
            yield Text(apart[0].cells[number] + "".join(others))
        pairs = zip(columns, widths, strict=True)
        yield from beside([column.lines(number, wide) for column, wide in pairs], styles)


def number(value: float | None, form: str) -> str:
    """The value in Python's format `form`; `-` for None."""
    return UNKNOWN if value is None else format(value, form)


def spread(low: float | None, high: float | None) -> str:
    """The smallest and the largest of several values: `0.155 to 0.236`, or one number if they are equal."""
    return number(low, ".3g") if low == high else f"{number(low, '.3g')} to {number(high, '.3g')}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9943 -> `99.43 %`; None -> `-`."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f} %"


def confidence(interval: Sequence[float]) -> str:
    """(0.9926, 0.9957) -> `95 % interval 99.26 % to 99.57 %`."""
    low, high = interval
    return f"95 % interval {percent(low)} to {percent(high)}"


def counted(count: int, noun: str, several: str = "") -> str:
    """1 -> `1 epoch`, 2000 -> `2,000 epochs`. several: the noun's plural, if that is not with an s."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def age(seconds: float) -> str:
    """3700 -> `1 h`: whole units, rounded down."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def p_value(p: float) -> str:
    """0.00646 -> `0.0065`; anything below 1e-99, where floats run out -> `< 1e-99`."""
    return "< 1e-99" if p < 1e-99 else f"{p:.2g}"
