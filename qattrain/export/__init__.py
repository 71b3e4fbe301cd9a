"""Exporters: an IntegerModel becomes files, and the files are proven equal to it before they are written.

To add one: write `qattrain/export/<name>.py` with an `Exporter`, and one line in EXPORTERS.
"""

from qattrain.export.base import Exporter, Files, ModelFacts, Runner
from qattrain.export.c_export import C_EXPORTER
from qattrain.export.onnx_export import ONNX_EXPORTER
from qattrain.export.packed import PACKED_EXPORTER, is_packed, load_packed
from qattrain.export.verified import NOISE_IMAGES, Exported, check_folder, export_model, settled_layout

EXPORTERS: dict[str, Exporter] = {
    "packed": PACKED_EXPORTER,
    "onnx": ONNX_EXPORTER,
    "c": C_EXPORTER,
}

__all__ = [
    "EXPORTERS",
    "NOISE_IMAGES",
    "Exported",
    "Exporter",
    "Files",
    "ModelFacts",
    "Runner",
    "check_folder",
    "export_model",
    "is_packed",
    "load_packed",
    "settled_layout",
]
