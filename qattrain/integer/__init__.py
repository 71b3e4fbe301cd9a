"""The network as integers: what it is, what it computes, how its codes are packed. NumPy only, no torch."""

from qattrain.integer.model import INT32_MAX, IntegerLayer, IntegerModel, Requantization
from qattrain.integer.packing import pack_codes, unpack_codes, weight_grid

__all__ = ["INT32_MAX", "IntegerLayer", "IntegerModel", "Requantization", "pack_codes", "unpack_codes", "weight_grid"]
