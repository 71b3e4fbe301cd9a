"""qattrain: train small networks with quantization-aware training at 1 to 8 bits, and ship the integers they trained.

The names in `__all__` are the library's front door; each is loaded when it is first asked for, so that `import
qattrain` alone loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qattrain.evaluation.checkpoints import export_model
    from qattrain.integer.lowering import lower
    from qattrain.layers import (
        BatchNorm,
        PixelInput,
        QuantAvgPool2d,
        QuantConv2d,
        QuantLinear,
        QuantReLU,
        quantize_model,
    )

__version__ = "0.1.0"
__all__ = [
    "BatchNorm",
    "PixelInput",
    "QuantAvgPool2d",
    "QuantConv2d",
    "QuantLinear",
    "QuantReLU",
    "export_model",
    "lower",
    "quantize_model",
]

if not TYPE_CHECKING:  # a type checker would take it for a promise of any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'qattrain' has no attribute {name!r}")
        elsewhere = {"export_model": "evaluation.checkpoints", "lower": "integer.lowering"}
        return getattr(import_module(f"qattrain.{elsewhere.get(name, 'layers')}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
