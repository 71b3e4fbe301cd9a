"""Where words go: text to stdout on a terminal, else to stderr; one JSON object to stdout when asked for."""

import json
import sys
from collections.abc import Sequence
from typing import Any


class Console:
    """The only printer of the tool. With `as_json`, stdout carries the JSON object and nothing else."""

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console as RichConsole

        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty() and not as_json
        # A file or pipe has no width of its own: wide enough that no table is cut.
        self.rich = RichConsole(file=sys.stdout) if self.is_terminal else RichConsole(stderr=True, width=160)

    def text(self, line: str) -> None:
        """A line for people, printed as it is."""
        self.rich.print(line, markup=False, highlight=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """What follows is about this: bold, wrapped between words."""
        from rich.text import Text

        self.rich.print(Text(text, style="bold"), width=min(100, self.rich.width))

    def paragraph(self, text: str) -> None:
        """Prose, wrapped between words, with a line of air below."""
        from rich.text import Text

        self.rich.print(Text(text + "\n"), width=min(100, self.rich.width))

    def notice(self, text: str) -> None:
        """Something nobody may miss."""
        from rich.panel import Panel

        self.rich.print(Panel(text, title="NOTICE", border_style="bold yellow", width=min(100, self.rich.width)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> None:
        """A table; columns named in `left`, and the first, are text, the others numbers."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            is_text = index == 0 or column in left
            table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for row in rows:
            table.add_row(*row)
        self.rich.print(table, markup=False, highlight=False)

    def result(self, value: dict[str, Any]) -> None:
        """The JSON object of the command, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()


def percent(fraction: float, digits: int = 2) -> str:
    """0.9943 -> `99.43 %`."""
    return f"{100 * fraction:.{digits}f} %"


def counted(number: int, noun: str) -> str:
    """1 -> `1 epoch`, 2000 -> `2,000 epochs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def age(seconds: float) -> str:
    """3700 -> `1 h`; whole units, rounded down."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def p_value(p: float) -> str:
    """0.00646 -> `0.0065`; below what floats can tell, only that."""
    return "< 1e-99" if p < 1e-99 else f"{p:.2g}"
