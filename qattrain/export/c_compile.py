"""Compilers: what a model weighs in flash and RAM, and the exported files executed."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError
from qattrain.export.base import Files, Runner

COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_SECONDS = 300
NATIVE = "-march=native"  # every instruction that this computer has
PORTABLE = "QATTRAIN_PORTABLE"  # the macro that leaves vector instructions out of layout int8
BATCH_SOURCE = """\
#include "model.h"
void qattrain_batch(const uint8_t *images, int64_t count, int32_t *logits);
void qattrain_batch(const uint8_t *images, int64_t count, int32_t *logits) {
    int64_t i;
    for (i = 0; i < count; i++) qattrain_predict(images + i * 784, logits + i * QATTRAIN_CLASSES);
}
"""


@dataclass(frozen=True)
class Target:
    """A processor whose flash and RAM the README states. link: no start files and no library but the compiler's own."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    size: str
    link: bool = True

    @property
    def command(self) -> str:
        return " ".join((self.compiler, *self.flags, "-c model.c"))


@dataclass(frozen=True)
class Footprint:
    """Measured bytes. flash: code and tables, with the compiler's arithmetic routines where linked. ram: static.
    stack: the sum over all functions of model.c, if the compiler says."""

    flash_bytes: int
    ram_bytes: int
    stack_bytes: int | None


EMBEDDED = (
    Target(
        "Arm Cortex-M0",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m0", "-mthumb", "-Os", "-ffreestanding"),
        "arm-none-eabi-size",
    ),
    Target(
        "RISC-V RV32EC",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32ec", "-mabi=ilp32e", "-Os", "-ffreestanding"),
        "riscv64-unknown-elf-size",
    ),
)
HOST = Target("this computer", "gcc", ("-Os",), "size", link=False)


def measure(files: Files, target: Target) -> Footprint | None:
    """What model.c needs on a target; None where compiler or `size` is absent or fails."""
    if not shutil.which(target.compiler) or not shutil.which(target.size):
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _place(files, folder)
        compiler = [target.compiler, *target.flags]
        steps = [[*compiler, "-fstack-usage", "-c", "model.c", "-o", "model.o"]]
        if target.link:
            options = ["-nostartfiles", "-nostdlib", "-Wl,-e,qattrain_predict,--gc-sections"]
            steps.append([*compiler, *options, "model.o", "-lgcc", "-o", "model.elf"])
        steps.append([target.size, "model.elf" if target.link else "model.o"])
        for step in steps:
            result = _call(step, folder)
            if result.returncode:
                return None
        text, data, bss = map(int, result.stdout.splitlines()[1].split()[:3])
        usage = folder / "model.su"
        lines = usage.read_text(encoding="utf-8").splitlines() if usage.exists() else []
        stack = sum(int(line.split("\t")[1]) for line in lines) if lines else None
        return Footprint(text + data, data + bss, stack)


@contextmanager
def run_c(files: Files) -> Iterator[Runner]:
    """The files compiled for this computer and executed, in every form that their source has.

    Where model.c has vector instructions besides portable C, each image goes through both. Raises ExportError where
    these differ, and as `compiled_c` does. Not for two threads at a time.
    """
    if PORTABLE.encode() not in files["model.c"]:
        with compiled_c(files) as run:
            yield run
        return
    with compiled_c(files) as run, compiled_c(files, NATIVE, f"-D{PORTABLE}") as run_portable:

        def run_both(images: NDArray[np.uint8]) -> NDArray[np.int32]:
            logits = run(images)
            different = (logits != run_portable(images)).any(1).sum()
            if different:
                raise ExportError(
                    f"model.c: {different} of {len(images)} images have another logit with -D{PORTABLE}; "
                    "this is a bug: please report it"
                )
            return logits

        yield run_both


@contextmanager
def compiled_c(files: Files, *flags: str) -> Iterator[Runner]:
    """model.c compiled by the system's compiler and called through ctypes. Not for two threads at a time.

    files: model.c and model.h at least (`c_export.c_sources`). flags: besides -O3; none: for this very processor,
    NATIVE, where the compiler knows it. The runner loops over the images in C and calls qattrain_predict once for
    each: its time is that of batch 1 on one thread, without Python's.
    Raises ExportError where no compiler is found, or where it fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise ExportError(
            f"no C compiler: none of {', '.join(COMPILERS)} is on the PATH; install one (Debian: apt install gcc)"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _place(files | {"batch.c": BATCH_SOURCE.encode()}, folder)
        library = folder / "model.so"
        command = [compiler, "-std=c99", "-O3", "-shared", "-fPIC", "model.c", "batch.c", "-o", str(library)]
        asked = flags or (NATIVE,)
        result = _call([*command, *asked], folder)
        if result.returncode and NATIVE in asked:
            result = _call([*command, *(flag for flag in asked if flag != NATIVE)], folder)
        if result.returncode:
            said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            raise ExportError(f"{compiler} cannot compile model.c: {said}; is it a complete C compiler?")
        try:
            batch = ctypes.CDLL(str(library)).qattrain_batch
        except OSError as error:
            raise ExportError(
                f"the compiled model cannot be loaded: {error}; set TMPDIR to a folder that may hold programs"
            ) from None
        batch.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        batch.restype = None
        classes = int(files["model.h"].split(b"#define QATTRAIN_CLASSES ")[1].split()[0])

        def runner(images: NDArray[np.uint8]) -> NDArray[np.int32]:
            assert images.dtype == np.uint8, images.dtype
            assert images.shape[1:] == (1, 28, 28), images.shape
            pixels = np.ascontiguousarray(images)
            logits = np.empty((len(images), classes), np.int32)
            batch(pixels.ctypes.data, len(pixels), logits.ctypes.data)
            return logits

        yield runner


def _place(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _call(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"error: not done after {TIMEOUT_SECONDS} s")
