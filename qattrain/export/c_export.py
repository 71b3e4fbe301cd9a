"""The C exporter: a network as C99 source, integers only, for microcontrollers and for this computer.

Out of scope: reading images, and more than one image at a time.
"""

from qattrain.errors import ExportError
from qattrain.export.base import Exporter, Files, ModelFacts
from qattrain.export.c_code import main_source, model_header, model_source
from qattrain.export.c_compile import run_c
from qattrain.export.c_readme import readme
from qattrain.integer import INT32_MAX, IntegerModel

LAYOUTS = ("packed", "int8")


def c_sources(model: IntegerModel, layout: str) -> Files:
    """model.c and model.h, all that `c_compile.compiled_c` needs. Raises ExportError where a sum could leave int32."""
    assert layout in LAYOUTS, layout
    for layer in model.layers:
        if layer.accumulator_bound > INT32_MAX:
            raise ExportError(f"{layer.name}: an accumulator could reach {layer.accumulator_bound}, beyond int32")
    texts = {"model.c": model_source(model, layout), "model.h": model_header(model, layout)}
    return {name: text.encode("ascii") for name, text in texts.items()}


def write_c(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """model.c, model.h, main.c and README.md. Raises ExportError where a sum could leave int32.

    The same model gives the same bytes; only the sizes in README.md depend on the compilers that are there.
    """
    assert len(facts.class_names) == model.classes, (facts.class_names, model.classes)
    files = c_sources(model, layout) | {"main.c": main_source(facts).encode("ascii")}
    return files | {"README.md": readme(model, facts, layout, files).encode()}


C_EXPORTER = Exporter(write=write_c, run=run_c, layouts=LAYOUTS)
