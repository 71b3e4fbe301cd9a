"""A small picture in text: what the network saw."""

import numpy as np
from numpy.typing import NDArray

SHADES = " ░▒▓█"


def picture(image: NDArray[np.uint8]) -> str:
    """uint8 (28, 28) -> 14 lines of 28 characters, one for two pixels, one above the other: text is twice as high."""
    pairs = image.reshape(image.shape[0] // 2, 2, image.shape[1]).astype(np.int64).mean(1)
    shades = np.ceil(pairs * (len(SHADES) - 1) / 255).astype(int)
    return "\n".join("".join(SHADES[shade] for shade in row) for row in shades)
