"""Quantized layers, drop-in replacements for torch's own, and the network built from them."""

from qattrain.layers.quantized import QuantConv2d, QuantLinear, QuantReLU

__all__ = ["QuantConv2d", "QuantLinear", "QuantReLU"]
