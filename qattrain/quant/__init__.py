"""Quantization as pure maths: grids, explicit autograd functions, surrogates, and the quantizers.

To add a quantizer: write a subclass of `Quantizer` in `quantizers.py`, and one line in QUANTIZERS.
"""

from qattrain.config import FLOAT_BITS
from qattrain.errors import ConfigError, pick
from qattrain.quant.base import Quantizer
from qattrain.quant.grid import QTensor, dequantize, round_half_up
from qattrain.quant.quantizers import (
    AffineQuantizer,
    BinaryQuantizer,
    DorefaQuantizer,
    LSQQuantizer,
    PactQuantizer,
    Pow2Quantizer,
    TernaryQuantizer,
)
from qattrain.quant.surrogates import SURROGATES

QUANTIZERS: dict[str, type[Quantizer]] = {
    "lsq": LSQQuantizer,
    "affine": AffineQuantizer,
    "pow2": Pow2Quantizer,
    "dorefa": DorefaQuantizer,
    "pact": PactQuantizer,
    "ternary": TernaryQuantizer,
    "binary": BinaryQuantizer,
}

FLOAT = "float"  # recorded as the quantizer of weights that are not quantized

__all__ = [
    "QUANTIZERS",
    "SURROGATES",
    "QTensor",
    "Quantizer",
    "activation_quantizer",
    "dequantize",
    "round_half_up",
    "weight_quantizer",
    "weight_quantizer_name",
]


def weight_quantizer_name(name: str, bits: int) -> str:
    """The quantizer that `name` uses for weights of that many bits: at one bit it is always binary.

    Raises ConfigError if the quantizer does not allow that many bits.
    """
    quantizer = pick(QUANTIZERS, name, "quantizer")
    if bits == FLOAT_BITS:
        return FLOAT
    if bits == 1 and quantizer is not TernaryQuantizer:
        return "binary"
    if bits not in quantizer.weight_bits:
        allowed = ", ".join(map(str, quantizer.weight_bits))
        raise ConfigError(f"quantizer {name!r} with {bits} bits: allowed for its weights: {allowed}, or 32 for float")
    return quantizer.weights or name


def weight_quantizer(
    name: str, bits: int, shape: tuple[int, ...], surrogate: str = "clipped", fraction_bits: int | None = None
) -> Quantizer | None:
    """The module that quantizes a layer's weights, or None at 32 bits.

    shape: of the scale, (C, 1, ...) for one per output channel or () for one. fraction_bits: pow2's n, if given.
    """
    runs = weight_quantizer_name(name, bits)
    pick(SURROGATES, surrogate, "surrogate")
    if fraction_bits is not None and runs != "pow2":
        raise ConfigError(f"n = {fraction_bits} fraction bits with {runs!r} weights: only pow2 at 2 to 8 bits has them")
    if fraction_bits is not None and not -8 <= fraction_bits <= 20:
        raise ConfigError(f"n = {fraction_bits} fraction bits: allowed: -8 to 20")
    if runs == FLOAT:
        return None
    quantizer = QUANTIZERS[runs](bits, role="weight", shape=shape, surrogate=surrogate)
    if isinstance(quantizer, BinaryQuantizer):
        quantizer.power_of_two = name == "pow2"
    if isinstance(quantizer, Pow2Quantizer):
        quantizer.fraction_bits = fraction_bits
    return quantizer


def activation_quantizer(
    name: str, bits: int, surrogate: str = "clipped", signed: bool = False, rectify: bool = False
) -> Quantizer | None:
    """The module that quantizes activations x, or max(x, 0), with one scale; None at 32 bits. Raises ConfigError."""
    quantizer = pick(QUANTIZERS, name, "quantizer")
    pick(SURROGATES, surrogate, "surrogate")
    if signed and bits == 1:
        raise ConfigError("1 bit for signed values: their codes would be -1 and 0; allowed: 2 to 8, or unsigned values")
    if bits == FLOAT_BITS:
        return None
    chosen = (quantizer.signed_activations if signed else None) or quantizer.activations or name
    result = QUANTIZERS[chosen](bits, role="activation", signed=signed, surrogate=surrogate)
    result.rectify = rectify
    return result
