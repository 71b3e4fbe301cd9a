"""What `--board` adds to the exported C: `bare_metal`, a program for a microcontroller without an operating system.

Where a core's compiler and QEMU are installed, the program is built by the command that its main.c states, and run.
"""

import subprocess
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError
from qattrain.export.base import Files
from qattrain.export.c_compile import C_FOLDER, placed, prefix_of, prefixed
from qattrain.export.c_devices import BARE_METAL, DEVICES, Device, broken, emulate
from qattrain.files import compiler
from qattrain.integer import IntegerModel

FOLDER = "bare_metal"
PROGRAM = "classify.elf"
TOO_LARGE = "overflowed by"  # what the linker says

Rendered = Callable[..., str]  # the text of a template of `qattrain/export/c`: its name, then its values


def board_files(files: Files, model: IntegerModel, image: NDArray[np.uint8], rendered: Rendered) -> Files:
    """The files of `bare_metal`, which classify `image` (C, H, W).

    files: model.c and model.h at least. Raises ExportError if the program fails on a core whose tools are there.
    """
    prefix = prefix_of(files)
    logits = model.run(image[None])[0].tolist()
    pixels = image.transpose(1, 2, 0).ravel().tolist()
    made = {f"{FOLDER}/{name}": (C_FOLDER / FOLDER / name).read_bytes() for name in BARE_METAL}
    made[f"{FOLDER}/image.h"] = rendered(f"{FOLDER}/image.h", image=pixels, logits=logits).encode("ascii")
    packages = sorted({package for device in DEVICES.values() for package in device.packages})
    commands = {name: commands_of(device, prefix) for name, device in DEVICES.items()}

    def main(fitting: list[str]) -> Files:
        shown = [(DEVICES[name], " ".join(build), " ".join(run)) for name, (build, run) in commands.items()]
        values = {"devices": shown, "fitting": [DEVICES[name] for name in fitting], "packages": packages}
        text = rendered(
            f"{FOLDER}/main.c", program=PROGRAM, classes=model.classes, digits=len(str(model.classes - 1)), **values
        )
        return {f"{FOLDER}/main.c": text.encode("ascii")}

    found = files | made | main(list(DEVICES))
    return made | main([name for name, device in DEVICES.items() if device.missing or fits(found, device)])


def commands_of(device: Device, prefix: str) -> tuple[list[str], list[str]]:
    """The commands that build and run the program, in its folder."""
    sources = ("-I..", "main.c", "startup.c", f"../{prefixed('model.c', prefix)}")
    return device.build("", sources, PROGRAM), device.run(PROGRAM)


def fits(files: Files, device: Device) -> bool:
    """Build and run the program; False if the machine is too small for it. Raises ExportError if it fails."""
    build, run = commands_of(device, prefix_of(files))
    with placed(files) as folder:
        try:
            compiler.call(*build, folder=folder / FOLDER)
        except (OSError, subprocess.SubprocessError) as error:
            if TOO_LARGE in (getattr(error, "stderr", None) or ""):
                return False
            raise broken(error, device) from None
        said = emulate(run, folder / FOLDER, device)
    if "class" not in said:
        raise ExportError(f"{device.emulator} ran {FOLDER}/main.c, which did not name a class; please report it")
    return True
