"""The C exporter: a network as C99 source, integers only, for microcontrollers and for this computer.

Files: model.c, model.h, main.c, and a README.md that says what it is, what it needs, how to call it. Out of scope:
reading image files, and more than one image at a time.
"""

from qattrain.errors import ExportError
from qattrain.export.base import Exporter, Files
from qattrain.export.c_compile import EMBEDDED, HOST, NATIVE, Footprint, Target, measure, run_c
from qattrain.export.c_frame import HEAD, HEADER, MAIN, PREDICT
from qattrain.export.c_kernels_int8 import INT8_KERNELS, INT8_LAYOUT, INT8_STRUCT
from qattrain.export.c_kernels_packed import PACKED_KERNELS, PACKED_LAYOUT, PACKED_STRUCT
from qattrain.export.c_tables import ALIGN, arena_of, channel_bytes, tables, types, weight_bytes
from qattrain.integer import INT32_MAX, IntegerLayer, IntegerModel, ModelFacts


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


README = """\
# {title}: an integer network in C

`model.c` classifies 28x28 grey images into {classes} classes{dataset}. {accuracy}
It is C99 with integers only: it asks for no memory, needs nothing but the compiler, and gives exactly the logits of
the integer network it was written from, `IntegerModel.run`.

| file | what |
|---|---|
| `model.c` | the weights and the code; compiles alone |
| `model.h` | the one function, and the size of its memory |
| `main.c` | classifies 784 raw bytes from a file or standard input |

## Use

```c
#include "model.h"

uint8_t image[784];                   /* 28 rows of 28 pixels, 0 the background, 255 the stroke */
int32_t logits[QATTRAIN_CLASSES];
int digit = qattrain_predict(image, logits);
```

`qattrain_predict` returns the class with the largest logit, the lowest one where several are equal. For probabilities
multiply each logit by {logit_scale!r} and take the softmax. All memory is one static arena of
`QATTRAIN_ARENA_BYTES`: do not call it from two threads at a time.

    cc -O3{native} main.c model.c -o classify
    ./classify image.raw        # or: ./classify < image.raw

For a microcontroller compile `model.c` alone:

{commands}

## Sizes

Layout `{layout}`: {layout_note}

| layer | weights | shape | bits | quantizer | bytes in `model.c` |
|---|---|---|---|---|---|
{layers}

Weights: {weight_bytes} bytes ({packed_bytes} without gaps). Biases, multipliers and shifts: {channel_bytes} bytes.
Static RAM: {arena} bytes (`QATTRAIN_ARENA_BYTES`); the image (784) and the logits ({logit_bytes}) belong to the caller.

{measured}
"""
LAYOUT_NOTES = {
    "packed": "the smallest; weights lie bit by bit without gaps and are unpacked row by row.",
    "int8": (
        "the fastest; every weight is a byte, for plain loops that compilers turn into vector instructions.\nFor an "
        "x86 processor with AVX2 (`-march=native`) these are written out, which is several times faster;\n"
        "`-DQATTRAIN_PORTABLE` leaves that out. The logits are the same."
    ),
}
CLASS_LIST = "\n## Classes\n\n{}\n"


def readme(model: IntegerModel, facts: ModelFacts, layout: str, files: Files) -> str:
    """README.md. Flash and RAM are measured with the compilers that are there."""
    targets: list[tuple[Target, Footprint]] = [
        (target, footprint) for target in EMBEDDED if (footprint := measure(files, target))
    ]
    if not targets and (footprint := measure(files, HOST)):
        targets = [(HOST, footprint)]
    accuracy = "Its accuracy was not measured."
    if facts.test_accuracy is not None:
        accuracy = f"Test accuracy: {100 * facts.test_accuracy:.2f} %."
    text = README.format(
        title=facts.name,
        classes=model.classes,
        dataset=f" ({facts.dataset})" if facts.dataset else "",
        accuracy=accuracy,
        logit_scale=model.logit_scale,
        commands="\n".join(f"    {target.command}" for target in EMBEDDED),
        native=f" {NATIVE}" if layout == "int8" else "",
        layout=layout,
        layout_note=LAYOUT_NOTES[layout],
        layers="\n".join(_row(layer, layout) for layer in model.layers),
        weight_bytes=sum(weight_bytes(layer, layout) for layer in model.layers),
        packed_bytes=sum(weight_bytes(layer, "packed") for layer in model.layers),
        channel_bytes=channel_bytes(model),
        arena=arena_of(model, layout).total_bytes,
        logit_bytes=4 * model.classes,
        measured=_measured(targets),
    )
    return text + CLASS_LIST.format(", ".join(f"{i}: {name}" for i, name in enumerate(facts.class_names)))


def _measured(targets: list[tuple[Target, Footprint]]) -> str:
    if not targets:
        return (
            "Flash was not measured: none of these compilers was there when this was written: "
            f"{', '.join(target.compiler for target in (*EMBEDDED, HOST))}."
        )
    lines = [
        "Measured with `size`. Flash: code and tables, on microcontrollers with the compiler's arithmetic routines.",
        "Stack: the sum over all functions of `model.c`.",
        "",
        "| target | compiled with | flash, bytes | static RAM, bytes | stack, at most, bytes |",
        "|---|---|---|---|---|",
    ]
    for target, needs in targets:
        stack = "unknown" if needs.stack_bytes is None else needs.stack_bytes
        lines.append(f"| {target.name} | `{target.command}` | {needs.flash_bytes} | {needs.ram_bytes} | {stack} |")
    return "\n".join(lines)


def _row(layer: IntegerLayer, layout: str) -> str:
    shape = " x ".join(map(str, layer.codes.shape))
    cells = (layer.name, layer.codes.size, shape, layer.bits, layer.quantizer, weight_bytes(layer, layout))
    return f"| {' | '.join(map(str, cells))} |"
