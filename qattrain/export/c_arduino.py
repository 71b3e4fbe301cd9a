"""What `--board` adds for the Arduino IDE: a library folder with an example sketch, by the library specification 1.5.

Its model.c and model.h are the exported ones, byte for byte. Out of scope: AVR and the ESP8266, where constants take
RAM.
"""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qattrain.export.base import Files
from qattrain.export.c_compile import prefix_of, prefixed
from qattrain.integer import IntegerModel

# Cores on whose boards constants stay in the flash; the IDE warns on others.
ARCHITECTURES = (
    "apollo3,esp32,mbed,mbed_edge,mbed_giga,mbed_nano,mbed_nicla,mbed_opta,mbed_portenta,mbed_rp2040,nrf52,"
    "renesas_portenta,renesas_uno,rp2040,sam,samd,stm32"
)


def arduino_files(files: Files, model: IntegerModel, image: NDArray[np.uint8], rendered: Callable[..., str]) -> Files:
    """The library folder. Its sketch classifies `image` (C, H, W).

    files: those of the exporter. rendered: the text of a template of `qattrain/export/c`: its name, then the values
    that do not follow from the image's shape.
    """
    prefix = prefix_of(files)
    source, header = prefixed("model.c", prefix), prefixed("model.h", prefix)
    folder = f"arduino/{prefix}"
    sketch = f"{folder}/examples/Classify"
    names = re.search(r"names\[\w+\] = \{\n(.*?)\n\};", files["main.c"].decode("ascii"), re.DOTALL)
    ram = re.search(r"ARENA_BYTES (\d+)", files[header].decode("ascii"))
    assert names is not None, "main.c has no names"
    assert ram is not None, header
    pixels = image.transpose(1, 2, 0).ravel().tolist()
    logits = model.run(image[None])[0].tolist()
    facts = {"library": prefix, "classes": model.classes, "ram": ram[1], "architectures": ARCHITECTURES}
    texts = {
        f"{folder}/library.properties": rendered("arduino/library.properties", **facts),
        f"{sketch}/Classify.ino": rendered("arduino/Classify.ino", names=names[1]),
        f"{sketch}/image.h": rendered("bare_metal/image.h", image=pixels, logits=logits),
    }
    made = {f"{folder}/src/{name}": files[name] for name in (source, header)}
    return made | {name: text.encode("ascii") for name, text in texts.items()}
