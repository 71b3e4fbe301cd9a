"""Microcontrollers under QEMU: the exported C compiled for a core, run on images, compared, and measured.

QEMU counts instructions, not cycles: cycles are what the core's manual gives for the instructions that were executed
(`c_profile`). Out of scope: wait states of a flash, caches, other machines than those in DEVICES.
"""

import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.config.chain import Shape
from qattrain.errors import ExportError
from qattrain.export.base import Files
from qattrain.export.c_compile import C_FOLDER, Footprint, Target, footprint, placed, prefix_of, prefixed
from qattrain.export.c_profile import CORTEX_M0, CORTEX_M4, IBEX, LOG, Core, Profile, profile
from qattrain.files import compiler
from qattrain.integer import IntegerModel

IMAGES = 100
OPTIMIZATION = "-O2"
RUN_SECONDS = 300
RESERVED = 4096  # bytes of flash for the program around the network, and of RAM for its variables and the stack
SPUN = 16_000_000  # instructions in the loop by which device.c learns the length of a tick
BARE_METAL = ("board.ld", "semihosting.h", "startup.c")


@dataclass(frozen=True)
class Device:
    """A core, and the machine with it that QEMU emulates. packages: of Debian. flash, ram: address and bytes."""

    title: str
    compiler: str
    flags: tuple[str, ...]
    emulator: str
    machine: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    packages: tuple[str, ...]
    core: Core

    @property
    def target(self) -> Target:
        return Target(self.title, self.compiler, (*self.flags, OPTIMIZATION, "-ffreestanding"))

    def build(self, folder: str, sources: Sequence[str], program: str) -> list[str]:
        """The command that compiles a program; folder: where board.ld is."""
        addresses = {"flash": self.flash[0], "flash_size": self.flash[1], "ram": self.ram[0], "ram_size": self.ram[1]}
        differing = [f"--defsym={name}={value:#x}" for name, value in addresses.items() if value != DEFAULTS[name]]
        linker = [f"-Wl,{','.join(differing)}"] if differing else []
        flags = [*self.target.flags, "-nostdlib", "-DSEMIHOSTING"]
        return [self.compiler, *flags, *linker, "-T", f"{folder}board.ld", *sources, "-lgcc", "-o", program]

    def run(self, program: str) -> list[str]:
        """The command that runs a program; what it says comes on either output."""
        return [self.emulator, *self.machine, "-nographic", "-semihosting", "-kernel", program]

    @property
    def missing(self) -> list[str]:
        """The programs that are not installed."""
        needed = (self.compiler, self.target.size, self.target.objdump, self.emulator)
        return [name for name in needed if not shutil.which(name)]


DEFAULTS = {"flash": 0, "flash_size": 2**18, "ram": 0x20000000, "ram_size": 2**14}  # as in board.ld

ARM = ("gcc-arm-none-eabi", "qemu-system-arm")
DEVICES: dict[str, Device] = {
    "cortex-m0": Device(
        "Arm Cortex-M0",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m0", "-mthumb"),
        "qemu-system-arm",
        ("-M", "microbit"),
        (0, 2**18),
        (0x20000000, 2**14),
        ARM,
        CORTEX_M0,
    ),
    "cortex-m4": Device(
        "Arm Cortex-M4",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m4", "-mthumb"),
        "qemu-system-arm",
        ("-M", "mps2-an386"),
        (0, 2**22),
        (0x20000000, 2**22),
        ARM,
        CORTEX_M4,
    ),
    "rv32": Device(
        "RISC-V RV32IMAC",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany"),
        "qemu-system-riscv32",
        ("-M", "virt", "-bios", "none"),
        (0x80000000, 2**24),
        (0x81000000, 2**24),
        ("gcc-riscv64-unknown-elf", "qemu-system-misc"),
        IBEX,
    ),
}


@dataclass(frozen=True)
class Measured:
    """What one network takes on one core. Of one image: all but the bytes.

    images: on how many all logits were compared. instructions: their mean. stack_bytes: the deepest, from the call on,
    measured by painting. profile: of the first image.
    """

    device: str
    core: str
    compiled_with: str
    images: int
    macs: int
    instructions: float
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    profile: Profile
    manual: str

    def row(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(self) | {"instructions_per_mac": self.instructions / self.macs}
        what = found.pop("profile")
        return found | {
            "cycles_low": what["cycles_low"],
            "cycles_high": what["cycles_high"],
            "executed": {"instructions": what["instructions"]} | what["kinds"],
        }


def missing_tools(*devices: Device) -> str:
    """What to install for these cores, on one line; "" if all is there."""
    lacking = [device for device in devices if device.missing]
    if not lacking:
        return ""
    programs = dict.fromkeys(name for device in lacking for name in device.missing)
    packages = dict.fromkeys(package for device in lacking for package in device.packages)
    return (
        f"{', '.join(device.title for device in lacking)}: {', '.join(programs)} not found on the PATH; install "
        f"{'them' if len(programs) > 1 else 'it'} (Debian: apt install {' '.join(packages)})"
    )


def measure_device(files: Files, model: IntegerModel, images: NDArray[np.uint8], name: str) -> Measured:
    """Run the exported C on at most IMAGES of `images`, uint8 (N, C, H, W), compare every logit, and measure.

    files: model.c and model.h at least. name: a key of DEVICES. Fewer images are used where the flash of the machine
    holds no more. Raises ExportError: missing or broken tools, too little memory, another logit.
    """
    found = _measured(files, model, images, name)
    if isinstance(found, str):
        raise ExportError(found)
    return found


def measure_devices(files: Files, model: IntegerModel, images: NDArray[np.uint8]) -> tuple[list[Measured], list[str]]:
    """`measure_device` on every core, and why some were left out: no tools, or a machine with too little memory.

    Raises ExportError for broken tools and for another logit.
    """
    there = [name for name, device in DEVICES.items() if not device.missing]
    found = [_measured(files, model, images, name) for name in there]
    notices = [missing_tools(*DEVICES.values()), *(each for each in found if isinstance(each, str))]
    return [each for each in found if isinstance(each, Measured)], list(filter(None, notices))


def fits_machine(needs: Footprint, shape: Shape, device: Device) -> bool:
    """Whether the machine that QEMU emulates has room for the network, one image and the program around them."""
    return not _lacking(needs, math.prod(shape), device)


def _lacking(needs: Footprint, image_bytes: int, device: Device) -> list[tuple[str, int, int]]:
    """Of which memory there is too little: its name, what is needed, what is there."""
    found = [
        ("flash", needs.flash_bytes + image_bytes + RESERVED, device.flash[1]),
        ("RAM", needs.ram_bytes + RESERVED, device.ram[1]),
    ]
    return [(what, needed, there) for what, needed, there in found if needed > there]


def _measured(files: Files, model: IntegerModel, images: NDArray[np.uint8], name: str) -> Measured | str:
    """The same; a line instead where there are no tools or there is too little memory."""
    device = DEVICES[name]
    if device.missing:
        return missing_tools(device)
    try:
        needs = footprint(files, device.target)
    except (OSError, subprocess.SubprocessError) as error:
        raise broken(error, device) from None
    count = min(IMAGES, len(images), (device.flash[1] - needs.flash_bytes - RESERVED) // images[0].size)
    for what, needed, there in _lacking(needs, images[0].size, device):
        return (
            f"{device.title}: the network needs {needed:,} bytes of {what}, {RESERVED:,} of them for the program "
            f"around it; QEMU's machine {device.machine[1]} has {there:,}; choose a smaller network or another core"
        )
    shown = images[:count].transpose(0, 2, 3, 1)
    prefix = prefix_of(files)
    sources = {f"bare_metal/{file}": (C_FOLDER / "bare_metal" / file).read_bytes() for file in BARE_METAL}
    sources["device.c"] = prefixed((C_FOLDER / "device.c").read_text(encoding="utf-8"), prefix).encode()
    with placed(files | sources) as folder:
        said = _run(device, prefix, folder, shown)
        executed = _profile(device, prefix, folder, shown[:1])
    rows = [[int(number, 16) for number in line.split()[1:]] for line in said if line.startswith("image ")]
    (spun,) = (int(line.split()[1], 16) for line in said if line.startswith("spun "))
    found = np.array([row[3:] for row in rows], np.uint32).astype(np.int32)
    different = (found != model.run(images[:count])).any(1).sum()
    if different:
        raise ExportError(
            f"{device.title}: {different} of {count} images have different logits than the integer network; this is a "
            "bug, of the compiler or ours: please report it"
        )
    if any(row[2] for row in rows):
        raise ExportError(f"{device.title}: the stack of {rows[0][1] * 4:,} bytes overflowed; choose another --device")
    counts = [row[0] * SPUN / spun for row in rows]
    if abs(counts[0] - executed.instructions) > max(200, 0.001 * executed.instructions):
        raise ExportError(
            f"{device.title}: QEMU counted {counts[0]:,.0f} instructions for an image and logged "
            f"{executed.instructions:,}; is the network too large for a clock of 24 bits?"
        )
    return Measured(
        name,
        device.title,
        device.target.command,
        count,
        sum(layer.macs(shape) for layer, shape in zip(model.layers, model.shapes, strict=False)),
        sum(counts) / count,
        needs.flash_bytes,
        needs.ram_bytes,
        4 * max(row[1] for row in rows),
        executed,
        device.core.manual,
    )


def _build(device: Device, prefix: str, folder: Path, images: NDArray[np.uint8], *flags: str) -> None:
    (folder / "images.bin").write_bytes(images.tobytes())
    sources = ("-I.", *flags, "device.c", "bare_metal/startup.c", prefixed("model.c", prefix))
    try:
        compiler.call(*device.build("bare_metal/", sources, "device.elf"), folder=folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise broken(error, device) from None


def _run(device: Device, prefix: str, folder: Path, images: NDArray[np.uint8]) -> list[str]:
    """The lines that device.c says, run on images (N, H, W, C)."""
    _build(device, prefix, folder, images)
    said = emulate([*device.run("device.elf"), "-icount", "shift=0"], folder, device).splitlines()
    if "end" not in said:
        raise ExportError(f"{device.emulator} ended before all images were done: {_last(said)}; {_install(device)}")
    return said


def _profile(device: Device, prefix: str, folder: Path, images: NDArray[np.uint8]) -> Profile:
    """What was executed for one image (1, H, W, C)."""
    _build(device, prefix, folder, images, "-DSPINS=1")
    try:
        listing = compiler.call(device.target.objdump, "-d", "--no-show-raw-insn", "device.elf", folder=folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise broken(error, device) from None
    log = folder / "executed.log"
    emulate([*device.run("device.elf"), "-d", LOG, "-D", log.name], folder, device)
    with log.open("rb") as lines:
        return profile(lines, listing, prefixed("qattrain_predict", prefix), "main", device.core)


def emulate(command: Sequence[str], folder: Path, device: Device) -> str:
    """What a program says under QEMU. Raises ExportError if that fails, or does not end in time."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{device.emulator} was not done after {RUN_SECONDS} s; is it the one of Debian?") from None
    except OSError as error:
        raise broken(error, device) from None
    if done.returncode:
        raise ExportError(
            f"{device.emulator} ended with exit code {done.returncode}: {_last(done.stdout.splitlines())}; "
            f"{_install(device)}"
        )
    return done.stdout


def broken(error: Exception, device: Device) -> ExportError:
    """A compiler, one of its tools or an emulator that is there, but does not work."""
    command = getattr(error, "cmd", None) or [getattr(error, "filename", None) or device.compiler]
    return ExportError(f"{command[0]} failed for {device.title}: {compiler.failure(error)}; {_install(device)}")


def _install(device: Device) -> str:
    return f"these were tested: Debian's {', '.join(device.packages)}"


def _last(said: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
