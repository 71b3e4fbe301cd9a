"""Compiled C: what a model takes of flash and RAM, and the exported files executed."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError, system_errors
from qattrain.export.base import Files, Runner
from qattrain.files import compiler

C_FOLDER = Path(__file__).parent / "c"
PORTABLE = "QATTRAIN_PORTABLE"  # the macro that leaves vector instructions out
SMALL = "QATTRAIN_SMALL"  # the macro that compiles layout int8 as for a processor without vectors
STARTUP = "bare-metal-startup.c"
# What takes stack: push {r4, lr}; sub sp, #8; addi sp,sp,-16.
GROWS = re.compile(r"\t(?:push|stmdb)\S*\s+(?:sp!, )?\{(.*)\}|\tsub\S*\s+sp, (?:sp, )?#(\d+)|\taddi?\s+sp,sp,-(\d+)")
LOOP = "batch-loop.c"  # like the one above, a name that no prefix can give to a file
DEFAULT_PREFIX = "qattrain"
PREFIXED = re.compile(r"qattrain_|QATTRAIN_|\bmodel(?=\.[ch]\b)")  # what a prefix changes in a file, and in its name


def prefixed(text: str, prefix: str) -> str:
    """C, or what is said about it, with `prefix` before the public symbols: qattrain_predict -> <prefix>_predict.

    Also model.c -> <prefix>.c, and the same with model.h.
    """
    if prefix == DEFAULT_PREFIX:
        return text
    new = {"qattrain_": f"{prefix}_", "QATTRAIN_": f"{prefix.upper()}_", "model": prefix}
    return PREFIXED.sub(lambda match: new[match[0]], text)


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
    def objdump(self) -> str:
        """The program that shows the instructions."""
        return self.compiler.removesuffix("gcc") + "objdump"

    @property
    def command(self) -> str:
        return " ".join((self.compiler, *self.flags, "-c model.c"))


@dataclass(frozen=True)
class Footprint:
    """Measured bytes. flash: code and tables, with the compiler's arithmetic routines where linked. ram: static.
    stack: the sum over all functions, those of the compiler's library included, if the compiler reports it: no chain of
    calls takes more, as no function calls itself."""

    flash_bytes: int
    ram_bytes: int
    stack_bytes: int | None


EMBEDDED = (
    Target("Arm Cortex-M0", "arm-none-eabi-gcc", ("-mcpu=cortex-m0", "-mthumb", "-O2", "-ffreestanding")),
    Target("RISC-V RV32EC", "riscv64-unknown-elf-gcc", ("-march=rv32ec", "-mabi=ilp32e", "-O2", "-ffreestanding")),
)
HOST = Target("this computer", "gcc", ("-O2",), link=False)


def measure(files: Files, target: Target) -> Footprint | None:
    """What model.c takes on a target; None if the compiler or `size` is missing or fails."""
    if not shutil.which(target.compiler) or not shutil.which(target.size):
        return None
    try:
        return footprint(files, target)
    except (OSError, subprocess.SubprocessError):
        return None


def footprint(files: Files, target: Target) -> Footprint:
    """What model.c takes on a target. Raises OSError, SubprocessError if the compiler or `size` is missing or fails."""
    prefix = prefix_of(files)
    source, entry = prefixed("model.c", prefix), prefixed("qattrain_predict", prefix)
    startup = (C_FOLDER / "bare_metal" / "startup.c").read_bytes()  # for memcpy, where the compiler calls it
    with placed(files | {STARTUP: startup}) as folder:
        command = [target.compiler, *target.flags]
        compiler.call(*command, "-fstack-usage", "-c", source, "-o", "model.o", folder=folder)
        program, library_stack = "model.o", 0
        if target.link:
            program = "model.elf"
            compiler.call(*command, "-ffunction-sections", "-c", STARTUP, "-o", "startup.o", folder=folder)
            options = ["-nostartfiles", "-nostdlib", f"-Wl,-e,{entry},--gc-sections"]
            compiler.call(*command, *options, "model.o", "startup.o", "-lgcc", "-o", program, folder=folder)
            listing = compiler.call(target.objdump, "-d", "--no-show-raw-insn", program, folder=folder)
            library_stack = _library_stack(listing, (folder / "model.su").read_text(encoding="utf-8"))
        sizes = compiler.call(target.size, program, folder=folder)
        text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
        usage = folder / "model.su"
        lines = usage.read_text(encoding="utf-8").splitlines() if usage.exists() else []
        stack = sum(int(line.split("\t")[1]) for line in lines) + library_stack if lines else None
        return Footprint(text + data, data + bss, stack)


def _library_stack(listing: str, usage: str) -> int:
    """Bytes of stack of all functions in a program that are not model.c's: the compiler's own routines.

    listing: of objdump. usage: what the compiler said of model.c, a line per function.
    """
    own = set(re.findall(r"^[^\t]*:(\w+)\t", usage, re.MULTILINE))
    total, function = 0, ""
    for line in listing.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = header[1]
        elif function.partition(".")[0] not in own and (found := GROWS.search(line)):
            registers, arm, riscv = found.groups()
            total += 4 * len(registers.split(",")) if registers else int(arm or riscv)
    return total


@contextmanager
def run_c(files: Files) -> Iterator[Runner]:
    """The files compiled for this computer and executed, in every form their source has.

    Where model.c has vector instructions besides portable C, or other C for small processors, each image goes through
    all of them. Raises ExportError if their logits differ, and as `compiled_c` does. Not thread-safe.
    """
    prefix = prefix_of(files)
    source = prefixed("model.c", prefix)
    macros = [prefixed(macro, prefix) for macro in (PORTABLE, SMALL)]
    with ExitStack() as stack:
        run = stack.enter_context(compiled_c(files))
        others = {
            flag: stack.enter_context(compiled_c(files, compiler.NATIVE, f"-D{macros[0]}", flag))
            for flag in (f"-D{macro}" for macro in macros if macro.encode() in files[source])
        }

        def run_all(images: NDArray[np.uint8]) -> NDArray[np.int32]:
            logits = run(images)
            for flag, run_other in others.items():
                different = (logits != run_other(images)).any(1).sum()
                if different:
                    raise ExportError(
                        f"{source}: {different} of {len(images)} images have different logits with {flag}; "
                        "this is a bug: please report it"
                    )
            return logits

        yield run_all


@contextmanager
def compiled_c(files: Files, *flags: str) -> Iterator[Runner]:
    """model.c compiled by the system's compiler and called through ctypes. Not thread-safe.

    What is executed lies in a folder of mode 0700 that is made for this call, and is loaded as soon as it is compiled:
    nobody else can have written it, and nothing is kept.

    files: model.c and model.h at least (`c_export.c_sources`). flags: besides -O3; default: compiler.NATIVE. The runner
    takes images (N, C, H, W), puts the channels of a pixel side by side, as model.h wants them, and loops over the
    images in C, calling qattrain_predict once for each: its time is that of batch 1 on one thread, without Python's
    overhead. Raises ExportError if there is no compiler, or if it fails.
    """
    path = compiler.require_compiler(ExportError, " (Debian: apt install gcc)")
    prefix = prefix_of(files)
    source, header = prefixed("model.c", prefix), files[prefixed("model.h", prefix)].decode()
    sizes = [_macro(header, prefix, name) for name in ("CHANNELS", "ROWS", "COLUMNS", "CLASSES")]
    *shape, classes = sizes
    loop = prefixed((C_FOLDER / "batch.c").read_text(encoding="utf-8"), prefix)
    with placed(files | {LOOP: loop.encode()}) as folder:
        library = str(folder / "model.so")
        command = [path, "-std=c99", "-O3", "-shared", "-fPIC", source, LOOP, "-o", library]
        try:
            compiler.compile_c(*command, *(flags or (compiler.NATIVE,)), folder=folder)
        except (OSError, subprocess.SubprocessError) as error:
            reason = compiler.failure(error)
            raise ExportError(f"{path} cannot compile {source}: {reason}; is it a complete C compiler?") from None
        remedy = "set TMPDIR to a folder that may hold programs"
        with system_errors(ExportError, "the compiled model cannot be loaded", remedy):
            batch = ctypes.CDLL(library)[prefixed("qattrain_batch", prefix)]
        batch.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        batch.restype = None

        def runner(images: NDArray[np.uint8]) -> NDArray[np.int32]:
            assert images.dtype == np.uint8, images.dtype
            assert list(images.shape[1:]) == shape, (images.shape, shape)
            pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C)
            logits = np.empty((len(images), classes), np.int32)
            batch(pixels.ctypes.data, len(pixels), logits.ctypes.data)
            return logits

        yield runner


def prefix_of(files: Files) -> str:
    """The prefix that the files were written with."""
    found = (re.search(rb"\bint (\w+)_predict\(", content) for name, content in files.items() if name.endswith(".h"))
    match = next(filter(None, found))
    return match[1].decode()


def _macro(header: str, prefix: str, name: str) -> int:
    """A number that the header defines."""
    match = re.search(rf"#define {prefixed('QATTRAIN_', prefix)}{name} (\d+)", header)
    assert match is not None, name
    return int(match[1])


@contextmanager
def placed(files: Files) -> Iterator[Path]:
    """A temporary folder that holds the files, and that only the user may enter."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            path = Path(name) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(name)
