"""What the tool prints: results on stdout, progress and notices on stderr; on request one JSON object on stdout instead.

Also the one kind of table, which the terminal and the page of a report both show, and how numbers are written.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

FILE_COLUMNS = 160  # of text that goes to a file or a pipe
UNKNOWN = "-"  # a value that is missing or does not apply


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns. left: names of the columns, besides the first, that hold text, not numbers.

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

    @classmethod
    def of(
        cls, title: str, cells: Sequence[Mapping[str, str]], left: Sequence[str] = (), folded: bool = False
    ) -> "Table":
        """From rows that map the columns, the same in every row, to text. There must be at least one row."""
        return cls(title, list(cells[0]), [list(row.values()) for row in cells], left, folded)


class Console:
    """The only printer of the tool. With `as_json`, stdout carries the JSON object and nothing else.

    is_live: whether stderr is a screen on which a bar can be drawn over and over.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.progress = _printer(sys.stderr)
        # Results go to stderr where stdout is taken.
        self.rich = self.progress if as_json else _printer(sys.stdout)
        self.is_live = self.progress.is_terminal and not self.progress.is_dumb_terminal

    def text(self, line: str) -> None:
        """A line of the result, printed unchanged and not wrapped."""
        self.rich.print(line, markup=False, highlight=False, soft_wrap=True)

    def status(self, line: str) -> None:
        """A line about what is happening, not part of the result: on stderr."""
        self.progress.print(line, markup=False, highlight=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """A heading: bold, wrapped between words."""
        self.rich.print(Text(text, style="bold"), width=min(100, self.rich.width))

    def paragraph(self, text: str) -> None:
        """Prose, wrapped between words, followed by an empty line."""
        self.rich.print(Text(text + "\n"), width=min(100, self.rich.width))

    def notice(self, text: str | None) -> None:
        """Something nobody may miss, in a box; nothing for None."""
        if text is not None:
            panel = Panel(text, title="NOTICE", border_style="bold yellow", width=min(100, self.progress.width))
            self.progress.print(panel)

    def table(self, table: Table) -> None:
        """The columns and rows of a table, without its title."""
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(table.columns):
            is_text = index == 0 or column in table.left
            shown.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for row in table.rows:
            shown.add_row(*row)
        self.rich.print(shown, markup=False, highlight=False)

    def result(self, value: dict[str, Any]) -> None:
        """The command's JSON object, if `--json` was given."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()


def _printer(stream: TextIO) -> RichConsole:
    # A file or pipe has no width of its own: wide enough that no table is cut.
    return RichConsole(file=stream, width=None if stream.isatty() or "COLUMNS" in os.environ else FILE_COLUMNS)


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


def saved_line(run_dir: Path) -> str:
    """Where a run is saved, and the command that evaluates it."""
    return f"saved in {run_dir}; evaluate it again with:  qattrain eval {shlex.quote(str(run_dir))}"


def counted(count: int, noun: str) -> str:
    """1 -> `1 epoch`, 2000 -> `2,000 epochs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def age(seconds: float) -> str:
    """3700 -> `1 h`: whole units, rounded down."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def p_value(p: float) -> str:
    """0.00646 -> `0.0065`; anything below 1e-99, where floats run out -> `< 1e-99`."""
    return "< 1e-99" if p < 1e-99 else f"{p:.2g}"
