"""Turns any picture of a digit into an image like MNIST's own.

There the digit is light on black, scaled with its proportions to fit a 20x20 box, and placed into 28x28 with its centre
of mass on pixel (14, 14). Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from qattrain.data.dataset import BOX_SIDE, IMAGE_SIDE
from qattrain.errors import DataError

MAX_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG")
MIN_CONTRAST = 24  # of 255, between paper and ink: with less the sheet is empty
PAPER_NOISE = 0.25  # of the strongest ink: anything fainter is paper, shadow or a JPEG artefact

Floats = NDArray[np.float64]


def read_image(data: bytes, source: str) -> NDArray[np.uint8]:
    """A PNG or JPEG of any size, grey or colour, dark on light or light on dark -> uint8 (1, 28, 28) like MNIST's.

    Raises DataError, naming `source`, if it is another format, empty or blank, or has more than 25 million pixels.
    """
    if not data:
        raise DataError(f"{source} is empty; give a PNG or JPEG file")
    grey = _grey(data, source)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))  # the border shows the paper; ink may be lighter or darker
    if ink.max() < MIN_CONTRAST:
        raise DataError(f"{source} shows nothing: it has only one colour; give a digit that stands out from its paper")
    return normalized(ink)


def normalized(ink: Floats) -> NDArray[np.uint8]:
    """ink: (H, W), 0 on paper -> uint8 (1, 28, 28): cropped, scaled and centred like MNIST's images."""
    ink = ink / ink.max()
    ink[ink < PAPER_NOISE] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX_SIDE / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    picture = Image.fromarray((255 * box).astype(np.float32))
    small = np.clip(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float64), 0, 255)
    small *= 255 / small.max()  # thin strokes of a large picture fade when they are scaled down
    top, left = (_offset(small.sum(axis)) for axis in (1, 0))
    image = np.zeros((1, IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    image[0, top : top + height, left : left + width] = np.floor(small + 0.5)
    return image


def _offset(mass: Floats) -> int:
    """Where the box begins so that its centre of mass is as near to pixel 14 as the whole box allows."""
    centre = (np.arange(len(mass)) * mass).sum() / mass.sum()
    return int(np.clip(round(IMAGE_SIDE / 2 - centre), 0, IMAGE_SIDE - len(mass)))


def _grey(data: bytes, source: str) -> Floats:
    """(H, W), 0..255; transparent pixels are white."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{source} has {width} x {height} pixels; allowed: {MAX_PIXELS:,} in total; make it smaller"
                )
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits per pixel
                return np.asarray(upright, np.float64) / 257
            colour = upright.convert("RGBA")
            colour = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
            return np.asarray(colour.convert("L"), np.float64)
    except UnidentifiedImageError:
        raise DataError(f"{source} is no PNG or JPEG image; convert it to one") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{source} is a damaged image: {error}; use an intact copy") from None
