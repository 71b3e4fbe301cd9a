"""Who runs the cells: what processes on this machine and workers of a cluster have in common."""

from dataclasses import dataclass
from typing import Literal, Protocol

from qattrain.sweeps.folder import Cell
from qattrain.sweeps.grid import Point

MOST_DEATHS = 3  # of workers with the same cell: then it is the cell


@dataclass(frozen=True)
class Event:
    """What happened to a cell.

    progress: `share` of it is done. finished. failed: `text` says why. busy: another process works on it. lost: its
    worker died. stopped: as asked, and saved.
    """

    kind: Literal["progress", "finished", "failed", "busy", "lost", "stopped"]
    cell: str
    text: str = ""
    share: float = 0.0


class Crew(Protocol):
    """Settles the grid and runs cells, several at a time; writes their folders, result.json and failures."""

    def settle(self, points: list[Point]) -> list[Cell]:
        """The cells of the grid, with what is `auto` settled where they will run. Raises ConfigError, DataError."""

    def free(self) -> bool:
        """Whether another cell can be started."""

    def begin(self, cell: Cell) -> None:
        """Start, or go on with, a cell whose source, if it has one, is finished."""

    def events(self, seconds: float) -> list[Event]:
        """What has happened; waits for something at most that long. Raises any QattrainError that ends the sweep."""

    def close(self) -> None:
        """Stop what is running, saved where that is possible, and let go of everything."""
