"""`qattrain bench --device`: what trained networks take on a microcontroller's core under QEMU."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qattrain.data import Dataset
from qattrain.errors import ExportError
from qattrain.evaluation.checkpoints import load_test_data
from qattrain.evaluation.networks import load_network
from qattrain.export.c_devices import DEVICES, IMAGES, measure_device, missing_tools
from qattrain.export.c_export import c_sources
from qattrain.export.c_layers import LAYOUTS


def bench_devices(
    paths: Sequence[Path], device: str, layout: str | None, data_dir: Path, mhz: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the networks in `paths`, exported to C, on the first IMAGES test images of each; plain values.

    device: a key of DEVICES. layout: one of C's; None: each. mhz: the clock of the stated milliseconds. say: called
    with a line of progress. Raises CheckpointError, DataError, ExportError.
    """
    core, layouts = DEVICES[device], LAYOUTS if layout is None else (layout,)
    if core.missing:  # before networks and images are loaded
        raise ExportError(missing_tools(core))
    loaded: dict[str, Dataset] = {}
    rows = []
    for path in paths:
        network = load_network(path)
        integers = network.integers()
        images = load_test_data(network, path, data_dir, loaded).test.head(IMAGES).images.numpy()
        for each in layouts:
            say(f"{path}, layout {each}: {core.title}")
            try:
                measured = measure_device(c_sources(integers, each), integers, images, device)
            except ExportError as error:
                raise ExportError(f"{path}, layout {each}: {error}") from None
            what = {"network": network.facts.name, "checkpoint": str(path), "layout": each}
            ends = {"low": measured.profile.cycles_low, "high": measured.profile.cycles_high}
            times = {f"milliseconds_{end}": cycles / mhz / 1000 for end, cycles in ends.items()}
            rows.append(what | measured.row() | times)
    return {
        "device": device,
        "core": core.title,
        "machine": core.machine[1],
        "manual": core.core.manual,
        "mhz": mhz,
        "networks": rows,
    }
