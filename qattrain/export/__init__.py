"""Exporters: an IntegerModel becomes files, and the files are proven equal to it before they are written.

To add one: write `qattrain/export/<name>.py` with an `Exporter`, and one line in EXPORTERS.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from qattrain.export.base import Exporter, Files, Runner
from qattrain.export.c_export import C_EXPORTER
from qattrain.export.onnx_export import ONNX_EXPORTER
from qattrain.export.page_export import PAGE_EXPORTER
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.packed import FILE_NAME, load_packed, write_packed


def _write_packed(model: IntegerModel, facts: ModelFacts, _layout: str) -> Files:
    return {FILE_NAME: write_packed(model, facts)}


@contextmanager
def _run_packed(files: Files) -> Iterator[Runner]:
    model, _ = load_packed(files[FILE_NAME])  # what the bytes compute, loaded again
    yield model.run


EXPORTERS: dict[str, Exporter] = {
    "packed": Exporter(_write_packed, _run_packed),
    "onnx": ONNX_EXPORTER,
    "c": C_EXPORTER,
    "page": PAGE_EXPORTER,
}
