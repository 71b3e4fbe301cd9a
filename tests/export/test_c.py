"""The C exporter: every logit equals IntegerModel's in both layouts, and the files are what they claim to be."""

import functools
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import integer_models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integer_models import GRIDS, ODD, grid, random_images, with_layer

from qattrain.config import ModelConfig, QuantConfig
from qattrain.errors import ExportError
from qattrain.export import c_compile, c_export
from qattrain.export.base import Files
from qattrain.export.c_compile import C_FOLDER, EMBEDDED, Target, measure
from qattrain.export.c_export import C_EXPORTER
from qattrain.export.c_layers import GEOMETRY
from qattrain.files.compiler import COMPILERS
from qattrain.integer import IntegerModel, ModelFacts, unpack_codes
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model

LAYOUTS = C_EXPORTER.layouts
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror")
PICTURES = random_images(50)
random_model = functools.partial(integer_models.random_model, widths=ODD)


def facts(model: IntegerModel, **changes: Any) -> ModelFacts:
    names = tuple(map(str, range(model.classes)))
    return ModelFacts(**({"name": "n", "dataset": "d", "class_names": names, "test_accuracy": 0.9876} | changes))


def export(model: IntegerModel, layout: str = "packed", **changes: Any) -> Files:
    return C_EXPORTER.write(model, facts(model, **changes), layout)


@pytest.fixture(autouse=True)
def unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring sizes takes longer than everything else, so only the tests that need them do it."""
    if "measured" not in request.fixturenames:
        monkeypatch.setattr(c_export, "measure", lambda *_: None)


@pytest.fixture
def measured() -> None: ...


def place(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def needs(*programs: str) -> str:
    """The first of them that is installed."""
    for program in programs:
        if shutil.which(program):
            return program
    pytest.skip(f"not installed: {', '.join(programs)}")


def compile_main(files: Files, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    command = [needs(compiler), *STRICT, *flags, "model.c", "main.c", "-o", "classify"]
    done = subprocess.run(command, cwd=place(files, folder), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "classify"


def assert_equal_logits(model: IntegerModel) -> None:
    needs(*COMPILERS)
    images, expected = PICTURES, model.run(PICTURES)
    for layout in LAYOUTS:
        with C_EXPORTER.run(export(model, layout)) as run:
            logits = run(images)
            assert logits.dtype == np.int32
            assert np.array_equal(logits, expected), (layout, int((logits != expected).any(1).sum()))
            assert run(images[:0]).shape == (0, model.classes)


@pytest.mark.parametrize(("quantizer", "bits"), [one for one in GRIDS if one[1] > 1 or one[0] == "binary"])
def test_every_logit_is_equal_for_every_grid_and_width(quantizer: str, bits: int) -> None:
    act_bits = 9 - bits  # all widths of activations too
    model = random_model(quantizer, bits, act_bits, seed=bits)
    for codes in model.trace(PICTURES):
        assert len(np.unique(codes)) >= 2**act_bits / 2  # not all 0, nor all cut off
    assert_equal_logits(model)


@pytest.mark.parametrize(
    ("quantizers", "bits", "act_bits", "widths", "classes"),
    [
        (("affine", "binary", "ternary", "lsq"), (8, 1, 2, 7), 8, (7, 11, 13), 47),
        (("pow2", "affine", "lsq", "binary"), (3, 8, 5, 1), 1, (1, 1, 1), 2),
        ("lsq", 8, 8, (20, 50, 500), 10),
        ("affine", 8, 8, (8, 16, 120), 26),
        ("pow2", 4, 4, (3, 5, 300), 1),
    ],
    ids=str,
)
def test_mixed_bits_odd_widths_and_other_class_counts(
    quantizers: Any, bits: Any, act_bits: int, widths: tuple[int, int, int], classes: int
) -> None:
    assert_equal_logits(random_model(quantizers, bits, act_bits, widths=widths, classes=classes))


@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 255])
def test_affine_weights_of_8_bits_for_which_a_byte_is_too_small(zero_point: int) -> None:
    model = random_model("affine", 8, 3)
    for index in range(4):
        model = with_layer(model, index, zero_point=zero_point)
    assert_equal_logits(model)


@pytest.mark.parametrize(
    "quant", [{"bits": 2, "act_bits": 4}, {"quantizer": "affine", "bits": 8}, {"quantizer": "pact", "bits": 8}], ids=str
)
def test_a_trained_network_is_equal_once_lowered(quant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = build_model(ModelConfig(name="lenet-nano"), QuantConfig(**quant), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    batch = torch.from_numpy(random_images(16))
    for _ in range(8):
        loss = F.cross_entropy(net(batch), torch.arange(16) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_equal_logits(lower(net))


def test_ties_go_to_the_lowest_class(tmp_path: Path) -> None:
    model = random_model()
    bias = np.array([1, 5, 2, 5, 5, 0, -1, 5, 4, 3])
    model = with_layer(model, 3, codes=np.zeros_like(model.layers[3].codes), bias=bias)
    program = compile_main(export(model), tmp_path)
    done = subprocess.run([program], input=bytes(784), capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == b"1"


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("lsq", 3), ("ternary", 2), ("binary", 1), ("affine", 5), ("dorefa", 3)]
)
def test_packed_weights_lie_in_the_documented_order_without_gaps(quantizer: str, bits: int) -> None:
    model = random_model(quantizer, bits)
    source = export(model)["model.c"].decode()
    for layer in model.layers:
        text = re.search(rf"{layer.name}_codes\[(\d+) \+ BEHIND\] = \{{(.*?)\}}", source, re.DOTALL)
        assert text is not None
        stream = np.array([int(number, 16) for number in text[2].split(",")], np.uint8)
        assert len(stream) == int(text[1]) == -(-layer.codes.size * bits // 8)
        numbers = unpack_codes(stream, bits, 0, layer.codes.size)
        codes = layer.codes
        if layer.name == "fc1":
            codes = codes.reshape(len(codes), -1, 4, 4)
        if codes.ndim == 4:
            codes = codes.transpose(0, 2, 3, 1)
        expected = np.searchsorted(grid(quantizer, bits), codes)
        assert np.array_equal(numbers, expected.ravel())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_model_speaks_only_of_integers_and_needs_one_header(layout: str) -> None:
    words = "float double malloc printf"
    files = export(random_model("affine", 8), layout, name=words, dataset=words, class_names=(words,) * 10)
    source = files["model.c"].decode()
    assert not re.search("float|double|malloc|printf", source)
    for_vectors = (
        "#if defined __AVX2__ && !defined QATTRAIN_PORTABLE\n#define VECTORS\n#include <immintrin.h>\n#endif\n"
    )
    assert for_vectors in source
    source = source.replace(for_vectors, "")
    assert re.findall("#include (.*)", source + files["model.h"].decode()) == ['"model.h"', "<stdint.h>"]
    assert len(re.findall(r"^static (?!const)[^(]*[;{]$", source, re.MULTILINE)) == 1  # the arena


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_model_gives_the_same_bytes(layout: str) -> None:
    model = other = random_model()
    for index, layer in enumerate(model.layers):
        other = with_layer(other, index, codes=np.asfortranarray(layer.codes))
    assert export(model, layout) == export(other, layout)


FORMS = [("packed", ()), ("packed", ("-march=native",)), ("int8", ()), ("int8", ("-march=native",))]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_no_compiler_has_anything_to_warn_of(
    compiler: str, layout: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    for quantizer, bits, act_bits in (("affine", 8, 8), ("pow2", 2, 1), ("binary", 1, 4)):
        folder = tmp_path / quantizer
        folder.mkdir()
        files = export(random_model(quantizer, bits, act_bits), layout)
        compile_main(files, folder, "-O2", *flags, compiler=compiler)


@pytest.mark.parametrize(("quantizer", "bits"), [("affine", 8), ("lsq", 3)])
@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_sanitizers_find_nothing(
    quantizer: str, bits: int, layout: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    model = random_model(quantizer, bits, 8, widths=(9, 7, 33), classes=11)
    flags += ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compile_main(export(model, layout), tmp_path, *flags)
    images = PICTURES[:6]
    for image, expected in zip(images, model.run(images), strict=True):
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # which cannot run under a debugger
        done = subprocess.run(
            [program], input=image.tobytes(), capture_output=True, timeout=60, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert [int(line.split()[1]) for line in done.stdout.splitlines()[1:]] == expected.tolist()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("target", EMBEDDED, ids=lambda target: target.name)
def test_nano_at_2_bits_fits_16_kib_of_flash_and_4_kib_of_ram(target: Target) -> None:
    needs(target.compiler)
    model = random_model(bits=2, widths=(8, 16, 32))
    files = export(model)
    footprint = measure(files, target)
    assert footprint is not None
    assert footprint.stack_bytes is not None
    assert footprint.flash_bytes <= 16 * 1024
    assert footprint.ram_bytes + footprint.stack_bytes <= 4 * 1024
    row = next(line for line in files["README.md"].decode().splitlines() if target.compiler in line and "|" in line)
    assert row.endswith(f"| {footprint.flash_bytes} | {footprint.ram_bytes} | {footprint.stack_bytes} |")
    arena = re.search(r"QATTRAIN_ARENA_BYTES (\d+)", files["model.h"].decode())
    assert arena is not None
    assert int(arena[1]) <= footprint.ram_bytes < int(arena[1]) + 8  # what is left is alignment


@pytest.mark.parametrize(("target", "layout"), list(itertools.product(EMBEDDED, LAYOUTS)), ids=str)
def test_both_layouts_link_without_a_library_and_without_a_warning(target: Target, layout: str) -> None:
    needs(target.compiler)
    strict = Target(target.name, target.compiler, (*target.flags, *STRICT))
    assert measure(export(random_model("affine", 8), layout), strict) is not None


def test_the_program_reads_a_file_or_standard_input_and_refuses_what_is_no_image(tmp_path: Path) -> None:
    model = random_model(classes=4)
    names = ("zero", 'a"b\\c', "??/%d", "\u00e9")
    program = compile_main(export(model, class_names=names), tmp_path)
    image = PICTURES[3:4]
    logits = model.run(image)[0].tolist()
    lines = [names[int(np.argmax(logits))], *(f"{name} {logit}" for name, logit in zip(names, logits, strict=True))]
    files = {"image": image.tobytes(), "short": bytes(783), "long": bytes(785), "empty": b""}
    place(files, tmp_path)

    def classify(*arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [program, *arguments], input=stdin, cwd=tmp_path, capture_output=True, timeout=60, check=False
        )

    for done in (classify("image"), classify(stdin=image.tobytes())):
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode().splitlines() == lines
    for name, word in (("short", b"too short"), ("long", b"too long"), ("empty", b"too short"), ("none", b"opened")):
        done = classify(name)
        assert (done.returncode, done.stdout) == (1, b"")
        assert word in done.stderr
    assert classify("image", "image").returncode == 2


def test_the_readme_says_what_is_known_and_what_was_not_measured() -> None:
    model = random_model(bits=3)
    text = export(model, name="tiny", dataset="digits")["README.md"].decode()
    for part in (
        "# tiny",
        "digits",
        "98.76 %",
        "| conv2 | 6375 | 17 x 15 x 5 x 5 | 3 | lsq | 2391 |",
        "was not measured",
    ):
        assert part in text
    assert "accuracy was not measured" in export(model, test_accuracy=None)["README.md"].decode()


def test_an_accumulator_beyond_int32_is_refused() -> None:
    huge = with_layer(random_model(), 3, bias=np.full(10, 2**31 - 1))
    with pytest.raises(ExportError, match=r"fc2: an accumulator could reach .*beyond int32"):
        export(huge)


def test_a_correction_beyond_int32_is_refused_in_layout_int8_alone() -> None:
    model = random_model("affine", 8, 8, widths=(1, 4200, 1))
    codes = np.zeros_like(model.layers[2].codes)
    codes[0, 0] = 255
    model = with_layer(model, 2, codes=codes, zero_point=0)
    with pytest.raises(ExportError, match=r"fc1: .*int8 could reach .*use layout packed"):
        export(model, "int8")
    export(model, "packed")


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = export(random_model())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ExportError, match=r"no C compiler: none of cc, gcc, clang.*install"), C_EXPORTER.run(files):
        pass
    assert all(measure(files, target) is None for target in EMBEDDED)


def test_the_compiler_is_the_one_that_cc_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "nosuchcompiler")
    with (
        pytest.raises(ExportError, match="none of nosuchcompiler is on the PATH"),
        C_EXPORTER.run(export(random_model())),
    ):
        pass


PRELUDE = """
#include "model.h"
#define CONV_ROWS 2
#define LINEAR_ROWS 8
#define LONGEST_INPUT 800
#define LONGEST_WINDOW 512
#define BLOCK 16384
#define TWO_PRODUCTS_FIT_16_BITS 0
#define WIDE_PRODUCTS 64
#define DEPTHWISE_IN_16_BITS 1
#define PLAIN_BYTES 0
typedef int16_t weight_t, bias_t;
typedef uint32_t multiplier_t;
typedef uint16_t count_t, side_t;
struct tap { uint32_t weight, at; };
"""
CONVOLUTION = f"struct convolution {{ struct layer layer; side_t {', '.join(GEOMETRY)}; }};"


@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_the_kernels_in_the_package_are_plain_c(layout: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """A compiler reads them as they are, given what the tables of a model would define."""
    of_layout = sorted(path.name for path in C_FOLDER.glob(f"{layout}*.c"))
    small = ("convolve.c", "taps.c")
    last = ("depthwise.c", "convolve_pairs.c", "average.c")
    names = ("average.h", "requantize.c", "sums.c", "vectors.c", *small, *of_layout, *last)
    kernels = [f'#include "{C_FOLDER / name}"' for name in names]
    headers = [f'#include "{C_FOLDER / name}.h"' for name in ("vectors", layout)]
    source = "\n".join([PRELUDE, *headers, CONVOLUTION, *kernels, ""])
    place({"kernels.c": source.encode(), "model.h": export(random_model())["model.h"]}, tmp_path)
    command = [needs("gcc"), *STRICT, *flags, "-Wno-unused-function", "-fsyntax-only", "kernels.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_fails_and_a_library_that_does_not_load_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(*COMPILERS)
    files = export(random_model())
    with (
        pytest.raises(ExportError, match=r"cannot compile model\.c: .*error"),
        C_EXPORTER.run(files | {"model.c": b"?"}),
    ):
        pass

    def refuse(_path: str) -> None:
        raise OSError("failed to map segment")

    monkeypatch.setattr(c_compile.ctypes, "CDLL", refuse)
    with pytest.raises(ExportError, match="cannot be loaded: failed to map segment; set TMPDIR"), C_EXPORTER.run(files):
        pass


def test_what_is_compiled_to_be_executed_lies_where_nobody_else_may_write() -> None:
    before = os.umask(0)
    try:
        with c_compile.placed({"model.c": b""}) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert folder.stat().st_uid == os.geteuid()
    finally:
        os.umask(before)
    assert not folder.exists()
