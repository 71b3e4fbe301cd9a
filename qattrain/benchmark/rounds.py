"""Contenders measured in turn, round after round, so that whatever slows the machine slows all of them alike."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qattrain.benchmark.contender import Contender, Ready, Workload
from qattrain.errors import QattrainError

DISCARDED_ROUNDS = 1  # memory is fetched, caches fill, the first batch sets the scales


@dataclass
class Row:
    """One contender at one batch size.

    repeats: images per second, one a round. images_per_second: their median. ratios: of medians, to the row of that
    name. missing: why it was not measured, and the remedy.
    """

    name: str
    what: str
    batch: int
    detail: str = ""
    repeats: list[float] = field(default_factory=list)
    images_per_second: float | None = None
    ratios: dict[str, float | None] = field(default_factory=dict)
    missing: str | None = None


def measure(
    contenders: Sequence[Contender], workload: Workload, references: Sequence[str], after_round: Callable[[int], None]
) -> list[Row]:
    """Build all contenders, then ask each once a round. references: names of rows that ratios are taken to."""
    rows, ready = [], []
    for contender in contenders:
        built, missing = _build(contender, workload)
        for batch in contender.batches:
            row = Row(contender.name, contender.what, batch, missing=missing)
            rows.append(row)
            if missing is None:
                row.detail = built[batch].detail
                ready.append((row, built[batch]))
    for number in range(workload.rounds):
        for row, one in ready:
            speed = one.measure()
            if number >= DISCARDED_ROUNDS:
                row.repeats.append(speed)
        after_round(number)
    for row, _ in ready:
        row.images_per_second = statistics.median(row.repeats)
    for row in rows:
        row.ratios = {name: _ratio(row, name, rows) for name in references}
    return rows


def _build(contender: Contender, workload: Workload) -> tuple[dict[int, Ready], str | None]:
    try:
        return contender.build(workload), None
    except QattrainError as error:
        return {}, str(error)


def _ratio(row: Row, name: str, rows: list[Row]) -> float | None:
    """Of medians; in training a reference has one row, in inference one for each batch size."""
    found = [other for other in rows if other.name == name]
    reference = next((other for other in found if other.batch == row.batch), found[0] if found else None)
    if reference is None or not reference.images_per_second or row.images_per_second is None:
        return None
    return row.images_per_second / reference.images_per_second
