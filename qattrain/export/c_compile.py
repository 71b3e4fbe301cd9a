"""Compiled C: what a model takes of flash and RAM, and the exported files executed."""

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

from qattrain.errors import ExportError, system_errors
from qattrain.export.base import Files, Runner
from qattrain.files import compiler

C_FOLDER = Path(__file__).parent / "c"
PORTABLE = "QATTRAIN_PORTABLE"  # the macro that leaves vector instructions out of layout int8


@dataclass(frozen=True)
class Target:
    """A processor whose flash and RAM the README states. link: with no start files, and only the compiler's library."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    link: bool = True

    @property
    def size(self) -> str:
        """The program that measures what its compiler made."""
        return self.compiler.removesuffix("gcc") + "size"

    @property
    def command(self) -> str:
        return " ".join((self.compiler, *self.flags, "-c model.c"))


@dataclass(frozen=True)
class Footprint:
    """Measured bytes. flash: code and tables, with the compiler's arithmetic routines where linked. ram: static.
    stack: the sum over all functions of model.c, if the compiler reports it."""

    flash_bytes: int
    ram_bytes: int
    stack_bytes: int | None


EMBEDDED = (
    Target("Arm Cortex-M0", "arm-none-eabi-gcc", ("-mcpu=cortex-m0", "-mthumb", "-Os", "-ffreestanding")),
    Target("RISC-V RV32EC", "riscv64-unknown-elf-gcc", ("-march=rv32ec", "-mabi=ilp32e", "-Os", "-ffreestanding")),
)
HOST = Target("this computer", "gcc", ("-Os",), link=False)


def measure(files: Files, target: Target) -> Footprint | None:
    """What model.c takes on a target; None if the compiler or `size` is missing or fails."""
    if not shutil.which(target.compiler) or not shutil.which(target.size):
        return None
    with _placed(files) as folder:
        command = [target.compiler, *target.flags]
        try:
            compiler.call(*command, "-fstack-usage", "-c", "model.c", "-o", "model.o", folder=folder)
            if target.link:
                options = ["-nostartfiles", "-nostdlib", "-Wl,-e,qattrain_predict,--gc-sections"]
                compiler.call(*command, *options, "model.o", "-lgcc", "-o", "model.elf", folder=folder)
            sizes = compiler.call(target.size, "model.elf" if target.link else "model.o", folder=folder)
        except (OSError, subprocess.SubprocessError):
            return None
        text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
        usage = folder / "model.su"
        lines = usage.read_text(encoding="utf-8").splitlines() if usage.exists() else []
        stack = sum(int(line.split("\t")[1]) for line in lines) if lines else None
        return Footprint(text + data, data + bss, stack)


@contextmanager
def run_c(files: Files) -> Iterator[Runner]:
    """The files compiled for this computer and executed, in every form their source has.

    Where model.c has vector instructions besides portable C, each image goes through both. Raises ExportError if their
    logits differ, and as `compiled_c` does. Not thread-safe.
    """
    if PORTABLE.encode() not in files["model.c"]:
        with compiled_c(files) as run:
            yield run
        return
    with compiled_c(files) as run, compiled_c(files, compiler.NATIVE, f"-D{PORTABLE}") as run_portable:

        def run_both(images: NDArray[np.uint8]) -> NDArray[np.int32]:
            logits = run(images)
            different = (logits != run_portable(images)).any(1).sum()
            if different:
                raise ExportError(
                    f"model.c: {different} of {len(images)} images have different logits with -D{PORTABLE}; "
                    "this is a bug: please report it"
                )
            return logits

        yield run_both


@contextmanager
def compiled_c(files: Files, *flags: str) -> Iterator[Runner]:
    """model.c compiled by the system's compiler and called through ctypes. Not thread-safe.

    files: model.c and model.h at least (`c_export.c_sources`). flags: besides -O3; default: compiler.NATIVE. The runner
    loops over the images in C and calls qattrain_predict once for each: its time is that of batch 1 on one thread,
    without Python's overhead. Raises ExportError if there is no compiler, or if it fails.
    """
    path = compiler.require_compiler(ExportError, " (Debian: apt install gcc)")
    with _placed(files | {"batch.c": (C_FOLDER / "batch.c").read_bytes()}) as folder:
        library = str(folder / "model.so")
        command = [path, "-std=c99", "-O3", "-shared", "-fPIC", "model.c", "batch.c", "-o", library]
        try:
            compiler.compile_c(*command, *(flags or (compiler.NATIVE,)), folder=folder)
        except (OSError, subprocess.SubprocessError) as error:
            reason = compiler.failure(error)
            raise ExportError(f"{path} cannot compile model.c: {reason}; is it a complete C compiler?") from None
        remedy = "set TMPDIR to a folder that may hold programs"
        with system_errors(ExportError, "the compiled model cannot be loaded", remedy):
            batch = ctypes.CDLL(library).qattrain_batch
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


@contextmanager
def _placed(files: Files) -> Iterator[Path]:
    """A temporary folder that holds the files."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        yield Path(name)
