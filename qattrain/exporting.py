"""A network becomes files in a folder, verified on its dataset's test images."""

from dataclasses import dataclass
from pathlib import Path

from qattrain.errors import ConfigError
from qattrain.export import EXPORTERS, Exported, check_folder, export_model, settled_layout
from qattrain.networks import Network, load_network
from qattrain.predicting import load_test_data

EXPORT_FOLDER = "export"


@dataclass(frozen=True)
class ExportRequest:
    """What to write and how to verify it.

    to: a key of EXPORTERS. layout: one of that exporter's; None: its default. folder: None: `export` beside the file.
    force: also into a folder that holds other files. verify_images: how many of the test images; None: all. verify:
    False: not at all.
    """

    to: str
    layout: str | None = None
    folder: Path | None = None
    force: bool = False
    verify_images: int | None = None
    verify: bool = True


def export_network(path: Path, request: ExportRequest, data_dir: Path) -> tuple[Network, Exported]:
    """Export what is in `path`. Writes nothing if it raises ConfigError, CheckpointError, DataError, ExportError."""
    if request.to not in EXPORTERS:
        raise ConfigError(f"--to {request.to!r}: allowed: {', '.join(EXPORTERS)}")
    exporter = EXPORTERS[request.to]
    # What can be refused at once is: verifying takes seconds.
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
