"""What lies around a digit in somebody's picture is removed and told: frames, shadows, specks, a transparent ground.

Every picture here is a digit of scikit-learn's, or of MNIST's, drawn into 200x200 and then spoilt; the network should
see what it sees of the plain picture.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qattrain.data import load_dataset
from qattrain.data.pictures import FORMATS, Prepared, border, normalized, read_image
from qattrain.errors import DataError

SIDE = 200
PAPER, INK = 240.0, 25.0
ROWS, COLUMNS = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]

Floats = NDArray[np.float64]
Spoil = Callable[[Floats, np.random.Generator], Floats]  # (ink 0..1 (200, 200)) -> grey 0..255


def drawn(image: NDArray[np.uint8], random: np.random.Generator, side: int = 130) -> Floats:
    """The digit of a 28x28 image with sharp strokes, `side` pixels long, somewhere in a picture: ink, 0 to 1."""
    large = Image.fromarray(image).resize((side * 7 // 5, side * 7 // 5), Image.Resampling.BICUBIC)
    ink = np.clip((np.asarray(large) / 255 - 0.35) / 0.3, 0, 1)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    sheet = np.zeros((SIDE, SIDE))
    top, left = (int(random.integers(25, SIDE - 24 - length)) for length in box.shape)
    sheet[top : top + box.shape[0], left : left + box.shape[1]] = box
    return sheet


def inked(ink: Floats) -> Floats:
    return PAPER + (INK - PAPER) * ink


def encoded(grey: Floats | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = grey if isinstance(grey, Image.Image) else Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def prepared(grey: Floats | Image.Image, kind: str = "PNG", **options: Any) -> Prepared:
    return read_image(encoded(grey, kind, **options), "x")


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Ink that differs, as a share of all; the centre may be rounded to either side."""
    a, b = one[0].astype(float), other[0].astype(float)
    shifts = [np.roll(a, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return float(min(np.abs(shifted - b).sum() for shifted in shifts) / b.sum())


def digits() -> list[NDArray[np.uint8]]:
    return list(load_dataset("digits", Path()).test.images[:60, 0].numpy())


def outlined(shape: str, gap: int, width: int, turn: float = 0) -> Floats:
    """A frame: ink, 0 to 1."""
    image = Image.new("L", (SIDE, SIDE))
    getattr(ImageDraw.Draw(image), shape)((gap, gap, SIDE - 1 - gap, SIDE - 1 - gap), outline=255, width=width)
    return np.asarray(image.rotate(turn, Image.Resampling.BICUBIC)) / 255


def framed(ink: Floats, random: np.random.Generator) -> Floats:
    """A thin frame that is nearer to one edge than to another."""
    grey, (top, bottom, left, right) = inked(ink), random.integers(4, 20, 4)
    grey[[top, top + 1, -bottom - 1, -bottom], left : SIDE - right + 1] = INK
    grey[top : SIDE - bottom + 1, [left, left + 1, -right - 1, -right]] = INK
    return grey


def light(random: np.random.Generator, darkest: float) -> Floats:
    """Light that falls off in one direction, from 1 down to `darkest`."""
    angle = random.uniform(0, 2 * np.pi)
    slope = COLUMNS * np.cos(angle) + ROWS * np.sin(angle)
    return darkest + (1 - darkest) * (slope - slope.min()) / np.ptp(slope)


def dusty(ink: Floats, random: np.random.Generator) -> Floats:
    for _ in range(8):
        x, y, radius = *random.uniform(-0.95, 0.95, 2), random.uniform(0.01, 0.025)
        ink = np.maximum(ink, np.hypot(COLUMNS - x, ROWS - y) <= radius)
    return inked(ink)


FRAME, EDGE, LIGHT, SPECKS = (
    "a frame around it was removed",
    "a frame along the edge was cut off",
    "uneven light was flattened",
    "left out",
)
# How it is spoilt, what is told of it, and how much ink of the network's image may differ from the plain picture's:
# none with a frame; less ink than in full light in a shadow.
SPOILT: dict[str, tuple[Spoil, str, float]] = {
    "thin frame": (framed, FRAME, 0),
    "thin frame, light on dark": (lambda ink, random: 255 - framed(ink, random), FRAME, 0),
    "tilted frame": (
        lambda ink, random: inked(np.maximum(ink, outlined("rectangle", 14, 3, random.uniform(-3, 3)))),
        FRAME,
        0,
    ),
    "two frames": (
        lambda ink, _: inked(np.maximum.reduce([ink, *(outlined("rectangle", gap, 2) for gap in (8, 14))])),
        FRAME,
        0,
    ),
    "frame along the edge": (lambda ink, _: inked(np.maximum(ink, outlined("rectangle", 0, 3))), EDGE, 0),
    "shadow": (lambda ink, random: inked(ink) * light(random, 0.4), LIGHT, 0.35),
    "deep shadow": (lambda ink, random: inked(ink) * light(random, 0.25), LIGHT, 0.55),
    "shadow and frame": (lambda ink, random: framed(ink, random) * light(random, 0.4), LIGHT, 0.35),
    "dust": (dusty, SPECKS, 0.2),
    "noise": (lambda ink, random: inked(ink) + random.normal(0, 20, ink.shape), SPECKS, 0.3),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_around_a_digit_is_removed_and_told(name: str) -> None:
    spoil, told, most = SPOILT[name]
    for index, image in enumerate(digits()):
        random = np.random.default_rng(index)
        ink = drawn(image, random)
        plain, found = prepared(inked(ink)), prepared(spoil(ink, random))
        assert any(told in note for note in found.notes), (index, found.notes)
        assert difference(found.image, plain.image) <= most, index


def test_a_circle_around_a_digit_is_a_frame() -> None:
    for index, image in enumerate(digits()):
        ink = drawn(image, np.random.default_rng(index), side=60)
        middle = np.roll(ink, [100 - int(np.median(axis)) for axis in np.nonzero(ink > 0.5)], (0, 1))
        found = prepared(inked(np.maximum(middle, outlined("ellipse", 5, 3))))
        assert FRAME in found.notes
        assert difference(found.image, prepared(inked(middle)).image) == 0


def plainly(grey: Floats) -> NDArray[np.uint8]:
    """The preparation without any of its removals."""
    return normalized(np.abs(grey - np.median(border(grey))))


def test_a_clean_picture_gives_the_same_bytes_as_without_removals() -> None:
    for index, image in enumerate(digits()):
        ink = drawn(image, np.random.default_rng(index))
        for grey in (inked(ink), 255 - inked(ink), image.astype(float), 255.0 - image):
            pixels = np.floor(grey + 0.5)
            found = prepared(pixels)
            assert found.image.tobytes() == plainly(pixels).tobytes()
            assert not [note for note in found.notes if "separate" not in note]


def test_mnists_own_images_give_the_same_bytes_as_without_removals(mnist_dir: Path) -> None:
    images = load_dataset("mnist", mnist_dir).test.images[:500, 0].numpy().astype(float)
    changed = [index for index, grey in enumerate(images) if (prepared(grey).image != plainly(grey)).any()]
    assert not changed


def test_light_on_a_transparent_ground_is_put_on_black() -> None:
    ink = drawn(digits()[5], np.random.default_rng(0))
    opacity = (255 * ink).astype(np.uint8)
    plain = prepared(255 - opacity.astype(float)).image
    for grey, notes in ((0, []), (200, [GROUND]), (255, [GROUND])):
        layers = np.dstack([np.full((SIDE, SIDE, 3), grey, np.uint8), opacity])
        found = prepared(Image.fromarray(layers))
        assert [note for note in found.notes if "separate" not in note] == notes
        assert difference(found.image, plain) < 0.01
        assert found.is_dark == (not notes)
    sheet = np.dstack([np.repeat(inked(ink)[..., None], 3, 2), np.full((SIDE, SIDE), 255.0)]).astype(np.uint8)
    sheet[:9, :9, 3] = 0  # a sheet with a transparent corner is still on white
    assert prepared(Image.fromarray(sheet)).is_dark


GROUND = "light on a transparent ground, which was taken as black"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_digit_is_read_from_every_format(kind: str) -> None:
    grey = inked(drawn(digits()[3], np.random.default_rng(0)))
    assert difference(prepared(grey, kind).image, prepared(grey).image) < 0.05


def test_the_first_image_of_an_animation_counts_and_palettes_and_16_bits_are_read() -> None:
    first, second = (inked(drawn(digits()[index], np.random.default_rng(0))) for index in (3, 4))
    plain = prepared(first)
    frames = [Image.fromarray(grey.astype(np.uint8)) for grey in (first, second)]
    for kind in ("GIF", "TIFF", "WebP"):
        found = prepared(frames[0], kind, save_all=True, append_images=frames[1:])
        assert difference(found.image, plain.image) < 0.05
    deep = Image.fromarray((first * 257).astype(np.uint16))
    for kind in ("PNG", "TIFF"):
        assert difference(prepared(deep, kind).image, plain.image) < 0.01
    clear = frames[0].convert("P")
    assert difference(prepared(clear, "GIF", transparency=clear.getpixel((0, 0))).image, plain.image) < 0.05


def pasted(*images: NDArray[np.uint8]) -> Floats:
    return 255.0 - np.hstack([np.pad(image, 4) for image in images]).repeat(5, 0).repeat(5, 1)


def test_several_shapes_are_told_and_all_are_seen() -> None:
    one, two, three = (np.maximum(image, 200 * (image > 0)) for image in digits()[:3])
    assert prepared(pasted(one)).notes == []
    told = prepared(pasted(one, two, three)).notes
    assert told == ["3 separate shapes are read as one digit; if they are several digits, crop them"]
    five = np.zeros((28, 28), np.uint8)
    ImageDraw.Draw(drawing := Image.fromarray(five)).line([(10, 12), (16, 14), (10, 22)], fill=255, width=2)
    ImageDraw.Draw(drawing).line([(10, 6), (18, 6)], fill=255, width=2)  # its bar does not touch
    found = prepared(pasted(np.asarray(drawing)))
    assert [note.split()[0] for note in found.notes] == ["2"]
    assert found.image[0, 4:7].any()


@pytest.mark.parametrize("inside", [0, 2, 7])
def test_a_zero_is_no_frame_even_with_something_small_in_it(inside: int) -> None:
    image = Image.new("L", (100, 160), 255)
    ImageDraw.Draw(image).rectangle((20, 20, 80, 140), outline=0, width=5)  # as a display shows it
    ImageDraw.Draw(image).rectangle((50, 80, 50 + inside, 80 + inside), fill=0 if inside else 255)
    found = prepared(image)
    assert FRAME not in found.notes
    assert [int(np.ptp(np.flatnonzero(found.image[0].any(axis)))) + 1 for axis in (1, 0)] == [20, 10]


def test_a_doubtful_polarity_has_another_image_and_a_clear_one_has_none() -> None:
    ink = drawn(digits()[0], np.random.default_rng(0))
    for grey, is_dark in ((inked(ink), True), (255 - inked(ink), False)):
        assert prepared(grey)[2:] == (is_dark, None)
    bars = np.full((90, 90), 255.0)
    bars[:, :20] = bars[:, 70:] = 0  # a light bar on black, or two dark ones on white
    found = prepared(bars)
    assert not found.is_dark
    assert found.other is not None
    assert [int(image[0, 14, 14]) for image in (found.image, found.other)] == [255, 0]


@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 1000), levels=st.integers(2, 256))
def test_any_picture_is_prepared_or_refused(height: int, width: int, seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    grey = random.integers(0, levels, (height, width)) * (255 // (levels - 1))
    coarse = grey.repeat(random.integers(1, 5), 0).repeat(random.integers(1, 5), 1).astype(float)
    with contextlib.suppress(DataError):
        found = prepared(coarse)
        assert (found.image.shape, found.image.dtype, found.image.max()) == ((1, 28, 28), np.uint8, 255)
        assert found.other is None or found.other.max() == 255
