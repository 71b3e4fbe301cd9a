"""The C exporter: a network as C99 source, integers only, for microcontrollers and for this computer.

Files: model.c, model.h, main.c, and a README.md that says what it is, what it needs and how to call it; with a prefix
NAME, NAME.c and NAME.h. Their text is in `qattrain/export/c`: the kernels as plain C, the rest as jinja2 templates;
`c_network` computes what differs from network to network. Out of scope: reading image files, more than one image at a
time.
"""

import functools
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ConfigError, ExportError
from qattrain.export.base import Exporter, Files, Measurement
from qattrain.export.c_arduino import arduino_files
from qattrain.export.c_board import board_files
from qattrain.export.c_compile import C_FOLDER, DEFAULT_PREFIX, EMBEDDED, HOST, measure, prefixed, run_c
from qattrain.export.c_devices import measure_devices
from qattrain.export.c_layers import ALIGN, CONV_ROWS, GEOMETRY, LAYOUTS, LINEAR_ROWS
from qattrain.export.c_network import CNetwork
from qattrain.files import compiler
from qattrain.files.escapes import visible
from qattrain.integer import INT32_MAX, IntegerModel, ModelFacts

LINE = 116  # characters of numbers in a line
# A file of that name would be found in place of the compiler's own, or be overwritten by main.c or one of --board.
TAKEN = (
    "main|image|semihosting|startup|device|"
    "assert|complex|ctype|errno|fenv|float|inttypes|iso646|limits|locale|math|setjmp|signal|stdarg|stdbool|stddef|"
    "stdint|stdio|stdlib|string|tgmath|threads|time|uchar|wchar|wctype"
)

if TYPE_CHECKING:
    import jinja2


def c_exporter(prefix: str = DEFAULT_PREFIX) -> Exporter:
    """The exporter whose C symbols begin with `prefix`. Raises ConfigError if that is no C identifier, or taken."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", prefix):
        raise ConfigError(f"--prefix {prefix!r}: allowed: a-z, A-Z, 0-9 and _, a letter first, at most 31 in all")
    if re.fullmatch(TAKEN, prefix, re.IGNORECASE):
        raise ConfigError(
            f"--prefix {prefix!r}: {prefix}.c or {prefix}.h would stand in for another file; choose another"
        )

    def board(files: Files, model: IntegerModel, image: NDArray[np.uint8]) -> Files:
        def rendered(name: str, **values: Any) -> str:
            return _rendered(name, prefix, **(_image(model.input_shape) | values))

        made = board_files(files, model, image, rendered) | arduino_files(files, model, image, rendered)
        return made | {"README.md": files["README.md"] + rendered("README_board.md", library=prefix).encode()}

    def measure_cores(files: Files, model: IntegerModel, images: NDArray[np.uint8]) -> Measurement:
        found, notices = measure_devices(files, model, images)
        text = _rendered("README_devices.md", prefix, found=found, notices=notices)
        return Measurement({"README.md": files["README.md"] + text.encode()}, [each.row() for each in found], notices)

    return Exporter(partial(write_c, prefix=prefix), run_c, LAYOUTS, c_exporter, board, measure_cores)


def write_c(model: IntegerModel, facts: ModelFacts, layout: str, prefix: str = DEFAULT_PREFIX) -> Files:
    """model.c, model.h, main.c and README.md. Raises ExportError where a sum could leave int32.

    The same model gives the same bytes; only the sizes in README.md depend on the compilers that are installed.
    """
    assert len(facts.class_names) == model.classes, (facts.class_names, model.classes)
    names = ",\n".join(f"    {_literal(visible(name))}" for name in facts.class_names)  # main.c prints them
    values = _image(model.input_shape)
    files = c_sources(model, layout, prefix) | {
        "main.c": _rendered("main.c", prefix, names=names, **values).encode("ascii")
    }
    network = CNetwork(model, layout)
    # Flash and RAM are measured with the compilers that are installed.
    measured = [(target, footprint) for target in EMBEDDED if (footprint := measure(files, target))]
    if not measured and (footprint := measure(files, HOST)):
        measured = [(HOST, footprint)]
    readme = _rendered(
        "README.md",
        prefix,
        network=network,
        facts=facts,
        native=compiler.NATIVE,
        embedded=EMBEDDED,
        packed=CNetwork(model, "packed"),
        measured=measured,
        compilers=[target.compiler for target in (*EMBEDDED, HOST)],
        **values,
    )
    return files | {"README.md": readme.encode()}


def c_sources(model: IntegerModel, layout: str, prefix: str = DEFAULT_PREFIX) -> Files:
    """model.c and model.h, all that `c_compile.compiled_c` needs. Raises ExportError where a sum could leave int32.

    Nothing in them comes from names a user chose, the prefix excepted.
    """
    for layer in model.layers:
        if layer.accumulator_bound > INT32_MAX:
            raise ExportError(f"{layer.name}: an accumulator could reach {layer.accumulator_bound}, beyond int32")
    network = CNetwork(model, layout)
    bias_type, multiplier_type = network.channel_types
    values = _image(model.input_shape) | {"arena": network.arena}
    source = _rendered(
        "model.c",
        prefix,
        layout=layout,
        summary=[layer.summary for layer in network.layers],
        align=ALIGN,
        geometry=GEOMETRY,
        shared=network.shared,
        weight_type=network.weight_type,
        vector_room=network.vector_room,
        products_fit=int(network.two_products_fit_16_bits),
        plain_bytes=int(network.plain_bytes),
        bias_type=bias_type,
        multiplier_type=multiplier_type,
        wide_products=network.wide_products,
        taps=network.taps,
        depthwise=network.depthwise,
        depthwise_in_16_bits=int(network.depthwise_in_16_bits),
        code_bits=network.wide_products or 32,
        count_type=network.count_type,
        side_type=network.side_type,
        averages=len(network.layers) > len(network.products),
        tables=[network.table(layer) for layer in network.layers],
        kernels=network.kernels,
        calls=network.calls,
        conv_rows=str(CONV_ROWS),
        linear_rows=str(LINEAR_ROWS),
        **values,
    )
    header = _rendered("model.h", prefix, classes=model.classes, **values)
    return {prefixed(name, prefix): text.encode("ascii") for name, text in (("model.c", source), ("model.h", header))}


C_EXPORTER = c_exporter()


def _rendered(name: str, prefix: str, **values: Any) -> str:
    return _template(name, prefix).render(**values)


@functools.cache
def _template(name: str, prefix: str) -> "jinja2.Template":
    """The template of the file `name` in `qattrain/export/c`, with another prefix before its symbols."""
    import jinja2  # here, because no training needs it

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: prefixed((C_FOLDER / file).read_text(encoding="utf-8"), prefix)),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "wrap": _wrapped,
        "shared_fields": _shared_fields,
        "prefixed": partial(prefixed, prefix=prefix),
        "plain": _plain,
    }
    return environment.get_template(f"{name}.jinja")


def _image(shape: Shape) -> dict[str, Any]:
    """What the templates say of an image."""
    channels, rows, columns = shape
    image = f"{rows} rows of {columns} "
    if channels == 1:
        image += "grey pixels, 0 black, 255 white"
    else:
        image += f"pixels of {channels} bytes" + (", red green blue" if channels == 3 else ", one per channel")
    return {"channels": channels, "rows": rows, "columns": columns, "bytes": channels * rows * columns, "image": image}


def _shared_fields(kernels: str, shared: dict[str, int]) -> str:
    """The kernels with a constant instead of every field of `struct convolution` that all convolutions share."""
    return re.sub(r"\bconv->(\w+)", lambda match: match[1].upper() if match[1] in shared else match[0], kernels)


def _wrapped(numbers: list[Any]) -> str:
    """Numbers in lines of equal count, as the initializer of a C array."""
    texts = list(map(str, numbers))
    each = LINE // (max(map(len, texts)) + 2)
    return "    " + ",\n    ".join(", ".join(texts[start : start + each]) for start in range(0, len(texts), each))


def _plain(text: str) -> str:
    """A name of a user's in Markdown: on one line, and no link, tag, code or cell of a table."""
    return re.sub(r"[\\`*<>&\[\]|]", r"\\\g<0>", visible(text))


def _literal(text: str) -> str:
    """A C string of any text. Octal escapes end after three digits, whatever follows; a ? could start a trigraph."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
