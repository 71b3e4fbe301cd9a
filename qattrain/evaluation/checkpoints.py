"""What can be done with a CKPT: evaluate it on its dataset's test images, classify pictures, export it.

And `export_model`, for a network that somebody trained in a loop of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qattrain.config.chain import Shape
from qattrain.data import Dataset, ImageSet, check_identity, load_dataset
from qattrain.errors import CheckpointError, ConfigError, pick
from qattrain.evaluation.metrics import Evaluation, evaluate, in_parts
from qattrain.evaluation.networks import (
    ENGINES,
    Mismatches,
    Network,
    Packed,
    Trained,
    compare_with_integers,
    load_network,
    torch_predictor,
)
from qattrain.export import EXPORTERS
from qattrain.export.base import Exported, check_boards, check_folder, settled_layout, settled_prefix, write_verified
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.runs.environment import keep_freed_memory, pick_device

EXPORT_FOLDER = "export"
OWN_DATA = "own images"  # the dataset of a network that no run trained


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
    loaded: dict[str, Dataset] | None = None,
) -> Outcome:
    """Evaluate `network`, read from `path`, on its dataset's test images.

    engine: a key of ENGINES; None: torch for a checkpoint, integer for a packed file. limit_test: number of images;
    None: as many as its run used. verify: also count what differs from the integers. loaded: as in `load_test_data`.
    Raises ConfigError, DataError, ExportError, CheckpointError.
    """
    keep_freed_memory()  # every batch needs the same blocks again
    name = engine or ("integer" if isinstance(network, Packed) else "torch")
    dataset = load_test_data(network, path, data_dir, loaded)
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
        exact = name == "torch" and network.quantized and device.type == "cpu"
        result = evaluate(in_parts(predict) if exact else predict, test)
        if not math.isfinite(result.loss):
            raise CheckpointError(
                f"{path}: its loss is {result.loss}: its weights or scales are too large; train it again"
            )
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
    if not bool(probabilities.isfinite().all()):
        raise CheckpointError("the network's logits are not finite: its weights are too large; train it again")
    names = [int(name) if name.isdecimal() and str(int(name)) == name else name for name in network.facts.class_names]
    values, labels = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        [(names[label], p) for label, p in zip(row_labels[:top], row[:top], strict=True)]
        for row_labels, row in zip(labels.tolist(), values.tolist(), strict=True)
    ]


def load_test_data(network: Network, path: Path, data_dir: Path, loaded: dict[str, Dataset] | None = None) -> Dataset:
    """The dataset `network`, read from `path`, was trained on. Raises DataError, also for other data.

    loaded: datasets already in memory, by their specification; the one that is read is added.
    """
    facts = network.facts
    if facts.dataset == OWN_DATA:
        raise ConfigError(
            f"{path} does not say what its images were, as export_model was not told; allowed: predict, inspect, and "
            "export with --no-verify; or export it again with dataset='npz:FILE' or 'folder:PATH'"
        )
    loaded = {} if loaded is None else loaded
    if facts.dataset not in loaded:
        loaded[facts.dataset] = load_dataset(facts.dataset, data_dir)
    dataset = loaded[facts.dataset]
    digest = network.checkpoint.config.data.digest if isinstance(network, Trained) else None
    check_identity(dataset, str(path), facts.class_names, network.input_shape, digest)
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
    board: bool = False,
    measure: bool = False,
) -> tuple[Network, Exported]:
    """Verify and write the files of the network in `path`.

    to: a key of EXPORTERS. layout: one of that exporter's; None: its default. prefix: of C symbols; None: the default.
    folder: None: `export` beside the file. force: write even into a folder that holds other files. verify: False: write
    without verifying. verify_images: number of test images; None: all. board: add examples for boards. measure: on
    microcontrollers' cores. Writes nothing if it raises ConfigError, CheckpointError, DataError, ExportError.
    """
    exporter = settled_prefix(pick(EXPORTERS, to, "--to"), prefix)
    check_boards(exporter, board, measure)
    folder = folder or default_folder(path)
    # Refuse early what can be refused: verifying takes seconds.
    settled_layout(exporter, layout)
    check_folder(folder, force)
    network = load_network(path)
    integers = network.integers()
    test = load_test_data(network, path, data_dir).test.head(verify_images) if verify else None
    images, labels = (None, None) if test is None else (test.images.numpy(), test.labels.numpy())
    facts = network.facts
    return network, write_verified(exporter, integers, facts, layout, images, folder, force, board, measure, labels)


def default_folder(path: Path) -> Path:
    """`<run>/export` for a checkpoint in `<run>` and for a packed file in `<run>/export`."""
    return path.parent if path.parent.name == EXPORT_FOLDER else path.parent / EXPORT_FOLDER


@dataclass(frozen=True)
class ExportedModel(Exported):
    """What was written, and the integers in it. mismatches: of torch's evaluation with them; None without images."""

    integers: IntegerModel = field(repr=False)
    mismatches: Mismatches | None


def export_model(
    net: nn.Module,
    to: str,
    folder: Path | str,
    images: Tensor | NDArray[np.uint8] | None = None,
    input_shape: Shape | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "network",
    dataset: str = OWN_DATA,
    layout: str | None = None,
    prefix: str | None = None,
    force: bool = False,
) -> ExportedModel:
    """Lower a trained `net`, verify the files, then write them into `folder`; `net` is put into evaluation mode.

    net: a chain of layers that `lower` takes. to: a key of EXPORTERS. images: uint8 (N, C, H, W), tensor or array:
    every logit of the files is compared on them and on 256 images of noise, and what torch evaluates otherwise is
    counted.
    input_shape: (C, H, W), needed without images. class_names: one per logit; None: "0", "1", ... name: of the network,
    for the files' documentation. dataset: what its images were, such as npz:FILE, so that `qattrain eval` finds them.
    layout: one of the exporter's; None: its default. prefix: of C symbols. force: write even into a folder that holds
    other files. Writes nothing if it raises ConfigError or ExportError.
    """
    exporter, folder = settled_prefix(pick(EXPORTERS, to, "to ="), prefix), Path(folder)
    # Refuse early what can be refused: verifying takes seconds.
    settled_layout(exporter, layout)
    check_folder(folder, force)
    pixels, shape = _pixels(images, input_shape)
    integers = lower(net, shape)
    names = tuple(map(str, range(integers.classes))) if class_names is None else tuple(class_names)
    if len(names) != integers.classes:
        raise ConfigError(f"class_names has {len(names)} names, the network {integers.classes} logits; name each")
    mismatches = None
    if len(pixels):
        mismatches = compare_with_integers(torch_predictor(net), integers, torch.tensor(pixels), net)
    facts = ModelFacts(name, dataset, names, None)
    exported = write_verified(exporter, integers, facts, layout, pixels, folder, force)
    return ExportedModel(**vars(exported), integers=integers, mismatches=mismatches)


def _pixels(images: Tensor | NDArray[np.uint8] | None, input_shape: Shape | None) -> tuple[NDArray[np.uint8], Shape]:
    """The images as an array, without images (0, C, H, W), and the shape of one. Raises ConfigError."""
    if images is None:
        if input_shape is None:
            raise ConfigError("export_model needs images, or input_shape=(C, H, W)")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ConfigError(f"input_shape = {input_shape}; allowed: three numbers (C, H, W) of at least 1")
        return np.zeros((0, *input_shape), np.uint8), input_shape
    pixels = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ConfigError(
            f"images: {pixels.dtype} of shape {pixels.shape}; allowed: uint8 (N, C, H, W), pixels 0..255 as they are"
        )
    channels, height, width = pixels.shape[1:]
    if input_shape not in (None, (channels, height, width)):
        raise ConfigError(f"input_shape = {input_shape}, but images have {pixels.shape[1:]}; leave input_shape out")
    return np.ascontiguousarray(pixels), (channels, height, width)
