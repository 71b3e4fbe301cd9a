"""Both layouts in every form their C has: each set of vector instructions, and none, equals the integers."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from integer_models import GRIDS, random_images, random_model, with_layer

from qattrain.errors import ExportError
from qattrain.export import c_export
from qattrain.export.base import Files
from qattrain.export.c_compile import PORTABLE, compiled_c
from qattrain.export.c_export import C_EXPORTER
from qattrain.export.c_layers import LAYOUTS
from qattrain.export.c_network import BLOCK, CNetwork
from qattrain.files import compiler as compiling
from qattrain.files.compiler import NATIVE, find_compiler
from qattrain.integer import IntegerModel, ModelFacts

# The compiler's flags, what /proc/cpuinfo must list, and the instruction that must appear in the assembly.
FORMS: dict[str, tuple[tuple[str, ...], set[str], str]] = {
    "avx512vnni": (("-mavx2", "-mavx512vnni", "-mavx512vl"), {"avx512_vnni", "avx512vl"}, " vpdpbusd"),
    "avxvnni": (("-mavx2", "-mavxvnni"), {"avx_vnni"}, "{vex} vpdpbusd"),
    "avx2": (("-mavx2",), {"avx2"}, " vpmaddubsw"),
    "portable": (("-mavx2", f"-D{PORTABLE}"), {"avx2"}, ""),
    "portable native": ((NATIVE, f"-D{PORTABLE}"), set(), ""),
}
WORST = random_images(8)
WORST[1:4] = 255


def worst(
    quantizer: str, codes: tuple[int, int], zero_point: int = 0, widths: tuple[int, int, int] = (7, 9, 41)
) -> IntegerModel:
    """The largest possible weights on the largest possible codes, alone and next to the smallest."""
    model = random_model(quantizer, 8, 8, widths, zero_point=zero_point)
    for index, layer in enumerate(model.layers):
        extreme = np.resize(np.array(codes), layer.codes.shape)
        extreme[::2] = codes[0]
        model = with_layer(model, index, codes=extreme)
    return model


MODELS = {
    "4 bits": random_model("lsq", 4, 4),
    "8 bits": random_model("lsq", 8, 8),
    "mixed": random_model(("lsq", "binary", "ternary", "affine"), (8, 1, 2, 3), (5, 1, 8), (3, 5, 7), 47),
    "one channel": random_model("pow2", 3, 8, (1, 1, 1), 1),
    "wide": random_model("affine", 8, 8, (20, 50, 70)),
    "all 127": worst("lsq", (127, -128)),
    "all -128": worst("lsq", (-128, 127)),
    "255 above the zero point": worst("affine", (255, 0)),
    "255 below it": worst("affine", (0, 255), 255),
    "odd": random_model("dorefa", 8, 8),
    "odd, all 255": worst("dorefa", (255, -255)),
    "odd, but not all of them": worst("dorefa", (-255, 101)),
    "conv1's pixels behind conv2's": worst("affine", (255, 0), widths=(2, 3, 5)),
}


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_export, "measure", lambda *_: None)


def export(model: IntegerModel, layout: str = "int8") -> Files:
    facts = ModelFacts("n", "d", tuple(map(str, range(model.classes))), None)
    return C_EXPORTER.write(model, facts, layout)


def processor() -> set[str]:
    """Its features, as Linux names them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.fixture(params=["gcc", "clang"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"not installed: {request.param}")
    monkeypatch.setenv("CC", request.param)
    return str(request.param)


def assembly(files: Files, compiler: str, flags: tuple[str, ...], folder: Path) -> str:
    """model.c translated; skips where the compiler does not know the flags."""
    (folder / "empty.c").write_text("int none;\n", encoding="ascii")
    known = subprocess.run(
        [compiler, *flags, "-c", "empty.c"], cwd=folder, capture_output=True, timeout=60, check=False
    )
    if known.returncode:
        pytest.skip(f"{compiler} does not know {' '.join(flags)}")
    for name in ("model.c", "model.h"):
        (folder / name).write_bytes(files[name])
    subprocess.run([compiler, "-std=c99", "-O2", *flags, "-S", "model.c"], cwd=folder, timeout=120, check=True)
    return (folder / "model.s").read_text(encoding="utf-8").replace("\t", " ")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_integers_on_random_and_on_extreme_networks(
    form: str, layout: str, compiler: str, tmp_path: Path
) -> None:
    flags, needed, instruction = FORMS[form]
    assert instruction in assembly(export(MODELS["4 bits"], layout), compiler, flags, tmp_path)
    if not needed <= processor():
        pytest.skip(f"this processor has no {', '.join(sorted(needed - processor()))}")
    images = np.concatenate([random_images(24), WORST])
    for name, model in MODELS.items():
        with compiled_c(export(model, layout), *flags) as run:
            assert np.array_equal(run(images), model.run(images)), name


@pytest.mark.parametrize(("code", "fits"), [(64, True), (-64, True), (65, False), (-65, False)])
def test_products_are_added_in_16_bits_only_where_they_fit(
    code: int, fits: bool, compiler: str, tmp_path: Path
) -> None:
    """Two white pixels times 64 are 32,640; times 65 they are beyond 16 bits."""
    model = random_model("lsq", 4)
    model = with_layer(model, 0, codes=np.full_like(model.layers[0].codes, code), bits=8)
    assert CNetwork(model, "int8").two_products_fit_16_bits == fits
    flags, needed, instruction = FORMS["avx2"]
    assert (instruction in assembly(export(model), compiler, flags, tmp_path)) == fits
    if not needed <= processor():
        pytest.skip("this processor has no avx2")
    with compiled_c(export(model), *flags) as run:
        assert np.array_equal(run(WORST), model.run(WORST))


@pytest.mark.parametrize(("bits", "fits"), [(6, True), (7, False), (8, False)])
def test_packed_numbers_are_added_in_16_bits_only_where_two_products_fit(
    bits: int, fits: bool, compiler: str, tmp_path: Path
) -> None:
    """Two white pixels times 63, the largest number of 6 bits, are 32,130; times 127 they are beyond 16 bits."""
    for quantizer in ("lsq", "affine", "dorefa"):
        model = random_model(quantizer, bits, 1)
        model = with_layer(model, 0, codes=np.full_like(model.layers[0].codes, model.layers[0].grid[-1]))
        assert CNetwork(model, "packed").two_products_fit_16_bits == fits
        flags, needed, instruction = FORMS["avx2"]
        assert (instruction in assembly(export(model, "packed"), compiler, flags, tmp_path)) == fits
        if not needed <= processor():
            pytest.skip("this processor has no avx2")
        with compiled_c(export(model, "packed"), *flags) as run:
            assert np.array_equal(run(WORST), model.run(WORST)), quantizer


@pytest.mark.parametrize(("quantizer", "bits"), GRIDS)
def test_rows_of_any_bits_are_unpacked_wherever_they_begin(quantizer: str, bits: int) -> None:
    """Rows of 25, of 25 c and of 16 c weights: they begin at any bit of a byte, and end anywhere in a vector."""
    if not {"avx2"} <= processor() or find_compiler() is None:
        pytest.skip("no compiler for avx2, or no processor with it")
    for widths in ((1, 2, 3), (7, 9, 67), (8, 16, 32)):
        model = random_model(quantizer, bits, 8, widths, seed=bits)
        with compiled_c(export(model, "packed"), "-O1", "-mavx2") as run:
            assert np.array_equal(run(WORST), model.run(WORST)), widths


def test_a_layer_that_is_unpacked_in_several_blocks() -> None:
    if not {"avx2"} <= processor() or find_compiler() is None:
        pytest.skip("no compiler for avx2, or no processor with it")
    model = random_model("lsq", 3, 8, (20, 70, 5))
    layer = CNetwork(model, "packed").layers[1]
    assert layer.stride * 70 > BLOCK
    images = random_images(24)
    with compiled_c(export(model, "packed"), "-O1", "-mavx2") as run:
        assert np.array_equal(run(images), model.run(images))


def test_the_arena_of_layout_packed_is_no_larger_for_vectors() -> None:
    """What they need besides lies on the stack, and the sizes of it are not in model.h."""
    files = export(random_model("lsq", 4, 4, (20, 50, 500)), "packed")
    assert b"VECTORS" not in files["model.h"]
    assert b"QATTRAIN_ARENA_BYTES 4180 " in files["model.h"]


@pytest.mark.parametrize(
    ("layout", "right", "other"),
    [("int8", "_mm256_shuffle_epi32(all, 0x4e)", "all"), ("packed", "_mm256_xor_si256", "_mm256_or_si256")],
)
def test_forms_that_differ_are_noticed(layout: str, right: str, other: str) -> None:
    if not {"avx2"} <= processor() or find_compiler() is None:
        pytest.skip("no compiler for avx2, or no processor with it")
    files = export(MODELS["8 bits"], layout)
    wrong = files["model.c"].replace(right.encode(), other.encode())
    assert wrong != files["model.c"]
    with C_EXPORTER.run(files | {"model.c": wrong}) as run, pytest.raises(ExportError, match=f"images .* -D{PORTABLE}"):
        run(random_images(8))


def test_a_compiler_that_does_not_know_the_processor_compiles_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(compiling, "NATIVE", "-march=of-no-processor")
    with C_EXPORTER.run(export(MODELS["4 bits"])) as run:
        assert np.array_equal(run(WORST), MODELS["4 bits"].run(WORST))
