"""The whole benchmark: which contenders, how long, on how busy a machine."""

import fnmatch
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qattrain.benchmark.inference import INFERENCE
from qattrain.benchmark.rounds import (
    BUSY_CORES,
    DISCARDED_ROUNDS,
    BusyMeter,
    Contender,
    Row,
    Workload,
    measure,
    synthetic_images,
)
from qattrain.benchmark.training import TRAINING
from qattrain.errors import ConfigError
from qattrain.runs.environment import describe_environment, keep_freed_memory, package_version, pick_precision

LISTENING_SECONDS = 1.0  # before the start, to hear whether the machine is idle
REFERENCES = {"training": ("plain", "float"), "inference": ("ort-fp32", "ort-int8")}
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "brevitas")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Effort:
    """How much is measured. train_images: an epoch of each contender; predicted_images: a round of inference."""

    repeats: int
    train_images: int
    predicted_images: int


FULL = Effort(repeats=7, train_images=32 * 128, predicted_images=1000)
QUICK = Effort(repeats=3, train_images=5 * 128, predicted_images=1000)


def choose(only: Sequence[str]) -> dict[str, list[Contender]]:
    """The contenders of both groups whose names match one of the patterns; all where there is none.

    Raises ConfigError for a pattern that matches no name.
    """
    groups = {"training": TRAINING, "inference": INFERENCE}
    names = [contender.name for group in groups.values() for contender in group]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--only {pattern!r}: no contender has that name; allowed: {', '.join(names)}")
    return {
        group: [c for c in table if not only or any(fnmatch.fnmatchcase(c.name, pattern) for pattern in only)]
        for group, table in groups.items()
    }


def run_benchmark(
    effort: Effort, only: Sequence[str], threads: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and return plain values: `training` and `inference` rows, machine, versions, how busy it was.

    threads: of training; inference has one. say: told, a line each, what goes on. Raises ConfigError.
    """
    groups, start = choose(only), time.perf_counter()
    keep_freed_memory()  # as our training does: all contenders have it
    precision = pick_precision("auto", CPU)
    meter = BusyMeter()
    time.sleep(LISTENING_SECONDS)
    before, during = meter.others_cores(), []
    if before is not None and before > BUSY_CORES:
        say(f"other processes use {before:.1f} cores: stop them, or take what follows with doubt")
    rows: dict[str, list[Row]] = {}
    with ExitStack() as stack, _threads(threads) as used:
        images = synthetic_images(effort.train_images), synthetic_images(effort.predicted_images)
        workload = Workload(*images, DISCARDED_ROUNDS + effort.repeats, precision, stack)
        for group, contenders in groups.items():
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


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    """The number of threads for training; torch's own setting returns behind it."""
    own = torch.get_num_threads()
    try:
        yield asked or own
    finally:
        torch.set_num_threads(own)
