"""model.c, model.h and main.c of a model, as text."""

from qattrain.export.base import ModelFacts
from qattrain.export.c_frame import HEAD, HEADER, MAIN, PREDICT
from qattrain.export.c_kernels_int8 import INT8_KERNELS, INT8_LAYOUT, INT8_STRUCT
from qattrain.export.c_kernels_packed import PACKED_KERNELS, PACKED_LAYOUT, PACKED_STRUCT
from qattrain.export.c_tables import ALIGN, arena_of, tables, types
from qattrain.integer import IntegerModel


def model_source(model: IntegerModel, layout: str) -> str:
    """model.c. Nothing in it comes from names a user gave. Raises ExportError."""
    c1, c2, features, classes = (len(layer.codes) for layer in model.layers)
    packed = layout == "packed"
    note = PACKED_LAYOUT if packed else INT8_LAYOUT % {"align": ALIGN}
    head = HEAD % {"c1": c1, "c2": c2, "features": features, "classes": classes, "layout": note}
    struct, kernels = (PACKED_STRUCT, PACKED_KERNELS) if packed else (INT8_STRUCT, INT8_KERNELS)
    middle = [types(model, layout), struct, *tables(model, layout), arena_of(model, layout).text]
    return "".join([head, *middle, kernels, PREDICT])


def model_header(model: IntegerModel, layout: str) -> str:
    """model.h."""
    return HEADER % {"classes": model.classes, "arena_bytes": arena_of(model, layout).total_bytes}


def main_source(facts: ModelFacts) -> str:
    """main.c."""
    return MAIN % {"names": ",\n".join(f"    {_literal(name)}" for name in facts.class_names)}


def _literal(text: str) -> str:
    """A C string of any text. Octal escapes end after three digits, whatever follows; a ? could start a trigraph."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
