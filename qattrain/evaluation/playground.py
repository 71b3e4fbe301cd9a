"""Networks side by side in one page to draw on: read, checked to fit each other, with their dataset's test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qattrain.data import Dataset, is_handwriting
from qattrain.errors import ConfigError
from qattrain.evaluation.checkpoints import EXPORT_FOLDER, OWN_DATA, load_test_data
from qattrain.evaluation.networks import Network, Trained, load_network
from qattrain.export.page_export import Entry, Pictures, check_channels, headline
from qattrain.integer.packed import FILE_NAME, write_packed

MOST_NETWORKS = 10


@dataclass(frozen=True)
class Playground:
    """What `build_page` takes. notices: what the user must know about the networks."""

    entries: list[Entry]
    pictures: Pictures
    title: str
    is_handwriting: bool
    notices: list[str]


def check_count(names: Sequence[str]) -> None:
    """Raises ConfigError for more networks than a page can show side by side."""
    if len(names) > MOST_NETWORKS:
        raise ConfigError(f"{len(names)} networks: a page shows 1 to {MOST_NETWORKS}; name fewer")


def read_networks(paths: Sequence[Path], data_dir: Path) -> Playground:
    """The networks in checkpoints and packed files, and all test images of their dataset.

    Raises ConfigError if they differ in classes or image size, and CheckpointError, DataError, and ExportError for a
    float network and for one of images in colour.
    """
    entries: list[Entry] = []
    networks: list[Network] = []
    loaded: dict[str, Dataset] = {}
    images, labels = None, None
    for path in paths:
        network = load_network(path)
        model = network.integers()
        check_channels(model)
        _check_same(networks[0] if networks else network, network, paths[0], path)
        if network.facts.dataset != OWN_DATA:
            test = load_test_data(network, path, data_dir, loaded).test
            if images is None:
                images, labels = test.images.numpy(), test.labels.numpy()
        label = _label(network, path)
        again = sum(entry.label.split(" (")[0] == label for entry in entries)
        name, packed = f"{label} ({again + 1})" if again else label, write_packed(model, network.facts)
        is_ptq = isinstance(network, Trained) and network.checkpoint.config.method == "ptq"
        entries.append(Entry(name, "ptq" if is_ptq else "qat" if isinstance(network, Trained) else None, model, packed))
        networks.append(network)
    facts, shape = networks[0].facts, networks[0].input_shape
    title = headline([network.facts.name for network in networks], [entry.model for entry in entries], facts)
    notices = dict.fromkeys(network.notice for network in networks if network.notice)
    pictures = Pictures(np.zeros((0, *shape), np.uint8) if images is None else images, labels, "test images")
    return Playground(entries, pictures, title, shape == (1, 28, 28) and is_handwriting(facts.dataset), list(notices))


def _label(network: Network, path: Path) -> str:
    """The run's name, or that of a packed file."""
    if isinstance(network, Trained):
        return path.parent.name
    if path.name != FILE_NAME:
        return path.stem
    return (path.parent.parent if path.parent.name == EXPORT_FOLDER else path.parent).name or network.facts.name


def _check_same(one: Network, other: Network, path: Path, other_path: Path) -> None:
    if one.input_shape != other.input_shape:
        shapes = ["x".join(map(str, network.input_shape)) for network in (one, other)]
        raise ConfigError(
            f"{path} takes images of {shapes[0]}, {other_path} of {shapes[1]} (channels x height x width); "
            "in one page all networks must take the same"
        )
    if one.facts.class_names != other.facts.class_names:
        names = [", ".join(network.facts.class_names[:4]) for network in (one, other)]
        raise ConfigError(
            f"{path} has {len(one.facts.class_names)} classes ({names[0]}, ...), {other_path} "
            f"{len(other.facts.class_names)} ({names[1]}, ...); in one page all networks must have the same"
        )
