"""The network as integers: what it is, what it computes, how its codes are packed. Only `lowering` needs torch."""

from qattrain.integer.model import INT32_MAX, AverageLayer, IntegerLayer, IntegerModel, Requantization
from qattrain.integer.packed import ModelFacts, pack_codes, unpack_codes

__all__ = [
    "INT32_MAX",
    "AverageLayer",
    "IntegerLayer",
    "IntegerModel",
    "ModelFacts",
    "Requantization",
    "pack_codes",
    "unpack_codes",
]
