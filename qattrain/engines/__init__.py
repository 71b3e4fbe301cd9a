"""Engines: what turns images into logits. All are measured by the same `evaluation.evaluate`.

To add one: write `qattrain/engines/<name>_engine.py` with a function from a network to a context that gives a predictor
(what it compiles or opens is gone behind the context), and one line in ENGINES.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from qattrain.engines.exported import exported_engine
from qattrain.engines.integer_engine import integer_engine
from qattrain.engines.torch_engine import torch_engine, torch_predictor
from qattrain.evaluation import Predictor
from qattrain.export import EXPORTERS
from qattrain.networks import Network

Engine = Callable[[Network], AbstractContextManager[Predictor]]

ENGINES: dict[str, Engine] = {
    "torch": torch_engine,
    "integer": integer_engine,
    "onnx": partial(exported_engine, EXPORTERS["onnx"]),
    "c": partial(exported_engine, EXPORTERS["c"]),
}

__all__ = ["ENGINES", "Engine", "torch_predictor"]
