"""What can be done with a CKPT: evaluate it on its dataset's test images, classify pictures, export it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qattrain.data import Dataset, ImageSet, load_dataset
from qattrain.errors import CheckpointError, pick
from qattrain.evaluation.metrics import Evaluation, evaluate
from qattrain.evaluation.networks import (
    ENGINES,
    Mismatches,
    Network,
    Packed,
    Trained,
    compare_with_integers,
    load_network,
)
from qattrain.export import EXPORTERS
from qattrain.export.base import Exported, check_folder, export_model, settled_layout
from qattrain.runs.environment import pick_device


@dataclass(frozen=True)
class Outcome:
    """What was evaluated, by which engine, the result, and the test images with their labels, on the CPU.

    mismatches: against the integers, if asked for and if every layer is quantized.
    """

    network: Network
    engine: str
    evaluation: Evaluation
    test: ImageSet
    mismatches: Mismatches | None

    @property
    def labels(self) -> Tensor:
        """The true classes, int64 (N,)."""
        return self.test.labels


def evaluate_checkpoint(
    path: Path, data_dir: Path, engine: str | None = None, limit_test: int | None = None, verify: bool = False
) -> Outcome:
    """Load what is in `path` and evaluate it, as `evaluate_network` does. Raises CheckpointError, too."""
    if engine is not None:
        pick(ENGINES, engine, "--engine")
    return evaluate_network(load_network(path), path, data_dir, engine, limit_test, verify)


def evaluate_network(
    network: Network,
    path: Path,
    data_dir: Path,
    engine: str | None = None,
    limit_test: int | None = None,
    verify: bool = False,
) -> Outcome:
    """Evaluate `network`, read from `path`, on its dataset's test images, as many as its run used without a limit.

    engine: a key of ENGINES; None: torch for a checkpoint, integer for a packed file. verify: also count what differs
    from the integers. Raises ConfigError, DataError, ExportError, CheckpointError for a dataset of other classes.
    """
    name = engine or ("integer" if isinstance(network, Packed) else "torch")
    dataset = load_test_data(network, path, data_dir)
    device = pick_device("auto")  # not the one it was trained on, which this machine may lack
    if isinstance(network, Trained):
        network.model.to(device)
        threads = network.checkpoint.config.train.threads
        if threads is not None:
            torch.set_num_threads(threads)  # float sums are equal for equal numbers of threads
    images = dataset.test.head(limit_test or network.limit_test)
    test = images.to(device)
    mismatches = None
    with ENGINES[name](network) as predict:
        result = evaluate(predict, test)
        if verify and network.quantized:
            shown = network.model if isinstance(network, Trained) and name == "torch" else None
            mismatches = compare_with_integers(predict, network.integers(), test.images, shown)
    return Outcome(network, name, result, images, mismatches)


def rank_classes(network: Network, images: NDArray[np.uint8], top: int) -> list[list[tuple[int | str, float]]]:
    """For each of `images` (N, 1, 28, 28) its `top` classes and their probabilities, the likeliest first.

    A class that is a digit is a number, any other its name. The integers compute it if the network is quantized.
    """
    with ENGINES["integer" if network.quantized else "torch"](network) as predict:
        probabilities = predict(torch.from_numpy(images)).double().softmax(1)
    names = [int(name) if name.isdecimal() else name for name in network.facts.class_names]
    values, labels = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        [(names[label], p) for label, p in zip(row_labels[:top], row[:top], strict=True)]
        for row_labels, row in zip(labels.tolist(), values.tolist(), strict=True)
    ]


def load_test_data(network: Network, path: Path, data_dir: Path) -> Dataset:
    """The dataset `network`, read from `path`, was trained on. Raises DataError, CheckpointError for other classes."""
    facts = network.facts
    dataset = load_dataset(facts.dataset, data_dir)
    if dataset.classes != len(facts.class_names):
        raise CheckpointError(
            f"{path} was trained for {len(facts.class_names)} classes, "
            f"{dataset.name} in {data_dir} has {dataset.classes}; use the data it was trained on"
        )
    return dataset


EXPORT_FOLDER = "export"


@dataclass(frozen=True)
class ExportRequest:
    """What to write and how to verify it.

    to: a key of EXPORTERS. layout: one of that exporter's; None: its default. folder: None: `export` beside the file.
    force: write even into a folder that holds other files. verify_images: number of test images; None: all. verify:
    False: write without verifying.
    """

    to: str
    layout: str | None = None
    folder: Path | None = None
    force: bool = False
    verify_images: int | None = None
    verify: bool = True


def export_network(path: Path, request: ExportRequest, data_dir: Path) -> tuple[Network, Exported]:
    """Export what is in `path`. Writes nothing if it raises ConfigError, CheckpointError, DataError, ExportError."""
    exporter = pick(EXPORTERS, request.to, "--to")
    # Refuse early what can be refused: verifying takes seconds.
    settled_layout(exporter, request.layout)
    folder = request.folder or default_folder(path)
    check_folder(folder, request.force)
    network = load_network(path)
    integers = network.integers()
    images = None
    if request.verify:
        images = load_test_data(network, path, data_dir).test.head(request.verify_images).images.numpy()
    exported = export_model(exporter, integers, network.facts, request.layout, images, folder, request.force)
    return network, exported


def default_folder(path: Path) -> Path:
    """`<run>/export` for a checkpoint in `<run>` and for a packed file in `<run>/export`."""
    return path.parent if path.parent.name == EXPORT_FOLDER else path.parent / EXPORT_FOLDER
