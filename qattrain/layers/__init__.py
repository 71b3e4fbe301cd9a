"""Quantized layers, drop-in replacements for torch's own, and the networks built from them."""

from qattrain.layers.batchnorm import BatchNorm
from qattrain.layers.conversion import quantize_model
from qattrain.layers.quantized import PixelInput, QuantAvgPool2d, QuantConv2d, QuantLinear, QuantReLU

__all__ = ["BatchNorm", "PixelInput", "QuantAvgPool2d", "QuantConv2d", "QuantLinear", "QuantReLU", "quantize_model"]
