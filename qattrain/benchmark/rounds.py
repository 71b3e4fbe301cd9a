"""The benchmark itself: what a contender is, contenders measured in turn, and how busy the machine was meanwhile.

All are measured round after round, so that whatever slows the machine slows all of them alike.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from qattrain.data import ImageSet
from qattrain.errors import QattrainError

CLASSES = 10
SEED = 0


@dataclass(frozen=True)
class Workload:
    """What the contenders of a benchmark share.

    training, inference: images; those of inference are asked for once in batches of one, once in batches of 1,000.
    rounds: how often each contender will be asked, the epochs of its training. precision: of our own training, fp32 or
    bf16. stack: what contenders open (compiled files) and leave open until the benchmark ends.
    """

    training: ImageSet
    inference: ImageSet
    rounds: int
    precision: str
    stack: ExitStack


class Ready(NamedTuple):
    """A built contender.

    measure: trains one epoch, or classifies all images of inference, and returns images per second. model: what it
    trains; None in inference. detail: what was settled while building, for the reader.
    """

    measure: Callable[[], float]
    model: nn.Module | None = None
    detail: str = ""


@dataclass(frozen=True)
class Contender:
    """A row of the result for each of its batch sizes.

    what: a sentence. build: raises QattrainError, saying the remedy, where it cannot run.
    """

    name: str
    what: str
    batches: tuple[int, ...]
    build: Callable[[Workload], dict[int, Ready]]  # by batch size


def synthetic_images(count: int) -> ImageSet:
    """Noise with random labels: no speed here depends on what the pixels show."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.randint(0, CLASSES, (count,), generator=generator))


BUSY_CORES = 0.1  # of one core: more than this in other processes makes a benchmark doubtful
STAT = Path("/proc/stat")
_WORKING = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; not idle, nor waiting for disks


class BusyMeter:
    """Counts processor seconds of the whole machine less those of this process and its finished children."""

    def __init__(self) -> None:
        self._last = _seconds()

    def others_cores(self) -> float | None:
        """Cores that other processes kept busy since the last call; None where the system does not tell (not Linux)."""
        before, self._last = self._last, _seconds()
        if before is None or self._last is None:
            return None
        wall, machine, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(0.0, (machine - own) / wall) if wall > 0 else None


def _seconds() -> tuple[float, float, float] | None:
    """(wall clock, all processors at work, this process at work)."""
    try:
        fields = STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    ticks = sum(int(fields[index]) for index in _WORKING)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


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
