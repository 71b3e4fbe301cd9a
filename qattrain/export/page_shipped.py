"""The networks that come with the package, for `qattrain playground` without a run: lenet-small at 1 to 8 bits.

Trained by `configs/playground.toml` on MNIST. What the page shows and is compared on are drawings made for
it (`tests/published/drawings.py`), so that neither MNIST nor torch is needed.
"""

import numpy as np

from qattrain.export.page_export import FOLDER, Entry, Pictures
from qattrain.integer.packed import load_packed

DRAWINGS = FOLDER / "drawings.npz"
NETWORKS = "lenet-small-*.safetensors"
TITLE = "Draw a digit: lenet-small at 1 to 8 bits"


def shipped_entries() -> list[Entry]:
    """In the order of their bits."""
    entries = []
    for path in sorted(FOLDER.glob(NETWORKS)):
        packed = path.read_bytes()
        model, _ = load_packed(packed)
        bits = model.products[0].bits
        entries.append(Entry(f"{bits} bit{'' if bits == 1 else 's'}", "qat", model, packed))
    return entries


def shipped_pictures() -> Pictures:
    """44 drawings of digits, of which the last 14 divide the networks."""
    with np.load(DRAWINGS, allow_pickle=False) as stored:
        return Pictures(stored["images"], stored["labels"].astype(np.int64), "drawings")
