"""The C exporter: a network as C99 source, integers only, for microcontrollers and for this computer.

Files: model.c, model.h, main.c, and a README.md that says what it is, what it needs and how to call it. Their text is
in `qattrain/export/c`: the kernels of each layout as plain C, the rest as jinja2 templates. This file computes what
differs from model to model: types, sizes and tables. Out of scope: reading image files, more than one image at a time.

Types are the smallest that hold the values of all layers. A multiplier and its shift lose the factors of two they share
(down to a shift of 1): (sum m + 2^(k-1)) >> k stays the same number, and the multipliers of `pow2` become 1.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError
from qattrain.export.base import POOLED_SIDE, Exporter, Files, fits_16_bits, pixels_first
from qattrain.export.c_compile import C_FOLDER, EMBEDDED, HOST, measure, run_c
from qattrain.files import compiler
from qattrain.integer import INT32_MAX, IntegerLayer, IntegerModel, ModelFacts, Requantization, pack_codes

LAYOUTS = ("packed", "int8")
ALIGN = 32  # bytes: rows in layout int8 are multiples of one 256-bit vector
CONV_ROWS, LINEAR_ROWS = 2, 8  # weight rows that layout int8 multiplies at once, with four inputs or with one
LINE = 116  # characters of numbers in a line
BYTES = {f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32)}

if TYPE_CHECKING:
    import jinja2

IntArray = NDArray[np.int64]


def write_c(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """model.c, model.h, main.c and README.md. Raises ExportError where a sum could leave int32.

    The same model gives the same bytes; only the sizes in README.md depend on the compilers that are installed.
    """
    assert len(facts.class_names) == model.classes, (facts.class_names, model.classes)
    names = ",\n".join(f"    {_literal(name)}" for name in facts.class_names)
    files = c_sources(model, layout) | {"main.c": _template("main.c").render(names=names).encode("ascii")}
    return files | {"README.md": _readme(model, facts, layout, files).encode()}


def c_sources(model: IntegerModel, layout: str) -> Files:
    """model.c and model.h, all that `c_compile.compiled_c` needs. Raises ExportError where a sum could leave int32.

    Nothing in them comes from names a user chose.
    """
    assert layout in LAYOUTS, layout
    for layer in model.layers:
        if layer.accumulator_bound > INT32_MAX:
            raise ExportError(f"{layer.name}: an accumulator could reach {layer.accumulator_bound}, beyond int32")
    bias_type, multiplier_type = _channel_types(model)
    arena = arena_of(model, layout)
    source = _template("model.c").render(
        layout=layout,
        widths=[len(layer.codes) for layer in model.layers],
        align=ALIGN,
        kernel=model.layers[0].codes.shape[-1],
        weight_type=_weight_type(model),
        products_fit=int(layout == "int8" and two_products_fit_16_bits(model)),
        bias_type=bias_type,
        multiplier_type=multiplier_type,
        tables=[_table(layer, layout) for layer in model.layers],
        arena=arena,
        conv_rows=str(CONV_ROWS),
        linear_rows=str(LINEAR_ROWS),
    )
    header = _template("model.h").render(classes=model.classes, arena=arena)
    return {"model.c": source.encode("ascii"), "model.h": header.encode("ascii")}


C_EXPORTER = Exporter(write=write_c, run=run_c, layouts=LAYOUTS)


@functools.cache
def _template(name: str) -> "jinja2.Template":
    """The template of the file `name` in `qattrain/export/c`."""
    import jinja2  # here, because no training needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(C_FOLDER),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["wrap"] = _wrapped
    return environment.get_template(f"{name}.jinja")


def _wrapped(numbers: list[Any]) -> str:
    """Numbers in lines of equal count, as the initializer of a C array."""
    texts = list(map(str, numbers))
    each = LINE // (max(map(len, texts)) + 2)
    return "    " + ",\n    ".join(", ".join(texts[start : start + each]) for start in range(0, len(texts), each))


def _literal(text: str) -> str:
    """A C string of any text. Octal escapes end after three digits, whatever follows; a ? could start a trigraph."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _readme(model: IntegerModel, facts: ModelFacts, layout: str, files: Files) -> str:
    """README.md. Flash and RAM are measured with the compilers that are installed."""
    measured = [(target, footprint) for target in EMBEDDED if (footprint := measure(files, target))]
    if not measured and (footprint := measure(files, HOST)):
        measured = [(HOST, footprint)]
    return _template("README.md").render(
        model=model,
        facts=facts,
        layout=layout,
        native=f" {compiler.NATIVE}" if layout == "int8" else "",
        embedded=EMBEDDED,
        weight_bytes=weight_bytes,
        total_bytes={name: sum(weight_bytes(layer, name) for layer in model.layers) for name in LAYOUTS},
        channel_bytes=channel_bytes(model),
        arena=arena_of(model, layout),
        measured=measured,
        compilers=[target.compiler for target in (*EMBEDDED, HOST)],
    )


@dataclass(frozen=True)
class Arena:
    """All static memory of model.c. fields: C type, name, count, comment; none needs padding before it."""

    fields: tuple[tuple[str, str, int, str], ...]

    @property
    def total_bytes(self) -> int:
        widest = max(BYTES[ctype] for ctype, *_ in self.fields)
        total = sum(BYTES[ctype] * count for ctype, _, count, _ in self.fields)
        return _multiple(total, widest)  # a struct ends where the next one could begin


def arena_of(model: IntegerModel, layout: str) -> Arena:
    """The static memory of a layout."""
    conv1, conv2, fc1, fc2 = model.layers
    even, odd = 12 * 12 * len(conv1.codes), POOLED_SIDE**2 * len(conv2.codes)
    if layout == "packed":
        longest = max(layer.codes[0].size for layer in model.layers)
        own = [(_weight_type(model), "row", longest, "the weights of one output channel, unpacked")]
        even = max(even, len(fc1.codes))
    else:
        rows = max(_multiple(len(layer.codes), LINEAR_ROWS) for layer in model.layers)
        patches = 4 * max(_stride(conv1), _stride(conv2))
        own = [
            ("int32_t", "sums", rows, "of one pixel, or of a fully connected layer"),
            ("uint8_t", "patches", patches, "the pixels under the kernel at the four positions of a window"),
        ]
        even, odd = _multiple(max(even, _stride(fc2)), ALIGN), _stride(fc1)  # every field at a multiple of ALIGN
    maps = (("uint8_t", "even", even, "the output of conv1, later of fc1"), ("uint8_t", "odd", odd, "that of conv2"))
    return Arena((*own, *maps))


def _table(layer: IntegerLayer, layout: str) -> tuple[IntegerLayer, dict[str, tuple[str, list[Any]]], dict[str, int]]:
    """The layer, its arrays (field of `struct layer` -> C type and numbers), and the other fields of its layout."""
    arrays: dict[str, tuple[str, list[Any]]]
    if layout == "packed":
        packed = pack_codes(pixels_first(layer, layer.numbers), layer.bits, 0)
        arrays = {"codes": ("uint8_t", [f"0x{value:02x}" for value in packed.tolist()])}
        fields = {"bits": layer.bits, "step": layer.grid.step, "lowest": layer.grid.start - layer.zero_point}
    else:
        rows, step, rest = int8_rows(layer)
        arrays = {"weights": ("ALIGNED int8_t", rows.ravel().tolist())}
        fields = {"stride": rows.shape[1], "step": step, "rest": rest}
    arrays["bias"] = ("bias_t", layer.bias.tolist())
    if layer.requantization:
        multiplier, shift = reduced(layer.requantization)
        suffix = "u" if int(multiplier.max()) > 2**15 - 1 else ""
        arrays["multiplier"] = ("multiplier_t", [f"{m}{suffix}" for m in multiplier.tolist()])
        arrays["shift"] = ("uint8_t", shift.tolist())
        fields["largest"] = layer.requantization.qmax
    return layer, arrays, fields


def int8_rows(layer: IntegerLayer) -> tuple[IntArray, int, int]:
    """Rows of bytes (D or more, stride), and (step, rest) with q_w - z_w = step * byte + rest. Raises ExportError.

    Affine weights of 8 bits can be -255 .. 255 away from their zero point: then rest is not 0, and the kernel adds
    rest times the sum of the inputs. That takes room in int32 beyond the layer's own bound. The odd numbers of 8 bits
    span more than a byte by themselves: then step is 2, and rest 1.
    """
    low, high = int(layer.codes.min()), int(layer.codes.max())
    step = 1 if high - low <= 255 else layer.grid.step
    center = int(np.clip(layer.zero_point, high - 127 * step, low + 128 * step))
    center += (low - center) % step
    rest = center - layer.zero_point
    rows = pixels_first(layer, (layer.codes - center) // step)
    sums = step * np.abs(rows).sum(1) + abs(rest) * rows.shape[1]
    bound = int((sums * layer.input_max + np.abs(layer.bias)).max())
    if bound > INT32_MAX:
        raise ExportError(f"{layer.name}: a sum in layout int8 could reach {bound}, beyond int32; use layout packed")
    return np.pad(rows, ((0, _rows(layer) - len(rows)), (0, _stride(layer) - rows.shape[1]))), step, rest


def two_products_fit_16_bits(model: IntegerModel) -> bool:
    """Whether layout int8 may add two neighbouring products of any row in 16 bits."""
    return all(fits_16_bits(int(np.abs(int8_rows(layer)[0]).max()), layer.input_max) for layer in model.layers)


def reduced(how: Requantization) -> tuple[IntArray, IntArray]:
    """Multipliers and shifts without the factors of two they share."""
    m, k = how.multiplier, how.shift
    twos = np.where(m == 0, 62, np.log2(np.maximum(m & -m, 1))).astype(np.int64)  # m & -m: its largest power of two
    common = np.minimum(twos, k - 1)
    return m >> common, k - common


def weight_bytes(layer: IntegerLayer, layout: str) -> int:
    """Bytes of a layer's weights in model.c."""
    if layout == "packed":
        return math.ceil(layer.codes.size * layer.bits / 8)
    return _rows(layer) * _stride(layer)


def channel_bytes(model: IntegerModel) -> int:
    """Bytes of all biases, multipliers and shifts in model.c."""
    bias, multiplier = (BYTES[name] for name in _channel_types(model))
    return sum(len(layer.codes) * (bias + (multiplier + 1 if layer.requantization else 0)) for layer in model.layers)


def _stride(layer: IntegerLayer) -> int:
    """Bytes from row to row in layout int8."""
    return _multiple(int(layer.codes[0].size), ALIGN)


def _rows(layer: IntegerLayer) -> int:
    """Rows in layout int8."""
    return _multiple(len(layer.codes), CONV_ROWS if layer.kind == "conv" else LINEAR_ROWS)


def _multiple(count: int, of: int) -> int:
    return math.ceil(count / of) * of


def _channel_types(model: IntegerModel) -> tuple[str, str]:
    """The types of biases and of multipliers."""
    biases = np.concatenate([layer.bias for layer in model.layers])
    multipliers = np.concatenate([reduced(layer.requantization)[0] for layer in model.layers if layer.requantization])
    return _smallest_type(biases), _smallest_type(multipliers, "u")


def _weight_type(model: IntegerModel) -> str:
    return _smallest_type(np.concatenate([layer.centered.ravel() for layer in model.layers]))


def _smallest_type(values: IntArray, sign: str = "") -> str:
    kinds = [np.iinfo(f"{sign}int{bits}") for bits in (8, 16, 32)]
    return next(f"{kind.dtype}_t" for kind in kinds if kind.min <= values.min() and values.max() <= kind.max)
