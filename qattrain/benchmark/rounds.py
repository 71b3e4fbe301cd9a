"""The benchmark itself: what a contender is, how they are measured in turn, and how busy the machine was meanwhile.

They are measured round after round, so that whatever slows the machine slows all of them equally.
"""

import fnmatch
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from qattrain.config.chain import MNIST_SHAPE
from qattrain.data import ImageSet
from qattrain.errors import ConfigError, QattrainError, did_you_mean
from qattrain.runs.environment import describe_environment, keep_freed_memory, package_version, pick_precision

CLASSES = 10
SEED = 0
DISCARDED_ROUNDS = 1  # memory is fetched, caches fill, the first batch sets the scales
LISTENING_SECONDS = 1.0  # before the start, to see whether the machine is idle
BUSY_CORES = 0.1  # of one core: more than this in other processes makes a benchmark doubtful
REFERENCES = {"training": ("plain", "float"), "inference": ("ort-fp32", "ort-int8")}
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "brevitas")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """What the contenders of a benchmark share.

    training, inference: images; those of inference are classified in batches of 1 and again in batches of 1,000.
    rounds: how often each contender is measured, the epochs of its training. precision: of our own training, fp32 or
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
    """It has a row in the result for each of its batch sizes.

    what: a sentence. build: raises QattrainError, with the remedy, if it cannot run.
    """

    name: str
    what: str
    batches: tuple[int, ...]
    build: Callable[[Workload], dict[int, Ready]]  # by batch size


def synthetic_images(count: int) -> ImageSet:
    """Noise with random labels: the speeds do not depend on the pixels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (count, *MNIST_SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.randint(0, CLASSES, (count,), generator=generator))


STAT = Path("/proc/stat")
_WORKING = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; not idle, nor waiting for disks


class BusyMeter:
    """Counts the processor seconds of the whole machine without those of this process and its finished children."""

    def __init__(self) -> None:
        self._last = _seconds()

    def others_cores(self) -> float | None:
        """Cores that other processes kept busy since the last call; None if the system does not say (not Linux)."""
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


@dataclass
class Row:
    """One contender at one batch size.

    repeats: images per second, one per round. images_per_second: their median. ratios: of medians, to the row of that
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
    """Build all contenders, then measure each once per round. references: names of the rows that ratios refer to."""
    rows, ready = [], []
    for contender in contenders:
        try:
            built, missing = contender.build(workload), None
        except QattrainError as error:
            built, missing = {}, str(error)
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


def _ratio(row: Row, name: str, rows: list[Row]) -> float | None:
    """Of medians; in training a reference has one row, in inference one for each batch size."""
    found = [other for other in rows if other.name == name]
    reference = next((other for other in found if other.batch == row.batch), found[0] if found else None)
    if reference is None or not reference.images_per_second or row.images_per_second is None:
        return None
    return row.images_per_second / reference.images_per_second


@dataclass(frozen=True)
class Effort:
    """How much is measured. train_images: an epoch of each contender; predicted_images: a round of inference."""

    repeats: int
    train_images: int
    predicted_images: int


Groups = Mapping[str, Sequence[Contender]]  # "training" and "inference"
FULL = Effort(repeats=7, train_images=32 * 128, predicted_images=1000)
QUICK = Effort(repeats=3, train_images=5 * 128, predicted_images=1000)


def choose(groups: Groups, only: Sequence[str]) -> dict[str, list[Contender]]:
    """The contenders whose names match one of the patterns; all if there are no patterns.

    Raises ConfigError for a pattern that matches no name.
    """
    names = [contender.name for group in groups.values() for contender in group]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            hint = did_you_mean(pattern, names)
            raise ConfigError(f"--only {pattern!r}: no contender has that name; {hint}allowed: {', '.join(names)}")
    return {
        group: [c for c in table if not only or any(fnmatch.fnmatchcase(c.name, pattern) for pattern in only)]
        for group, table in groups.items()
    }


def run_benchmark(
    groups: Groups, effort: Effort, only: Sequence[str], threads: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and return plain values: the rows of each group, the machine, versions, and how busy it was.

    threads: of training; inference uses one. say: called with a line of progress now and then. Raises ConfigError.
    """
    chosen, start = choose(groups, only), time.perf_counter()
    keep_freed_memory()  # as our training does: all contenders have it
    precision = pick_precision("auto", CPU)
    meter = BusyMeter()
    time.sleep(LISTENING_SECONDS)
    before, during = meter.others_cores(), []
    if before is not None and before > BUSY_CORES:
        say(f"other processes use {before:.1f} cores: stop them, or do not trust the numbers below")
    rows: dict[str, list[Row]] = {}
    used = threads or torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # as they were
        images = synthetic_images(effort.train_images), synthetic_images(effort.predicted_images)
        workload = Workload(*images, DISCARDED_ROUNDS + effort.repeats, precision, stack)
        for group, contenders in chosen.items():
            torch.set_num_threads(used if group == "training" else 1)
            began = time.perf_counter()

            def after_round(number: int, group: str = group, began: float = began) -> None:
                during.append(meter.others_cores())
                say(f"{group}: round {number + 1} of {workload.rounds} done, {time.perf_counter() - began:.0f} s")

            rows[group] = measure(contenders, workload, REFERENCES[group], after_round) if contenders else []
    heard = [cores for cores in during if cores is not None]
    median = statistics.median(heard) if heard else None
    return {
        **{group: [asdict(row) for row in measured] for group, measured in rows.items()},
        "environment": describe_environment(CPU) | {"versions": {name: package_version(name) for name in PACKAGES}},
        "precision": precision,
        "threads": {"training": used, "inference": 1},
        "train_images": effort.train_images,
        "predicted_images": effort.predicted_images,
        "repeats": effort.repeats,
        "discarded_rounds": DISCARDED_ROUNDS,
        "other_processes_cores": {
            "before": before,
            "median": median,  # of the rounds, as the results are: a short burst in one round spoils neither
            "worst": max(heard, default=None),
            "allowed": BUSY_CORES,
        },
        "busy": None if median is None else median > BUSY_CORES,
        "seconds": time.perf_counter() - start,
    }
