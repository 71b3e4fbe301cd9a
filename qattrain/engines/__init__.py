"""Engines: what turns images into logits. All are measured by the same `evaluation.evaluate`.

To add one: write `qattrain/engines/<name>_engine.py` with a function from a model to a predictor, and one line in
ENGINES.
"""

from collections.abc import Callable

from qattrain.engines.integer_engine import integer_engine
from qattrain.engines.torch_engine import torch_engine
from qattrain.evaluation import Predictor
from qattrain.model import LeNet

ENGINES: dict[str, Callable[[LeNet], Predictor]] = {
    "torch": torch_engine,
    "integer": integer_engine,
}
