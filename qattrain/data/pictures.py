"""Turns picture files into images for a network: any picture as it is, or a digit made to look like MNIST's own.

`read_picture` keeps what is there: upright, on white where it is transparent, grey or colour, resized. Resizing
stretches: the whole picture becomes HxW, without keeping its proportions and without cutting anything off.

`read_image` looks for one digit. MNIST's are light on black, scaled with their proportions to fit a 20x20 box, and
placed into 28x28 with their centre of mass on pixel (14, 14). Source: LeCun, Cortes, Burges, "The MNIST database of
handwritten digits".
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from qattrain.data.dataset import BOX_SIDE, IMAGE_SIDE
from qattrain.errors import DataError, reason

MAX_PIXELS = 25_000_000
MAX_SIDE = 30_000  # pixels
ENOUGH_PIXELS = 2_000_000  # to find a digit that becomes 20 x 20: a larger picture is reduced first
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WebP")
MIN_CONTRAST = 24  # of 255, between paper and ink: with less the sheet is empty
PAPER_NOISE = 0.25  # of the strongest ink: anything fainter is paper, shadow or a JPEG artefact
EDGE = 0.9  # of a ring of pixels: so many of one kind make it part of a frame along the edge, or of the paper in it
SHADOW = 0.1  # of the border: with more strong ink on it, light may be uneven
FIT_SIDE = 200  # pixels in a row or column that suffice to fit a plane
SPECK = 0.02  # of the ink of the largest shape: anything less is dust
MAX_FRAMES = 3  # around each other
FRAME_COVER = 0.7  # of each side of a frame's box; a circle covers 0.745, with bands of a sixth
UNCLEAR_BORDER, UNCLEAR_INK = 1 / 3, 1 / 2  # of the border, of the picture: with more ink, paper may be what seems ink

Floats = NDArray[np.float64]
Box = tuple[slice, slice]  # rows, columns


class Prepared(NamedTuple):
    """A picture as a network takes it.

    image: uint8 (C, H, W). notes: short sentences on what was done to it beyond cropping, scaling and centring, and on
    what is doubtful. is_dark: whether the ink is darker than the paper. other: the image if it is the other way round;
    None where the picture leaves no doubt.
    """

    image: NDArray[np.uint8]
    notes: Sequence[str] = ()
    is_dark: bool = False
    other: NDArray[np.uint8] | None = None


def read_picture(data: bytes, source: str, size: tuple[int, int] | None, color: bool) -> NDArray[np.uint8]:
    """A picture of one of FORMATS -> uint8 (1, H, W), or (3, H, W) with `color`: red, green, blue.

    size: (H, W); None: its own. The first frame of an animation; 16 bits per pixel become 8. Reducing averages over all
    pixels that become one (Pillow's bilinear filter). Raises DataError, naming `source`, if it is another format,
    empty, damaged, or has more than 25 million pixels.
    """
    picture = _upright(data, source)
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip instead of scaling
        picture = Image.fromarray(np.floor(_sixteen_bits(picture, source) / 257 + 0.5).astype(np.uint8))
    plain = _on("white", picture).convert("RGB" if color else "L")
    pixels = np.asarray(plain if size is None else _resized(plain, *size))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if color else pixels[None])


def read_image(data: bytes, source: str) -> Prepared:
    """A picture of any size, grey or colour, dark on light or light on dark -> (1, 28, 28) like MNIST's, on black.

    Grey is 0..255, not rounded. The border is the first and last row and column. Ink is how far a pixel's grey is from
    the paper's; it is strong if it is at least a quarter (PAPER_NOISE) of the largest in the picture.

    1. Grey: upright, 16 bits scaled to 8, colours as ITU-R BT.601 has them. What is transparent becomes white; it
       becomes black if most of the border is transparent, and what is there is light (its mean, weighted by opacity,
       is above 127.5).
       A picture of more than 2 million pixels is reduced by a whole factor.
    2. A frame along the edge is cut off: `without_edge`.
    3. The paper is the median of the border; in uneven light it is a plane: `paper_of`.
    4. Ink. If it nowhere reaches MIN_CONTRAST, the picture is refused.
    5. Frames around other shapes, and specks, are removed: `shapes_of`.
    6. Cropped, scaled, centred: `normalized`.

    A picture without frame, shadow or specks passes steps 2, 3 and 5 unchanged. Raises DataError, naming `source`, if
    it is another format, empty or blank, or has more than 25 million pixels.
    """
    grey, notes = _grey(data, source)
    inside = without_edge(grey)
    if len(inside) < len(grey):
        notes.append("a frame along the edge was cut off")
    paper = paper_of(inside)
    if paper.size > 1:
        notes.append("uneven light was flattened")
    signed = inside - paper
    ink = np.abs(signed)
    if ink.max() < MIN_CONTRAST:
        raise DataError(f"{source} shows nothing: it has only one colour; give a digit that stands out from its paper")
    shapes, remarks = shapes_of(ink)
    strong = ink >= PAPER_NOISE * ink.max()
    is_unclear = border(strong).mean() > UNCLEAR_BORDER or strong.mean() > UNCLEAR_INK
    other = normalized(shapes_of(ink.max() - ink)[0]) if is_unclear and ink.min() < ink.max() else None
    return Prepared(normalized(shapes), notes + remarks, bool(signed[strong].mean() < 0), other)


def border(picture: NDArray[Any], depth: int = 0) -> NDArray[Any]:
    """Of (H, W), the row or column of pixels `depth` pixels from each edge, (N,); corners count twice."""
    inner = picture[depth : len(picture) - depth, depth : picture.shape[1] - depth]
    return np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])


def without_edge(grey: Floats) -> Floats:
    """The picture inside a frame that runs along its edges, such as a dark table around a sheet; or as it is.

    There is one if all four sides change from frame to paper: at least nine tenths (EDGE) of the border are near one
    grey, its median, and at least nine tenths of a ring further in, by at most a tenth of the shorter side, are not.
    "Near" is nearer than MIN_CONTRAST, and than a quarter of the largest distance. As frames are blurred, the cut is at
    the first such ring from which the next is not another grey level further away. What is then inside must be paper
    for the most part, not near the frame's grey, and not blank.
    """
    frame = float(np.median(border(grey)))
    near = max(MIN_CONTRAST, PAPER_NOISE * float(np.abs(grey - frame).max()))

    def distance(depth: int) -> Floats:
        return np.abs(border(grey, depth) - frame)

    deepest = min(grey.shape) // 10
    cut = next((depth for depth in range(1, deepest + 1) if (distance(depth) >= near).mean() >= EDGE), None)
    if cut is None or (distance(0) < near).mean() < EDGE:
        return grey
    while cut < deepest and np.median(distance(cut + 1)) > np.median(distance(cut)) + 1:
        cut += 1
    inside = grey[cut:-cut, cut:-cut]
    is_blank = np.abs(inside - np.median(border(inside))).max() < MIN_CONTRAST
    return grey if is_blank or abs(np.median(inside) - frame) < near else inside


def paper_of(grey: Floats) -> Floats:
    """The grey of the paper: the median of the border, (1, 1); or (H, W), a plane, in uneven light.

    The plane a + b x + c y is fitted by least squares to the border, then three times to all pixels at most a quarter
    of the largest distance from it. Each n-th row and column, at most 200, suffice for that. The plane is taken if more
    than a tenth (SHADOW) of the border is strong ink with the median, and at most a quarter as much with the plane.
    """
    flat = np.full((1, 1), np.median(border(grey)))

    def inked(paper: Floats) -> float:
        distance = np.abs(grey - paper)
        return float((border(distance) >= PAPER_NOISE * distance.max()).mean())

    before = inked(flat)
    if before <= SHADOW:
        return flat
    y, x = (np.linspace(-1, 1, side) for side in grey.shape)
    step = -(-max(grey.shape) // FIT_SIDE)
    small, ys, xs = grey[::step, ::step], y[::step, None], x[None, ::step]
    terms = np.stack(np.broadcast_arrays(1.0, xs, ys), -1)
    is_paper = np.zeros(small.shape, bool)
    is_paper[[0, -1]] = is_paper[:, [0, -1]] = True
    for _ in range(4):
        a, b, c = np.linalg.lstsq(terms[is_paper], small[is_paper], rcond=None)[0]
        distance = np.abs(small - (a + b * xs + c * ys))
        is_paper = distance <= PAPER_NOISE * distance.max()
    plane = a + b * x[None] + c * y[:, None]
    return plane if inked(plane) <= before / 4 else flat


def shapes_of(ink: Floats) -> tuple[Floats, list[str]]:
    """(H, W) -> the ink of what may be the digit, 0 elsewhere, and what there is to say about it.

    A shape is strong ink connected over sides and corners. The three shapes with the most ink may be frames, each
    around the next: `_is_frame`, and a shape lies inside whose longer side is at least a quarter of the frame's shorter
    one. With a frame goes all that is not inside it. Specks go too: shapes with less than a fiftieth of the ink of the
    shape that now has the most. All others stay: a 5 with a gap is a digit in two shapes, and nothing in their size
    tells it from two digits.
    """
    labels, count = ndimage.label(ink >= PAPER_NOISE * ink.max(), np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    mass = np.bincount(labels.ravel(), ink.ravel(), count + 1)[1:]  # of shapes 1 to count
    sides = np.array([max(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes])
    notes = []
    for index in np.argsort(-mass, kind="stable")[:MAX_FRAMES]:
        if mass[index] and _is_frame(labels[boxes[index]] == index + 1):
            inside = np.array([_contains(boxes[index], box) for box in boxes]) & (sides < sides[index])
            if sides[inside].max(initial=0) * 4 >= min(labels[boxes[index]].shape):
                mass[~inside] = 0
                notes = ["a frame around it was removed"]
    kept = mass >= SPECK * mass.max()
    specks = int(np.count_nonzero(mass) - np.count_nonzero(kept))
    if specks:
        notes.append("1 speck was left out" if specks == 1 else f"{specks:,} specks were left out")
    large = int(np.count_nonzero(2 * sides[kept] >= sides[kept].max()))
    if large > 1:
        notes.append(f"{large:,} separate shapes are read as one digit; if they are several digits, crop them")
    return np.where(np.concatenate([[False], kept])[labels], ink, 0.0), notes


def _is_frame(shape: NDArray[np.bool_]) -> bool:
    """Whether the pixels of a shape in its own box (H, W) form a frame, rectangular or round, straight or a bit tilted.

    None are in the middle two thirds by two thirds; and in the outer sixth on each side, they cover seven tenths of it.
    """
    bands = [side // 6 for side in shape.shape]
    if not all(bands):
        return False
    (top, bottom), (left, right) = ((band, side - band) for band, side in zip(bands, shape.shape, strict=True))
    outer = (shape[:top].any(0), shape[bottom:].any(0), shape[:, :left].any(1), shape[:, right:].any(1))
    return not shape[top:bottom, left:right].any() and min(side.mean() for side in outer) >= FRAME_COVER


def _contains(outer: Box, inner: Box) -> bool:
    return all(a.start <= b.start and b.stop <= a.stop for a, b in zip(outer, inner, strict=True))


def normalized(ink: Floats) -> NDArray[np.uint8]:
    """ink: (H, W), 0 on paper -> uint8 (1, 28, 28): cropped, scaled and centred like MNIST's images.

    What is not strong becomes 0, and the rest is cropped to its box. The box is scaled with its proportions so that its
    longer side has 20 pixels, by Pillow's bilinear filter, which averages over all pixels that become one. Its maximum
    becomes 255, values are rounded half up, and its centre of mass comes as near to pixel (14, 14) as it can.
    """
    ink = ink / ink.max()
    ink[ink < PAPER_NOISE] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX_SIDE / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    picture = Image.fromarray((255 * box).astype(np.float32))
    small = np.clip(np.asarray(_resized(picture, height, width), np.float64), 0, 255)
    small *= 255 / small.max()  # thin strokes of a large picture fade when they are scaled down
    top, left = (_offset(small.sum(axis)) for axis in (1, 0))
    image = np.zeros((1, IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    image[0, top : top + height, left : left + width] = np.floor(small + 0.5)
    return image


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    """By Pillow's bilinear filter, first every row, then every column.

    Pillow 13 by itself begins with the columns of tall pictures, and rounds in between what earlier releases do not.
    """
    across = picture.resize((width, picture.height), Image.Resampling.BILINEAR)
    return across.resize((width, height), Image.Resampling.BILINEAR)


def _offset(mass: Floats) -> int:
    """Where the box begins so that its centre of mass is as near to pixel 14 as the whole box allows."""
    centre = (np.arange(len(mass)) * mass).sum() / mass.sum()
    return int(np.clip(round(IMAGE_SIDE / 2 - centre), 0, IMAGE_SIDE - len(mass)))


def _grey(data: bytes, source: str) -> tuple[Floats, list[str]]:
    """(H, W), 0..255, and what there is to say about it."""
    picture, paper, notes = _upright(data, source, ENOUGH_PIXELS), "white", []
    if picture.mode.startswith("I"):
        return _sixteen_bits(picture, source) / 257, []
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        grey, opacity = np.asarray(layers.convert("L"), np.float64), np.asarray(layers.getchannel("A"), np.float64)
        if (border(opacity) < 127.5).mean() > 0.5 and (grey * opacity).sum() > 127.5 * opacity.sum():
            paper, notes = "black", ["light on a transparent ground, which was taken as black"]
    return np.asarray(_on(paper, picture).convert("L"), np.float64), notes


def _sixteen_bits(picture: Image.Image, source: str) -> Floats:
    """(H, W), 0..65535, of a grey picture with more than 8 bits per pixel."""
    pixels = np.asarray(picture, np.float64)
    if not 0 <= pixels.min() <= pixels.max() <= 65535:
        raise DataError(f"{source} has grey values outside 0 to 65535; convert it to 8 or 16 bits per pixel")
    return pixels


def _on(paper: str, picture: Image.Image) -> Image.Image:
    """The picture without transparency, RGB or RGBA, on paper of that colour."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colour = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colour.size, paper), colour)


def _upright(data: bytes, source: str, enough_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded picture, turned the way its camera says, and reduced if it has more pixels. Raises DataError."""
    *others, last = FORMATS
    known = f"{', '.join(others)} or {last}"
    if not data:
        raise DataError(f"{source} is empty; give a {known} file")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise DataError(
                    f"{source} has {width} x {height} pixels; allowed: {MAX_PIXELS:,} in total and {MAX_SIDE:,} on a "
                    "side; make it smaller"
                )
            if picture.mode == "F":
                raise DataError(f"{source} has floating-point pixels; convert it to 8 bits per pixel")
            if width * height <= enough_pixels:
                return ImageOps.exif_transpose(picture)
            ImageOps.exif_transpose(picture, in_place=True)  # another copy of a large picture is a lot of memory
            return _reduced(picture, enough_pixels)
    except UnidentifiedImageError:
        raise DataError(f"{source} is no {known} image; convert it to one") from None
    except Image.DecompressionBombError:  # seven times MAX_PIXELS, refused by Pillow
        raise DataError(f"{source} has far too many pixels; allowed: {MAX_PIXELS:,}; make it smaller") from None
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise DataError(f"{source} is a damaged image: {reason(error)}; use an intact copy") from None


def _reduced(picture: Image.Image, enough_pixels: int) -> Image.Image:
    """The picture with a whole number of pixels averaged into one, in a mode in which that means something."""
    if picture.mode.startswith("I"):
        picture = picture.convert("I")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB"):  # a palette's numbers have no average
        picture = picture.convert("RGB")
    return picture.reduce(math.ceil(math.sqrt(picture.width * picture.height / enough_pixels)))
