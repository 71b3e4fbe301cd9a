"""README.md beside an exported model.c: what it is, what it needs, how to call it."""

from qattrain.export.base import Files, ModelFacts
from qattrain.export.c_compile import EMBEDDED, HOST, NATIVE, Footprint, Target, measure
from qattrain.export.c_tables import arena_of, channel_bytes, weight_bytes
from qattrain.integer import IntegerLayer, IntegerModel

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
