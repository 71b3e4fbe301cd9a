"""What a topic is, and what it found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from qattrain.explain.lab import Lab


@dataclass(frozen=True)
class Table:
    """Measured numbers as a person reads them. Columns named in `left`, and the first, are text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an experiment showed.

    numbers: for `--json`, plain values, nothing not finite. answer: paragraphs; every number in them is from this run.
    look: where in the code it stands, and what to change. paper: who described it. figure: the picture.
    """

    numbers: dict[str, Any]
    tables: list[Table]
    answer: list[str]
    look: list[str]
    paper: str
    figure: Figure


@dataclass(frozen=True)
class Topic:
    """A question, and the experiment that answers it."""

    question: str
    explain: Callable[[Lab], Explanation]
