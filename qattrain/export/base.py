"""What every exporter is: files from integers, and a way to run those files, so that equality can be proven."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qattrain.integer import IntegerModel

Files = dict[str, bytes]  # name -> content; a file with the same name in the target folder is what gets written
Runner = Callable[[NDArray[np.uint8]], NDArray[np.int32]]  # images (N, 1, 28, 28) -> logits (N, classes)


@dataclass(frozen=True)
class ModelFacts:
    """What the integers do not say of themselves, for the files' documentation.

    test_accuracy: a fraction, as its run recorded it, or unknown.
    """

    name: str
    dataset: str
    class_names: tuple[str, ...]
    test_accuracy: float | None


@dataclass(frozen=True)
class Exporter:
    """One way to export.

    write: all files, from the integers alone; raises ExportError. layouts: what its third argument may be, the default
    first; empty where there is only one form (it is then ""). run: a context in which the files are executed.
    """

    write: Callable[[IntegerModel, ModelFacts, str], Files]
    run: Callable[[Files], AbstractContextManager[Runner]]
    layouts: tuple[str, ...] = ()
