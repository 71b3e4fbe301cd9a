"""The C exporter: every logit equals IntegerModel's in both layouts, and the files keep what they promise."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qattrain.config import ModelConfig, QuantConfig
from qattrain.errors import ExportError
from qattrain.export import c_compile
from qattrain.export import c_export as c_readme
from qattrain.export.base import Files
from qattrain.export.c_compile import COMPILERS, EMBEDDED, Target, measure
from qattrain.export.c_export import C_EXPORTER
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts, Requantization, unpack_codes
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model

LAYOUTS = C_EXPORTER.layouts
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror")
EXTREME_BIAS = 2**22 - 1
GRIDS = [
    *((quantizer, bits) for quantizer in ("lsq", "pow2", "affine", "dorefa") for bits in range(2, 9)),
    ("ternary", 2),
    ("binary", 1),
]

Pixels = NDArray[np.uint8]


def grid(quantizer: str, bits: int) -> NDArray[np.int64]:
    if quantizer in ("binary", "dorefa"):
        return np.arange(1 - 2**bits, 2**bits, 2)
    special = {"ternary": [-1, 0, 1], "affine": list(range(2**bits))}
    return np.array(special.get(quantizer, range(-(2 ** (bits - 1)), 2 ** (bits - 1))))


def pictures(n: int = 24, seed: int = 0) -> Pixels:
    """Noise, patches of 7 by 7 pixels, which vary more after pooling, nothing at all, and white."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)
    patches = random.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8).repeat(7, 2).repeat(7, 3)
    flat = np.repeat(np.array([0, 255], np.uint8), 784).reshape(2, 1, 28, 28)
    return np.concatenate([noise, patches, flat])


def random_layer(
    random: np.random.Generator, name: str, shape: tuple[int, ...], grids: tuple[str, int], act_bits: int, x: Any
) -> tuple[IntegerLayer, Any]:
    """A layer with every oddity its width has room for, and what it makes of the codes `x`."""
    quantizer, bits = grids
    codes = random.choice(grid(quantizer, bits), shape)
    codes.flat[:2] = grid(quantizer, bits)[[0, -1]][: codes.size]
    zero_point = int(random.integers(3 * 2**bits // 8, 5 * 2**bits // 8 + 1)) if quantizer == "affine" else 0
    kind = "conv" if len(shape) == 4 else "linear"
    input_max = 255 if name == "conv1" else int(2**act_bits - 1)
    parts = (name, kind, codes, bits, quantizer, int(grid(quantizer, bits)[0]), zero_point)
    acc = IntegerLayer(*parts, np.zeros(shape[0], np.int64), input_max, None).accumulate(
        x if kind == "conv" else x.reshape(len(x), -1)
    )
    # The median of every channel becomes code 0, the upper tenth is cut off: codes of all sizes occur.
    middle, top = np.quantile(np.moveaxis(acc, 1, 0).reshape(shape[0], -1), [0.5, 0.9], axis=1)
    bias, odd = random.integers(-9, 10, shape[0]) - middle.astype(np.int64), shape[0] > 12
    if odd:
        bias[3:5] = EXTREME_BIAS, -EXTREME_BIAS
        if quantizer not in ("binary", "dorefa"):  # they have no 0
            codes[2], bias[2] = zero_point, 0  # a dead channel
    requantization = None
    if name != "fc2":
        factor = (2**act_bits - 1) / np.maximum(top - middle, 1)
        shift = np.clip(30 - np.ceil(np.log2(factor)), 1, 62).astype(np.int64)
        multiplier = (factor * 2.0**shift).astype(np.int64)
        if quantizer == "pow2":
            multiplier = 2 ** np.log2(multiplier).astype(np.int64)
        if odd:
            multiplier[:2], shift[:2] = (0, 1), (62, 1)
            multiplier[5:7], shift[5:7] = (2**31 - 1, 2**30), (62, 1)
        requantization = Requantization(multiplier, shift, act_bits)
    layer = IntegerLayer(*parts, bias, input_max, requantization)
    acc = layer.accumulate(x if kind == "conv" else x.reshape(len(x), -1))
    return layer, requantization.apply(acc) if requantization else acc


def random_model(
    grids: Any, act_bits: int = 4, widths: tuple[int, int, int] = (15, 17, 33), classes: int = 10, seed: int = 0
) -> IntegerModel:
    """grids: (quantizer, bits) of all layers, or a list of one for each."""
    random, (c1, c2, features) = np.random.default_rng(seed), widths
    shapes = {"conv1": (c1, 1, 5, 5), "conv2": (c2, c1, 5, 5), "fc1": (features, c2 * 16), "fc2": (classes, features)}
    x: Any = pictures(12, seed=99).astype(np.int64)
    layers = []
    each = grids if isinstance(grids, list) else [grids] * 4
    for (name, shape), own in zip(shapes.items(), each, strict=True):
        layer, x = random_layer(random, name, shape, own, act_bits, x)
        layers.append(layer)
    return IntegerModel(tuple(layers), 0.001)


def facts(model: IntegerModel, **changes: Any) -> ModelFacts:
    names = tuple(map(str, range(model.classes)))
    return ModelFacts(**({"name": "n", "dataset": "d", "class_names": names, "test_accuracy": 0.9876} | changes))


def export(model: IntegerModel, layout: str = "packed", **changes: Any) -> Files:
    return C_EXPORTER.write(model, facts(model, **changes), layout)


@pytest.fixture(autouse=True)
def unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring sizes takes longer than the rest: only in the tests that read them."""
    if "measured" not in request.fixturenames:
        monkeypatch.setattr(c_readme, "measure", lambda *_: None)


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
    images = pictures()
    expected = model.run(images)
    for layout in LAYOUTS:
        with C_EXPORTER.run(export(model, layout)) as run:
            logits = run(images)
            assert logits.dtype == np.int32
            assert np.array_equal(logits, expected), (layout, int((logits != expected).any(1).sum()))
            assert run(images[:0]).shape == (0, model.classes)


@pytest.mark.parametrize(("quantizer", "bits"), GRIDS)
def test_every_logit_is_equal_for_every_grid_and_width(quantizer: str, bits: int) -> None:
    act_bits = 9 - bits  # all widths of activations too
    model = random_model((quantizer, bits), act_bits, seed=bits)
    for codes in model.trace(pictures()):
        assert len(np.unique(codes)) >= 2**act_bits / 2  # not all 0, nor all cut off
    assert_equal_logits(model)


@pytest.mark.parametrize(
    ("grids", "act_bits", "widths", "classes"),
    [
        ([("affine", 8), ("binary", 1), ("ternary", 2), ("lsq", 7)], 8, (7, 11, 13), 47),
        ([("pow2", 3), ("affine", 8), ("lsq", 5), ("binary", 1)], 1, (1, 1, 1), 2),
        (("lsq", 8), 8, (20, 50, 500), 10),
        (("affine", 8), 8, (8, 16, 120), 26),
        (("pow2", 4), 4, (3, 5, 300), 1),
    ],
    ids=str,
)
def test_mixed_bits_odd_widths_and_other_class_counts(
    grids: Any, act_bits: int, widths: tuple[int, int, int], classes: int
) -> None:
    assert_equal_logits(random_model(grids, act_bits, widths, classes))


@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 255])
def test_affine_weights_of_8_bits_for_which_a_byte_is_too_small(zero_point: int) -> None:
    model = random_model(("affine", 8), 3)
    layers = tuple(IntegerLayer(**(vars(layer) | {"zero_point": zero_point})) for layer in model.layers)
    assert_equal_logits(IntegerModel(layers, 1.0))


@pytest.mark.parametrize(
    "quant", [{"bits": 2, "act_bits": 4}, {"quantizer": "affine", "bits": 8}, {"quantizer": "pact", "bits": 8}], ids=str
)
def test_a_trained_network_is_equal_once_lowered(quant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = build_model(ModelConfig(name="lenet-nano"), QuantConfig(**quant), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    batch = torch.from_numpy(pictures(8))[:16]
    for _ in range(8):
        loss = F.cross_entropy(net(batch), torch.arange(16) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_equal_logits(lower(net))


def test_ties_go_to_the_lowest_class(tmp_path: Path) -> None:
    model = random_model(("lsq", 4))
    last = model.layers[-1]
    flat = vars(last) | {"codes": np.zeros_like(last.codes), "bias": np.array([1, 5, 2, 5, 5, 0, -1, 5, 4, 3])}
    model = IntegerModel((*model.layers[:-1], IntegerLayer(**flat)), 1.0)
    program = compile_main(export(model), tmp_path)
    done = subprocess.run([program], input=bytes(784), capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == b"1"


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("lsq", 3), ("ternary", 2), ("binary", 1), ("affine", 5), ("dorefa", 3)]
)
def test_packed_weights_lie_in_the_documented_order_without_gaps(quantizer: str, bits: int) -> None:
    model = random_model((quantizer, bits))
    source = export(model)["model.c"].decode()
    for layer in model.layers:
        text = re.search(rf"{layer.name}_codes\[(\d+)\] = \{{(.*?)\}}", source, re.DOTALL)
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
    files = export(random_model(("affine", 8)), layout, name=words, dataset=words, class_names=(words,) * 10)
    source = files["model.c"].decode()
    assert not re.search("float|double|malloc|printf", source)
    for_vectors = (
        "#if defined __AVX2__ && !defined QATTRAIN_PORTABLE\n#define VECTORS\n#include <immintrin.h>\n#endif\n"
    )
    assert (for_vectors in source) == (layout == "int8")
    source = source.replace(for_vectors, "")
    assert re.findall("#include (.*)", source + files["model.h"].decode()) == ['"model.h"', "<stdint.h>"]
    assert len(re.findall(r"^static (?!const)[^(]*[;{]$", source, re.MULTILINE)) == 1  # the arena


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_model_gives_the_same_bytes(layout: str) -> None:
    model = random_model(("lsq", 4))
    layers = (IntegerLayer(**(vars(layer) | {"codes": np.asfortranarray(layer.codes)})) for layer in model.layers)
    assert export(model, layout) == export(IntegerModel(tuple(layers), 0.001), layout)


FORMS = [("packed", ()), ("int8", ()), ("int8", ("-march=native",))]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_no_compiler_has_anything_to_warn_of(
    compiler: str, layout: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    for index, (grids, act_bits) in enumerate([(("affine", 8), 8), (("pow2", 2), 1), (("binary", 1), 4)]):
        folder = tmp_path / str(index)
        folder.mkdir()
        compile_main(export(random_model(grids, act_bits), layout), folder, "-O2", *flags, compiler=compiler)


@pytest.mark.parametrize("grids", [("affine", 8), ("lsq", 3)], ids=str)
@pytest.mark.parametrize(("layout", "flags"), FORMS, ids=str)
def test_sanitizers_find_nothing(grids: tuple[str, int], layout: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    model = random_model(grids, 8, (9, 7, 33), 11)
    flags += ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compile_main(export(model, layout), tmp_path, *flags)
    images = pictures(2)
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
    model = random_model(("lsq", 2), 4, (8, 16, 32))
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
    strict = Target(target.name, target.compiler, (*target.flags, *STRICT), target.size)
    assert measure(export(random_model(("affine", 8)), layout), strict) is not None


def test_the_program_reads_a_file_or_standard_input_and_refuses_what_is_no_image(tmp_path: Path) -> None:
    model = random_model(("lsq", 4), classes=4)
    names = ("zero", 'a"b\\c', "??/%d", "\u00e9")
    program = compile_main(export(model, class_names=names), tmp_path)
    image = pictures()[:1]
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
    model = random_model(("lsq", 3))
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
    model = random_model(("lsq", 4))
    huge = IntegerLayer(**(vars(model.layers[-1]) | {"bias": np.full(10, 2**31 - 1)}))
    with pytest.raises(ExportError, match=r"fc2: an accumulator could reach .*beyond int32"):
        export(IntegerModel((*model.layers[:-1], huge), 1.0))


def test_a_correction_beyond_int32_is_refused_in_layout_int8_alone() -> None:
    model = random_model(("affine", 8), 8, (1, 4200, 1))
    codes = np.zeros_like(model.layers[2].codes)
    codes[0, 0] = 255
    wide = IntegerLayer(**(vars(model.layers[2]) | {"codes": codes, "zero_point": 0}))
    model = IntegerModel((*model.layers[:2], wide, model.layers[3]), 1.0)
    with pytest.raises(ExportError, match=r"fc1: .*int8 could reach .*use layout packed"):
        export(model, "int8")
    export(model, "packed")


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = export(random_model(("lsq", 4)))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match=r"no C compiler: none of cc, gcc, clang.*install"), C_EXPORTER.run(files):
        pass
    assert all(measure(files, target) is None for target in EMBEDDED)


def test_a_compiler_that_fails_and_a_library_that_does_not_load_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(*COMPILERS)
    files = export(random_model(("lsq", 4)))
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
