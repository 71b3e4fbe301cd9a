"""A digit in any picture becomes the same 28x28 image: light on black, 20x20 box, centre of mass in the middle."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qattrain.data import load_dataset
from qattrain.data.dataset import BOX_SIDE
from qattrain.data.pictures import FORMATS, MAX_PIXELS, normalized, read_image, read_picture
from qattrain.errors import DataError
from qattrain.report.drawing import picture


def seven(size: tuple[int, int] = (200, 200), paper: Any = 255, ink: Any = 0, mode: str = "L") -> Image.Image:
    image = Image.new(mode, size, paper)
    unit = min(size) / 200
    points = [(60 * unit, 40 * unit), (140 * unit, 40 * unit), (90 * unit, 160 * unit)]
    ImageDraw.Draw(image).line(points, fill=ink, width=max(1, round(16 * unit)))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def read(image: Image.Image, kind: str = "PNG", **arguments: Any) -> NDArray[np.int64]:
    found = read_image(encoded(image, kind, **arguments), "x").image
    assert (found.shape, found.dtype) == ((1, 28, 28), np.uint8)
    return found[0].astype(np.int64)


REFERENCE = read(seven())


def difference(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Ink that differs, as a share of all; a centre of mass near a half may be rounded to either side."""
    shifts = [(one, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return float(min(np.abs(np.roll(image, (dy, dx), (0, 1)) - other).sum() for image, dy, dx in shifts) / other.sum())


def centre_of(image: NDArray[Any]) -> tuple[float, float]:
    rows, columns = np.indices(image.shape)
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


def box_of(image: NDArray[Any]) -> tuple[int, int]:
    return tuple(int(np.ptp(np.flatnonzero(image.any(axis)))) + 1 for axis in (1, 0))  # type: ignore[return-value]


def test_the_digit_is_light_on_black_in_a_box_of_20_with_its_mass_in_the_middle() -> None:
    assert (REFERENCE.max(), REFERENCE[0, 0]) == (255, 0)
    assert max(box_of(REFERENCE)) == BOX_SIDE
    assert all(abs(middle - 14) <= 0.5 for middle in centre_of(REFERENCE))


@pytest.mark.parametrize(
    ("image", "arguments"),
    [
        (seven(paper=0, ink=255), {}),
        (seven(paper=40, ink=120), {}),
        (seven(paper=200, ink=90), {}),
        (seven((1000, 700)), {}),
        (seven((90, 64)), {}),
        (seven(mode="RGB", paper=(250, 240, 200), ink=(20, 30, 160)), {}),
        (seven(mode="RGB", paper=(0, 0, 90), ink=(255, 255, 0)), {"kind": "JPEG", "quality": 60}),
        (seven(mode="RGBA", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)), {}),  # black on nothing
        (seven(mode="1", paper=1, ink=0), {}),
        (seven().convert("P"), {}),
        (seven().convert("LA"), {}),
        (seven().convert("CMYK"), {"kind": "JPEG"}),
        (Image.fromarray(np.asarray(seven(), np.uint16) * 257), {}),  # 16 bits a pixel
    ],
    ids=lambda value: f"{value.mode} {value.size}" if isinstance(value, Image.Image) else "",
)
def test_size_colours_and_polarity_do_not_matter(image: Image.Image, arguments: dict[str, Any]) -> None:
    assert difference(read(image, **arguments), REFERENCE) < 0.2


def test_a_photograph_lies_the_way_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    turned = seven().rotate(90, expand=True)
    assert difference(read(turned, "JPEG", exif=exif), REFERENCE) < 0.2


def test_paper_noise_is_not_ink() -> None:
    noise = np.random.default_rng(0).normal(0, 8, (200, 200))
    noisy = np.clip(np.asarray(seven(paper=220, ink=40)) + noise, 0, 255).astype(np.uint8)
    assert difference(read(Image.fromarray(noisy)), REFERENCE) < 0.2


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_any_ink_gives_an_image_that_fits_the_box(height: int, width: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    ink = np.where(random.random((height, width)) < share, random.integers(24, 256, (height, width)), 0).astype(float)
    ink[random.integers(height), random.integers(width)] = 255
    image = normalized(ink)
    assert image.max() == 255
    assert max(box_of(image[0])) <= BOX_SIDE


def test_a_thin_line_in_a_large_picture_is_not_lost() -> None:
    image = Image.new("L", (2000, 2000), 255)
    ImageDraw.Draw(image).line([(1000, 300), (1000, 1700)], fill=0, width=3)
    found = read(image)
    assert found.max() == 255
    assert box_of(found) == (20, 1)


def test_an_image_like_mnists_stays_what_it_is() -> None:
    assert difference(read(Image.fromarray(REFERENCE.astype(np.uint8))), REFERENCE) < 0.05


def test_mnists_own_images_stay_what_they_are(mnist_dir: Path) -> None:
    images = load_dataset("mnist", mnist_dir).test.images[:500, 0].numpy()
    changes = [difference(read(Image.fromarray(image)), image.astype(np.int64)) for image in images]
    assert np.median(changes) < 0.05


def refused(data: bytes, *texts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_image(data, "photo.png")
    assert len(str(caught.value).splitlines()) == 1
    for text in ("photo.png", *texts):
        assert text in str(caught.value)


def test_what_is_no_image_of_a_digit_is_refused() -> None:
    whole = encoded(seven())
    refused(b"", "is empty")
    refused(b"hello, world", "no PNG, JPEG, BMP, GIF, TIFF or WebP image")
    refused(encoded(seven(), "PPM"), "no PNG, JPEG, BMP, GIF, TIFF or WebP image")
    refused(whole[: len(whole) // 2], "damaged")
    refused(encoded(Image.new("L", (50, 50), 128)), "shows nothing")
    refused(encoded(seven(paper=128, ink=138)), "shows nothing")
    refused(encoded(Image.new("L", (10_000, 10_000))), "10000 x 10000", f"{MAX_PIXELS:,}")


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(FORMATS))
def test_a_damaged_image_is_read_or_refused_but_never_fails(position: int, byte: int, kind: str) -> None:
    data = bytearray(encoded(seven((40, 40)), kind))
    data[position % len(data)] = byte
    with contextlib.suppress(DataError):
        assert read_image(bytes(data), "x").image.shape == (1, 28, 28)


def gradient(width: int = 40, height: int = 20) -> NDArray[np.uint8]:
    """(H, W): dark on the left, bright on the right."""
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("color", [False, True])
def test_a_picture_is_read_as_it_is(kind: str, color: bool) -> None:
    pixels = np.stack([gradient(), gradient()[:, ::-1], 0 * gradient()], 2)
    data = encoded(Image.fromarray(pixels if color else gradient()), kind)
    found = read_picture(data, "x", None, color)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((3 if color else 1, 20, 40), np.uint8, True)
    expected = pixels.transpose(2, 0, 1) if color else gradient()[None]
    lossy = kind in ("JPEG", "WebP") or (kind == "GIF" and color)
    assert np.abs(found.astype(int) - expected).mean() <= (12 if lossy else 0)


def test_resizing_stretches_the_whole_picture() -> None:
    found = read_picture(encoded(Image.fromarray(gradient())), "x", (10, 10), color=False)
    assert found.shape == (1, 10, 10)
    exact = gradient().reshape(10, 2, 10, 4).mean((1, 3))
    assert np.abs(found[0] - exact).max() <= 4  # the filter also looks at neighbours
    assert read_picture(encoded(Image.fromarray(gradient())), "x", (33, 7), color=True).shape == (3, 33, 7)


def test_grey_colours_transparency_and_16_bits() -> None:
    def first(image: Image.Image, color: bool) -> list[int]:
        return read_picture(encoded(image), "x", None, color)[:, 0, 0].tolist()

    assert first(Image.new("RGB", (9, 9), (255, 0, 0)), color=False) == [76]
    assert first(Image.new("RGB", (9, 9), (255, 1, 2)), color=True) == [255, 1, 2]
    assert first(Image.new("L", (9, 9), 7), color=True) == [7, 7, 7]
    assert first(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), color=True) == [255, 255, 255]
    assert first(Image.new("LA", (9, 9), (0, 128)), color=False) == [127]
    assert first(Image.new("1", (9, 9), 1), color=False) == [255]
    for value, code in ((0, 0), (65535, 255), (257 * 100, 100), (257 * 100 + 129, 101), (257 * 100 + 128, 100)):
        assert first(Image.fromarray(np.full((9, 9), value, np.uint16)), color=False) == [code]


def test_a_turned_photograph_and_an_animation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(gradient()).rotate(90, expand=True), "JPEG", exif=exif, quality=95)
    found = read_picture(turned, "x", None, color=False)
    assert np.abs(found[0].astype(int) - gradient()).max() < 12
    frames = [Image.new("L", (9, 9), grey) for grey in (50, 200)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(animation, "x", None, color=False).tolist() == np.full((1, 9, 9), 50).tolist()


def test_what_is_no_picture_is_refused() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)))
    wrong: list[tuple[bytes, str]] = [
        (b"", "is empty; give a PNG, JPEG, BMP, GIF, TIFF or WebP file"),
        (b"hello, world", "is no PNG, JPEG, BMP, GIF, TIFF or WebP image"),
        (encoded(Image.new("L", (9, 9)), "PPM"), "is no PNG"),
        (whole[: len(whole) // 2], "is a damaged image"),
        (encoded(Image.new("L", (10_000, 10_000))), f"10000 x 10000 pixels; allowed: {MAX_PIXELS:,}"),
        (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point pixels"),
        (encoded(Image.new("I", (9, 9), 70_000), "TIFF"), "grey values outside 0 to 65535"),
    ]
    for data, text in wrong:
        with pytest.raises(DataError) as caught:
            read_picture(data, "photo", (8, 8), color=False)
        assert len(str(caught.value).splitlines()) == 1
        assert f"photo {text}".split(" ")[0] in str(caught.value)
        assert text in str(caught.value)


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(FORMATS))
def test_a_damaged_picture_of_any_kind_is_read_or_refused(position: int, byte: int, kind: str) -> None:
    data = bytearray(encoded(seven((40, 40)), kind))
    data[position % len(data)] = byte
    with contextlib.suppress(DataError):
        assert read_picture(bytes(data), "x", (8, 9), color=True).shape == (3, 8, 9)


def test_the_picture_in_text_has_14_lines_of_28_shades() -> None:
    lines = picture(REFERENCE.astype(np.uint8)).split("\n")
    assert [len(line) for line in lines] == [28] * 14
    assert lines[0].strip() == ""
    assert "█" in "".join(lines)
    ends = np.zeros((28, 28), np.uint8)
    ends[0] = 255
    ends[2:4] = 255
    assert [set(line) for line in picture(ends).split("\n")[:3]] == [{"▒"}, {"█"}, {" "}]
