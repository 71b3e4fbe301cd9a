"""What can be done with a CKPT: evaluate it on its dataset's test images, classify pictures, export it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
from qattrain.export.base import Exported, check_folder, export_model, settled_layout, settled_prefix
from qattrain.runs.environment import pick_device

EXPORT_FOLDER = "export"


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation. engine: a key of ENGINES. test: the images it used, with their labels, on the CPU.

    mismatches: with the integers; None if not asked for, or if a layer is float.
    """

    network: Network
    engine: str
    evaluation: Evaluation
    test: ImageSet
    mismatches: Mismatches | None


def evaluate_checkpoint(
    path: Path, data_dir: Path, engine: str | None = None, limit_test: int | None = None, verify: bool = False
) -> Outcome:
    """Load the network in `path`, then as `evaluate_network`. Also raises CheckpointError."""
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
    """Evaluate `network`, read from `path`, on its dataset's test images.

    engine: a key of ENGINES; None: torch for a checkpoint, integer for a packed file. limit_test: number of images;
    None: as many as its run used. verify: also count what differs from the integers. Raises ConfigError, DataError,
    ExportError, and CheckpointError for a dataset with other classes.
    """
    name = engine or ("integer" if isinstance(network, Packed) else "torch")
    dataset = load_test_data(network, path, data_dir)
    device = pick_device("auto")  # this machine may lack the one it was trained on
    if isinstance(network, Trained):
        network.model.to(device)
        threads = network.checkpoint.config.train.threads
        if threads is not None:
            torch.set_num_threads(threads)  # float sums depend on their number
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
    """The `top` classes of each of `images` (N, C, H, W) with their probabilities, the most probable first.

    Digits are returned as numbers, other classes by name. A quantized network is evaluated with its integers.
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


def export_network(
    path: Path,
    to: str,
    data_dir: Path,
    *,
    layout: str | None = None,
    prefix: str | None = None,
    folder: Path | None = None,
    force: bool = False,
    verify: bool = True,
    verify_images: int | None = None,
) -> tuple[Network, Exported]:
    """Verify and write the files of the network in `path`.

    to: a key of EXPORTERS. layout: one of that exporter's; None: its default. prefix: of C symbols; None: the default.
    folder: None: `export` beside the file. force: write even into a folder that holds other files. verify: False: write
    without verifying. verify_images: number of test images; None: all. Writes nothing if it raises ConfigError,
    CheckpointError, DataError, ExportError.
    """
    exporter = settled_prefix(pick(EXPORTERS, to, "--to"), prefix)
    folder = folder or default_folder(path)
    # Refuse early what can be refused: verifying takes seconds.
    settled_layout(exporter, layout)
    check_folder(folder, force)
    network = load_network(path)
    integers = network.integers()
    images = load_test_data(network, path, data_dir).test.head(verify_images).images.numpy() if verify else None
    return network, export_model(exporter, integers, network.facts, layout, images, folder, force)


def default_folder(path: Path) -> Path:
    """`<run>/export` for a checkpoint in `<run>` and for a packed file in `<run>/export`."""
    return path.parent if path.parent.name == EXPORT_FOLDER else path.parent / EXPORT_FOLDER
