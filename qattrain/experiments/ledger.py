"""Which cells of a sweep are finished, which failed, which are open. No torch in here."""

from collections.abc import Iterator

from qattrain.errors import RecordError
from qattrain.experiments.folder import Cell, SweepFolder


class Ledger:
    """Which cells are finished, which failed and which are open, according to the files of the folder.

    open: by name. finished: accuracies by name. failed: error lines by name; old failures do not count, because a sweep
    tries those cells again: those older than the ledger, or as given with their times. grows: there may be more cells
    later.
    """

    grows = False

    def __init__(
        self, folder: SweepFolder, cells: list[Cell], old_failures: dict[str, int | None] | None = None
    ) -> None:
        self.folder = folder
        now = {cell.name: folder.failure_time(cell.name) for cell in cells}
        self.old_failures = now if old_failures is None else old_failures
        self.open = {cell.name: cell for cell in cells}
        self.finished: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.damaged: dict[str, str] = {}  # what is wrong with the results of open cells, by name
        list(self._ended(cells))

    def ended(self) -> Iterator[tuple[str, float | str]]:
        """Name, and accuracy or error line, of every cell that ended since the last call."""
        touched = self.folder.touched()  # not all cells of a large sweep
        return self._ended([cell for name, cell in self.open.items() if name in touched])

    def _ended(self, cells: list[Cell]) -> Iterator[tuple[str, float | str]]:
        for cell in cells:
            outcome = self.outcome(cell)
            if outcome is not None:
                del self.open[cell.name]
                if isinstance(outcome, float):
                    self.finished[cell.name] = outcome
                else:
                    self.failed[cell.name] = outcome
                yield cell.name, outcome

    def ready(self) -> list[Cell]:
        """The open cells whose source, if any, is finished. Some may be claimed."""
        return [cell for cell in self.open.values() if cell.source is None or cell.source in self.finished]

    def outcome(self, cell: Cell) -> float | str | None:
        """Accuracy or error line of the cell; None: it is open, as it is if its result is damaged.

        Running a cell that has its last checkpoint only writes the result again.
        """
        try:
            result = self.folder.result(cell)
        except RecordError as error:
            self.damaged[cell.name], result = str(error), None
        if result is not None:
            return float(result["accuracy"])
        is_old = self.folder.failure_time(cell.name) == self.old_failures[cell.name]
        return None if is_old else self.folder.failure(cell)
