"""The integer engine: the lowered network, interpreted by NumPy."""

from collections.abc import Iterator
from contextlib import contextmanager

from qattrain.engines.exported import integer_predictor
from qattrain.evaluation import Predictor
from qattrain.networks import Network


@contextmanager
def integer_engine(network: Network) -> Iterator[Predictor]:
    """Predict with the integers of `network`. Raises ExportError if a layer is float."""
    integers = network.integers()
    yield integer_predictor(integers.run, integers)
