"""Turns picture files into images for a network: any picture as it is, or a digit made to look like MNIST's own.

`read_picture` keeps what is there: upright, on white where it is transparent, grey or colour, resized. Resizing
stretches: the whole picture becomes HxW, without keeping its proportions and without cutting anything off.

`read_image` looks for a digit. MNIST's are light on black, scaled with their proportions to fit a 20x20 box, and placed
into 28x28 with their centre of mass on pixel (14, 14). Source: LeCun, Cortes, Burges, "The MNIST database of
handwritten digits".
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from qattrain.data.dataset import BOX_SIDE, IMAGE_SIDE
from qattrain.errors import DataError, reason

MAX_PIXELS = 25_000_000
DIGIT_FORMATS = ("PNG", "JPEG")
FORMATS = (*DIGIT_FORMATS, "BMP", "GIF", "TIFF", "WebP")
MIN_CONTRAST = 24  # of 255, between paper and ink: with less the sheet is empty
PAPER_NOISE = 0.25  # of the strongest ink: anything fainter is paper, shadow or a JPEG artefact

Floats = NDArray[np.float64]


def read_picture(data: bytes, source: str, size: tuple[int, int] | None, color: bool) -> NDArray[np.uint8]:
    """A picture of one of FORMATS -> uint8 (1, H, W), or (3, H, W) with `color`: red, green, blue.

    size: (H, W); None: its own. The first frame of an animation; 16 bits per pixel become 8. Reducing averages over all
    pixels that become one (Pillow's bilinear filter). Raises DataError, naming `source`, if it is another format,
    empty, damaged, or has more than 25 million pixels.
    """
    picture = _upright(data, source, FORMATS)
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip instead of scaling
        picture = Image.fromarray(np.floor(_sixteen_bits(picture, source) / 257 + 0.5).astype(np.uint8))
    plain = _on_white(picture).convert("RGB" if color else "L")
    if size is not None and plain.size != (size[1], size[0]):
        plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(plain)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if color else pixels[None])


def read_image(data: bytes, source: str) -> NDArray[np.uint8]:
    """A PNG or JPEG of any size, grey or colour, dark on light or light on dark -> uint8 (1, 28, 28) like MNIST's.

    Raises DataError, naming `source`, if it is another format, empty or blank, or has more than 25 million pixels.
    """
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
    picture = _upright(data, source, DIGIT_FORMATS)
    if picture.mode.startswith("I"):
        return _sixteen_bits(picture, source) / 257
    return np.asarray(_on_white(picture).convert("L"), np.float64)


def _sixteen_bits(picture: Image.Image, source: str) -> Floats:
    """(H, W), 0..65535, of a grey picture with more than 8 bits per pixel."""
    pixels = np.asarray(picture, np.float64)
    if not 0 <= pixels.min() <= pixels.max() <= 65535:
        raise DataError(f"{source} has grey values outside 0 to 65535; convert it to 8 or 16 bits per pixel")
    return pixels


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture without transparency, RGB or RGBA."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colour = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)


def _upright(data: bytes, source: str, formats: tuple[str, ...]) -> Image.Image:
    """The decoded picture, turned the way its camera says. Raises DataError."""
    *others, last = formats
    known = f"{', '.join(others)} or {last}"
    if not data:
        raise DataError(f"{source} is empty; give a {known} file")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{source} has {width} x {height} pixels; allowed: {MAX_PIXELS:,} in total; make it smaller"
                )
            if picture.mode == "F":
                raise DataError(f"{source} has floating-point pixels; convert it to 8 bits per pixel")
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise DataError(f"{source} is no {known} image; convert it to one") from None
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise DataError(f"{source} is a damaged image: {reason(error)}; use an intact copy") from None
