"""The exported C on microcontrollers' cores under QEMU: equal logits, what it takes, and what is said without tools."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import LENET, SMALL, random_model, with_layer
from random_chains import Case, trained

from qattrain.config import ModelConfig, QuantConfig
from qattrain.config.chain import Shape
from qattrain.data import load_dataset
from qattrain.errors import ExportError
from qattrain.export import c_devices
from qattrain.export.base import noise_images
from qattrain.export.c_compile import EMBEDDED, footprint
from qattrain.export.c_devices import DEVICES, IMAGES, Device, measure_device
from qattrain.export.c_export import c_sources
from qattrain.export.c_layers import LAYOUTS
from qattrain.export.c_profile import CORTEX_M0, CORTEX_M4, IBEX, Core, Instruction, profile
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.packed import write_packed

TINY = random_model(widths=SMALL)
DEPTHWISE = "conv 6 5x5 stride 2 bn, dw 3x3 bn, conv 12 1x1 bn, pool 2, dw 3x3 bn, avgpool, fc"
ROW_FIELDS = [
    *("device", "core", "compiled_with", "images", "macs", "instructions", "flash_bytes", "ram_bytes", "stack_bytes"),
    *("manual", "instructions_per_mac", "cycles_low", "cycles_high", "executed"),
]


def needs(name: str) -> Device:
    device = DEVICES[name]
    if device.missing:
        pytest.skip(f"not installed: {', '.join(device.missing)}")
    return device


def chain(line: str, shape: Shape) -> IntegerModel:
    return lower(trained(Case(ModelConfig(name=line), QuantConfig(bits=4), shape, 10)), shape)


def real_images(count: int) -> Any:
    return load_dataset("digits", Path()).test.head(count).images.numpy()


@pytest.fixture(scope="module")
def depthwise() -> IntegerModel:
    return chain(DEPTHWISE, (1, 28, 28))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", ["nano", "depthwise", "colour"])
@pytest.mark.parametrize("name", DEVICES)
def test_every_logit_is_equal_on_real_and_noise_images_and_the_figures_hold(
    name: str, network: str, layout: str, depthwise: IntegerModel
) -> None:
    device = needs(name)
    model = {"nano": random_model(widths=(4, 8, 12), bits=(4, 2, 3, 5)), "depthwise": depthwise}.get(network)
    images = np.concatenate([real_images(12), noise_images((1, 28, 28))[:12]])
    if model is None:
        model = chain("conv 5 3x3 pad 1, pool 2, dw 3x3 stride 2, fc 9, fc", (3, 11, 8))
        images = noise_images((3, 11, 8))[:24]
    files = c_sources(model, layout)
    found = measure_device(files, model, images, name)  # raises if a logit differs
    assert (found.images, found.device) == (24, name)
    assert found.macs == sum(layer.macs(shape) for layer, shape in zip(model.layers, model.shapes, strict=False))
    assert found.profile.instructions == sum(found.profile.kinds.values())
    assert found.profile.kinds["multiply"] > 0
    assert found.profile.cycles_low <= found.profile.cycles_high
    assert 0.5 * found.macs < found.instructions < 100 * found.macs
    needed = footprint(files, device.target)
    assert (found.flash_bytes, found.ram_bytes) == (needed.flash_bytes, needed.ram_bytes)
    arena = re.search(r"QATTRAIN_ARENA_BYTES (\d+)", files["model.h"].decode())
    assert arena is not None
    assert int(arena[1]) <= found.ram_bytes < int(arena[1]) + 8
    assert needed.stack_bytes is not None
    assert 0 < found.stack_bytes <= needed.stack_bytes


def test_counts_repeat_exactly_and_do_not_depend_on_names() -> None:
    needs("cortex-m0")
    images = noise_images((1, 28, 28))[:3]
    first = measure_device(c_sources(TINY, "packed"), TINY, images, "cortex-m0")
    assert measure_device(c_sources(TINY, "packed", "Cats_2"), TINY, images, "cortex-m0") == first
    one = measure_device(c_sources(TINY, "packed"), TINY, images[:1], "cortex-m0")
    assert one.profile == first.profile
    assert one.instructions == pytest.approx(one.profile.instructions, abs=200)  # a tick is 62.5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimization", ["-Os", "-O2"])
def test_the_stack_stated_for_a_compiler_is_not_exceeded(
    layout: str, optimization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cortex-m0")
    monkeypatch.setattr(c_devices, "OPTIMIZATION", optimization)
    files = c_sources(TINY, layout)
    (target,) = (each for each in EMBEDDED if "cortex-m0" in " ".join(each.flags))
    flags = tuple(flag for flag in target.flags if not flag.startswith("-O"))
    stated = footprint(files, dataclasses.replace(target, flags=(*flags, optimization))).stack_bytes
    assert stated is not None
    measured = measure_device(files, TINY, noise_images((1, 28, 28))[:2], "cortex-m0").stack_bytes
    assert stated / 4 < measured <= stated


def test_another_logit_is_an_error() -> None:
    needs("cortex-m4")
    last = len(TINY.layers) - 1
    bias = TINY.layers[last].bias.copy()
    bias[3] += 1
    other = with_layer(TINY, last, bias=bias)
    with pytest.raises(ExportError, match="Arm Cortex-M4: 2 of 2 images have different logits"):
        measure_device(c_sources(other, "int8"), TINY, noise_images((1, 28, 28))[:2], "cortex-m4")


LISTING = """
00000010 <main>:
  10:\tbl\t20 <work>
  14:\tpop\t{r4, pc}

00000020 <work>:
  20:\tpush\t{r4, lr}
  22:\tldr\tr3, [pc, #4]\t@ (30 <work+0x10>)
  24:\tmuls\tr2, r3
  26:\tsubs\tr2, #1
  28:\tbne.n\t24 <work+0x4>
  2a:\tstrb\tr2, [r0, #0]
  2c:\tpop\t{r4, pc}
  2e:\t.short\t0x0000
  30:\t.word\t0x00000007
"""
LOG = b"""IN: main
0x00000010:  f000  bl  #0x20
Trace 0: 0x7f00 [0/00000010/0/0] main
IN: work
0x00000020:  b510  push
0x00000022:  4b01  ldr
0x00000024:  4b01  muls
0x00000026:  3a01  subs
0x00000028:  d1fd  bne
Trace 0: 0x7f01 [0/00000020/0/0] work
IN: work
0x00000024:  4b01  muls
0x00000026:  3a01  subs
0x00000028:  d1fd  bne
Trace 0: 0x7f02 [0/00000024/0/0] work
Trace 0: 0x7f02 [0/00000024/0/0] work
Stopped execution of TB chain before 0x7f02 [00000024] work
Trace 0: 0x7f02 [0/00000024/0/0] work
IN: work
0x0000002a:  7002  strb
0x0000002c:  bd10  pop
Trace 0: 0x7f03 [0/0000002a/0/0] work
IN: main
0x00000014:  bd10  pop
Trace 0: 0x7f04 [0/00000014/0/0] main
"""


def test_a_profile_counts_blocks_as_they_ran() -> None:
    found = profile(LOG.splitlines(keepends=True), LISTING, "work", "main", CORTEX_M0)
    assert found.kinds == {
        "load": 1, "store": 2, "multiply": 3, "taken branch": 3, "other branch": 1, "other": 3,
    }  # fmt: skip
    assert found.instructions == 13
    # push 3, ldr 2; muls, subs three times; bne taken twice (3), once not (1); strb 2, pop with the pc 4 + 2
    assert found.cycles_low == 3 + 2 + 3 * (1 + 1) + 2 * 3 + 1 + 2 + 6
    assert found.cycles_high == found.cycles_low + 3 * 31


@pytest.mark.parametrize(
    ("core", "name", "operands", "before", "branched", "cost"),
    [
        (CORTEX_M0, "adds", "r0, r1, r2", "", False, ("other", 1, 1)),
        (CORTEX_M0, "muls", "r0, r1", "", False, ("multiply", 1, 32)),
        (CORTEX_M0, "ldrb", "r0, [r1, r2]", "ldr", False, ("load", 2, 2)),
        (CORTEX_M0, "stmia", "r0!, {r1, r2, r3}", "", False, ("store", 4, 4)),
        (CORTEX_M0, "ldmia", "r0!, {r1}", "", False, ("load", 2, 2)),
        (CORTEX_M0, "bl", "10 <f>", "", True, ("taken branch", 4, 4)),
        (CORTEX_M0, "bx", "lr", "", True, ("taken branch", 3, 3)),
        (CORTEX_M0, "b", "10 <f>", "", True, ("taken branch", 3, 3)),
        (CORTEX_M0, "bhi", "10 <f>", "", True, ("taken branch", 3, 3)),
        (CORTEX_M0, "bics", "r0, r1", "", False, ("other", 1, 1)),
        (CORTEX_M4, "ldr", "r0, [r1]", "adds", False, ("load", 2, 3)),
        (CORTEX_M4, "ldrsb", "r0, [r1]", "ldrb", False, ("load", 1, 3)),
        (CORTEX_M4, "ldrd", "r0, r1, [r2]", "ldrb", False, ("load", 3, 3)),
        (CORTEX_M4, "strd", "r0, r1, [r2]", "ldrb", False, ("store", 3, 3)),
        (CORTEX_M4, "stmdb", "sp!, {r4, r5, lr}", "", False, ("store", 4, 4)),
        (CORTEX_M4, "ldmia", "sp!, {r4, r5, pc}", "", True, ("taken branch", 5, 7)),
        (CORTEX_M4, "smlad", "r0, r1, r2, r3", "", False, ("multiply", 1, 1)),
        (CORTEX_M4, "smlabb", "r0, r1, r2, r3", "", False, ("multiply", 1, 1)),
        (CORTEX_M4, "sxtb16", "r0, r1", "", False, ("other", 1, 1)),
        (CORTEX_M4, "itt", "eq", "", False, ("other", 0, 1)),
        (CORTEX_M4, "cbz", "r0, 10 <f>", "", False, ("other branch", 1, 1)),
        (CORTEX_M4, "bne", "10 <f>", "", True, ("taken branch", 2, 4)),
        (CORTEX_M4, "bx", "lr", "", True, ("taken branch", 2, 4)),
        (CORTEX_M4, "bic", "r0, r1, r2", "", False, ("other", 1, 1)),
        (CORTEX_M4, "udiv", "r0, r1, r2", "", False, ("other", 2, 12)),
        (IBEX, "mul", "a0,a1,a2", "", False, ("multiply", 1, 33)),
        (IBEX, "mulhu", "a0,a1,a2", "", False, ("multiply", 2, 33)),
        (IBEX, "lbu", "a0,0(a1)", "", False, ("load", 2, 2)),
        (IBEX, "bnez", "a0,10 <f>", "", True, ("taken branch", 2, 3)),
        (IBEX, "bnez", "a0,10 <f>", "", False, ("other branch", 1, 1)),
        (IBEX, "ret", "", "", True, ("taken branch", 2, 2)),
    ],
)
def test_cycles_are_the_manuals(
    core: Core, name: str, operands: str, before: str, branched: bool, cost: tuple[str, int, int]
) -> None:
    assert core.cost(Instruction(name, operands), Instruction(before, "") if before else None, branched) == cost


# What is said where something is missing, broken or too small.


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a shell script of that name before all other programs."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


def refused(*texts: str, model: IntegerModel = TINY, layout: str = "packed", name: str = "cortex-m0") -> None:
    with pytest.raises(ExportError) as caught:
        measure_device(c_sources(model, layout), model, noise_images(model.input_shape)[:2], name)
    assert "\n" not in str(caught.value)
    assert [text for text in texts if text not in str(caught.value)] == []


@pytest.mark.parametrize("name", DEVICES)
def test_missing_tools_are_named_with_their_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = DEVICES[name]
    monkeypatch.setenv("PATH", "")
    refused(
        device.title, device.compiler, device.emulator, f"Debian: apt install {' '.join(device.packages)}", name=name
    )


@pytest.mark.parametrize("tool", ["gcc", "objdump", "size"])
def test_a_broken_compiler_is_named(tool: str, fake: Callable[..., None]) -> None:
    needs("rv32")
    fake(f"riscv64-unknown-elf-{tool}", "echo 'fatal error: no cc1' >&2; exit 1")
    refused(f"riscv64-unknown-elf-{tool} failed for RISC-V RV32IMAC", "no cc1", "gcc-riscv64-unknown-elf", name="rv32")


@pytest.mark.parametrize(
    ("script", "texts"),
    [
        ("echo 'no such machine' >&2; exit 3", ("qemu-system-arm ended with exit code 3", "no such machine")),
        ("kill -SEGV $$", ("qemu-system-arm ended with exit code -11", "it said nothing")),
        ("echo spun 1; echo hello", ("ended before all images were done", "hello", "qemu-system-arm")),
        ("sleep 20", ("qemu-system-arm was not done after 0.5 s",)),
    ],
)
def test_a_broken_emulator_is_named(
    fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch, script: str, texts: tuple[str, ...]
) -> None:
    needs("cortex-m0")
    monkeypatch.setattr(c_devices, "RUN_SECONDS", 0.5)
    fake("qemu-system-arm", script)
    refused(*texts)


def test_too_little_flash_or_ram_is_said_with_what_there_is() -> None:
    needs("cortex-m0")
    refused("bytes of flash", "microbit has 262,144", "choose", model=random_model(widths=LENET), layout="int8")
    refused("bytes of RAM", "microbit has 16,384", "choose", model=chain("conv 20 1x1, fc", (1, 28, 28)))


def test_fewer_images_are_used_where_flash_holds_no_more() -> None:
    needs("cortex-m0")
    model = chain("conv 2 5x5 stride 4, fc", (3, 64, 64))
    found = measure_device(c_sources(model, "packed"), model, noise_images((3, 64, 64))[:IMAGES], "cortex-m0")
    assert 15 < found.images < 2**18 / (3 * 64 * 64)


# The commands.


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    path.write_bytes(write_packed(TINY, ModelFacts("lenet-nano", "digits", tuple("0123456789"), None)))
    return path


def test_bench_measures_each_network_in_each_layout(
    packed: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cortex-m0")
    other = packed.with_name("other.safetensors")
    other.write_bytes(packed.read_bytes())
    done = main("bench", "--device", "cortex-m0", packed, other, "--mhz", 16, "--layout", "int8", "--json")
    assert done.rc == 0, done
    found = json.loads(done.stdout)
    assert list(found) == ["device", "core", "machine", "manual", "mhz", "networks"]
    rows = found["networks"]
    assert [(row.pop("checkpoint"), row["layout"]) for row in rows] == [(str(packed), "int8"), (str(other), "int8")]
    assert rows[0] == rows[1]
    for row in rows:
        assert list(row) == ["network", "layout", *ROW_FIELDS, "milliseconds_low", "milliseconds_high"]
        assert row["images"] == IMAGES
        assert row["milliseconds_low"] == row["cycles_low"] / 16_000
        assert row["instructions_per_mac"] == row["instructions"] / row["macs"]
    monkeypatch.setenv("COLUMNS", "80")
    text = main("bench", "--device", "cortex-m0", packed).stdout
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert [line.split()[1] for line in table[-2:]] == list(LAYOUTS)
    expected = [f"{rows[0]['instructions']:,.0f}", f"{rows[0]['instructions_per_mac']:.2f}"]
    assert table[-1].split()[2:4] == expected
    assert table[-1].split()[-1] == str(rows[0]["stack_bytes"])
    assert f"{IMAGES} test images; 0 logits differ" in text
    assert "QEMU counts instructions" in text


def test_bench_refuses_what_it_cannot_measure_in_one_line(
    packed: Path, main: Callable[..., Any], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cortex-m0")
    float_run = tiny({"quant.layer_bits": {"fc1": 32}, "train.epochs": 1}).run_dir
    cases: list[tuple[list[object], int, tuple[str, ...]]] = [
        (["--device", "cortex-m7", packed], 2, ("'cortex-m7'", *DEVICES)),
        (["--device", "cortex-m0"], 2, ("--device cortex-m0", "checkpoints")),
        (["--device", "cortex-m0", packed, "--layout", "both"], 2, ("'both'", *LAYOUTS)),
        (["--device", "cortex-m0", packed, "--quick"], 2, ("--quick", "not allowed with --device")),
        (["--device", "cortex-m0", packed, "--only", "plain"], 2, ("--only plain", "not allowed with --device")),
        (["--device", "cortex-m0", packed, "--mhz", 0], 2, ("--mhz", "0")),
        (["--device", "cortex-m0", packed, "--mhz", "inf"], 2, ("--mhz", "inf")),
        ([packed], 2, (f"CKPT {packed}", "only with --device")),
        (["--layout", "int8"], 2, ("--layout int8", "only with --device")),
        (["--mhz", 48], 2, ("--mhz 48", "only with --device")),
        (["--device", "cortex-m0", "nosuch"], 1, ("nosuch",)),
    ]
    for arguments, code, texts in cases:
        result = main("bench", *arguments)
        assert result.rc == code, result
        assert [text for text in texts if text not in result.error] == []
    float_refused = main("bench", "--device", "cortex-m0", float_run)
    assert (float_refused.rc, "'fc1' (QuantLinear): 32 bits" in float_refused.error) == (1, True)
    monkeypatch.setenv("PATH", "")
    without = main("bench", "--device", "cortex-m0", packed)
    assert (without.rc, "apt install gcc-arm-none-eabi qemu-system-arm" in without.error) == (1, True)


def test_export_measures_in_the_same_command_and_its_readme_says_the_result(
    packed: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    for name in DEVICES:
        needs(name)
    out = tmp_path / "out"
    done = main("export", packed, "--to", "c", "--out", out, "--verify-images", 5, "--board", "--measure", "--json")
    assert (done.rc, "not measured" in done.stderr) == (0, False)
    rows = json.loads(done.stdout)["devices"]
    assert [row["device"] for row in rows] == list(DEVICES)
    readme = (out / "README.md").read_text()
    for row in rows:
        assert list(row) == ROW_FIELDS
        assert f"| {row['core']} | {row['instructions']:.0f} | {row['instructions_per_mac']:.2f} |" in readme
        assert f"| {row['flash_bytes']} | {row['ram_bytes']} | {row['stack_bytes']} |" in readme
    assert "Not measured" not in readme
    assert [name for name in ("`bare_metal/`", "`arduino/qattrain`", "`main.c`") if name not in readme] == []


def test_export_without_tools_says_in_one_line_what_to_install(
    packed: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    done = main("export", packed, "--to", "c", "--out", tmp_path / "out", "--no-verify", "--measure", "--board")
    assert done.rc == 0
    (line,) = (line for line in done.stderr.splitlines() if "measured" in line)
    for device in DEVICES.values():
        for text in (device.title, device.compiler, device.emulator, *device.packages):
            assert text in line
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured" in readme
    assert "instructions per image" not in readme
    for option in ("--measure", "--board"):
        refused = main("export", packed, "--to", "onnx", "--out", tmp_path / "out", option)
        assert (refused.rc, f"{option}: allowed only with --to c" in refused.error) == (2, True)


def stated_commands(main_c: str, title: str) -> list[str]:
    """The commands that the comment of bare_metal/main.c states for a core."""
    _, _, after = main_c.partition(f" * {title}:\n")
    return [line.removeprefix(" *     ") for line in after.splitlines()[:2]]


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qattrain.export.base import settled_prefix, write_verified
    from qattrain.export.c_export import C_EXPORTER

    folder = tmp_path_factory.mktemp("boards")
    facts = ModelFacts("n", "digits", tuple("0123456789"), None)
    for prefix, layout in (("qattrain", "packed"), ("cats", "int8")):
        exporter = settled_prefix(C_EXPORTER, prefix)
        write_verified(exporter, TINY, facts, layout, real_images(1), folder / prefix, board=True)
    return folder


@pytest.mark.parametrize("prefix", ["qattrain", "cats"])
@pytest.mark.parametrize("name", DEVICES)
def test_the_bare_metal_program_builds_and_runs_by_the_commands_it_states(
    name: str, prefix: str, boards: Path, tmp_path: Path
) -> None:
    device = needs(name)
    shutil.copytree(boards / prefix, tmp_path / "out")
    folder = tmp_path / "out" / "bare_metal"
    build, run = stated_commands((folder / "main.c").read_text(), device.title)

    def call(command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    built, ran = call(build), call(run)
    assert (built.returncode, built.stderr) == (0, "")
    label = int(TINY.run(real_images(1))[0].argmax())
    assert (ran.returncode, (ran.stdout + ran.stderr).splitlines()) == (0, [f"class {label}"])
    text = (folder / "image.h").read_text()
    numbers = text.rpartition(" = {\n")[2]
    first = re.search(r"-?\d+", numbers)
    assert first is not None
    (folder / "image.h").write_text(text.replace(numbers, numbers.replace(first[0], str(int(first[0]) + 1), 1)))
    assert call(build).returncode == 0
    assert call(run).returncode == 1  # a logit is not the expected one
    # On a board: other addresses, and nothing that talks to a debugger.
    script = (folder / "board.ld").read_text()
    script = script.replace(": 0x00000000", ": 0x08000000").replace(": 0x20000000", ": 0x30000000")
    (folder / "board.ld").write_text(script)
    plain = " ".join(word for word in build.split() if word != "-DSEMIHOSTING" and not word.startswith("-Wl,"))
    assert call(plain).returncode == 0
    symbols = call(f"{device.compiler.removesuffix('gcc')}nm classify.elf").stdout
    (start,) = re.findall(r"^(\w+) T start$", symbols, re.MULTILINE)
    (place,) = re.findall(r"^(\w+) [BD] label$", symbols, re.MULTILINE)
    assert (start[:3], place[:3]) == ("080", "300")
