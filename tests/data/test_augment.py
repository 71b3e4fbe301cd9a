import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qattrain.data.augment import AUGMENTATIONS, SHIFT_PX, affine, augmentation, elastic, flip, none, shift

names = pytest.mark.parametrize("name", AUGMENTATIONS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), generator=seeded(9), dtype=torch.uint8)


def blob(count: int, side: int = 8) -> Tensor:
    """A bright square in the middle of each image."""
    images = torch.zeros((count, 1, 28, 28), dtype=torch.uint8)
    low = 14 - side // 2
    images[:, :, low : low + side, low : low + side] = 255
    return images


def centre_px(images: Tensor) -> Tensor:
    """(B, 2): centre of mass in x and y, in pixels from the image's centre."""
    mass = images[:, 0].double()
    position = torch.arange(28, dtype=torch.float64) - 13.5
    total = mass.sum((1, 2))
    return torch.stack(((mass.sum(1) * position).sum(1) / total, (mass.sum(2) * position).sum(1) / total), 1)


@names
@pytest.mark.parametrize("count", [1, 33])
def test_shape_dtype_and_input_are_kept(name: str, count: int) -> None:
    images = noise(count)
    before = images.clone()
    result = AUGMENTATIONS[name](images, seeded(0))
    assert (result.shape, result.dtype, result.is_contiguous()) == (images.shape, torch.uint8, True)
    assert torch.equal(images, before)


SHAPES = [(1, 28, 28), (3, 32, 32), (3, 9, 24), (2, 40, 17), (1, 4, 4), (4, 1, 1)]  # (C, H, W)


def coloured(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=seeded(9), dtype=torch.uint8)


@names
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_kept_and_channels_move_alike(name: str, shape: tuple[int, int, int]) -> None:
    images = coloured(20, shape)
    before = images.clone()
    result = AUGMENTATIONS[name](images, seeded(0))
    assert (result.shape, result.dtype, result.is_contiguous()) == (images.shape, torch.uint8, True)
    assert torch.equal(images, before)
    for channel in range(shape[0]):
        alone = AUGMENTATIONS[name](images[:, channel : channel + 1].contiguous(), seeded(0))
        assert torch.equal(alone, result[:, channel : channel + 1])


def test_what_a_seed_does_to_mnists_images_never_changes() -> None:
    result = shift(noise(64), seeded(5))
    assert (
        hashlib.sha256(result.numpy().tobytes()).hexdigest().startswith("2c046bb6c5e89fc9")
    )  # whole pixels: any CPU's


@names
def test_same_generator_state_gives_the_same_batch(name: str) -> None:
    augment = AUGMENTATIONS[name]
    torch.manual_seed(1)
    first = augment(noise(16), seeded(7))
    torch.manual_seed(2)
    assert torch.equal(first, augment(noise(16), seeded(7)))


@names
def test_global_random_state_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    AUGMENTATIONS[name](noise(4), seeded(0))
    assert torch.equal(before, torch.get_rng_state())


@names
def test_empty_images_stay_empty(name: str) -> None:
    assert not AUGMENTATIONS[name](torch.zeros((8, 1, 28, 28), dtype=torch.uint8), seeded(0)).any()


@pytest.mark.parametrize("augment", [shift, affine])
def test_generator_and_image_decide_the_distortion(augment) -> None:
    generator = seeded(0)
    first, second = augment(blob(16), generator), augment(blob(16), generator)
    assert not torch.equal(first, second)
    assert len({bytes(image.flatten().tolist()) for image in first}) > 1


def test_none_is_the_identity() -> None:
    images = noise(3)
    assert none(images, seeded(0)) is images


def test_shift_moves_content_exactly_and_fills_with_zero() -> None:
    images = noise(400)
    moves = set()
    for before, after in zip(images[:, 0], shift(images, seeded(3))[:, 0], strict=True):
        padded = F.pad(before, (SHIFT_PX,) * 4)
        fits = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(padded[y : y + 28, x : x + 28], after)
        ]  # noise: no two moves look alike, and a wrapped pixel would fit none
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) == 25


def test_shift_never_wraps_content_round_the_border() -> None:
    images = torch.zeros((200, 1, 28, 28), dtype=torch.uint8)
    images[:, :, :, 0] = 255  # the left column: it may vanish or move right, but not appear on the right
    assert not shift(images, seeded(0))[:, :, :, SHIFT_PX + 1 :].any()


@pytest.mark.parametrize("shape", [(3, 9, 24), (2, 40, 17), (1, 4, 4)], ids=str)
def test_shift_is_exact_for_any_shape(shape: tuple[int, int, int]) -> None:
    images = coloured(300, shape)
    _, height, width = shape
    moves = set()
    for before, after in zip(images, shift(images, seeded(3)), strict=True):
        padded = F.pad(before, (SHIFT_PX,) * 4)
        fits = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + height, x : x + width], after)
        ]
        assert fits
        moves.add(fits[0])
    assert len(moves) == 25


def test_affine_turns_without_shearing_where_width_and_height_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([1.0, 0, 0, 0, 0])  # 10 degrees, nothing else
    monkeypatch.setattr(torch, "rand", lambda shape, **_: ((draws + 1) / 2)[:, None].expand(shape).clone())
    image = torch.zeros((1, 1, 40, 80), dtype=torch.uint8)
    image[..., 19:21, 10:70] = 255  # a horizontal line
    turned = affine(image, seeded(0))[0, 0].double()
    rows = (turned * torch.arange(40)[:, None]).sum(0)[15:65] / turned.sum(0)[15:65]
    slope = (rows[-1] - rows[0]) / (len(rows) - 1)
    assert abs(slope - math.tan(math.radians(10))) < 0.01


def test_affine_moves_by_pixels_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0, 0, 0, 0.5, -1.0])  # 1 px right, 2 px up
    monkeypatch.setattr(torch, "rand", lambda shape, **_: ((draws + 1) / 2)[:, None].expand(shape).clone())
    images = coloured(2, (3, 16, 64))
    assert torch.equal(affine(images, seeded(0))[:, :, :-2, 1:], images[:, :, 2:, :-1])


def test_elastic_displaces_by_pixels_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 0.5))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.full(shape, 2.0))  # times 0.5 px
    images = coloured(2, (3, 16, 64))
    assert torch.equal(elastic(images, seeded(0))[:, :, :-1, :-1], images[:, :, 1:, 1:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flip_mirrors_about_half_of_the_images(shape: tuple[int, int, int]) -> None:
    images = coloured(400, shape)
    images[..., 0] = 1 + images[..., 0] // 2  # no image is its own mirror image
    images[..., -1] = 255
    before = images.clone()
    result = flip(images, seeded(2))
    assert (result.dtype, result.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(images, before)
    same, mirrored = ((result == other).flatten(1).all(1) for other in (images, images.flip(3)))
    assert (same | mirrored).all()
    if shape[2] > 1:
        assert 160 < mirrored.sum() < 240


@names
def test_flips_come_first_and_draw_nothing_when_they_are_off(name: str) -> None:
    images = coloured(20, (3, 12, 10))
    assert augmentation(name, flipped=False) is AUGMENTATIONS[name]
    generator = seeded(4)
    expected = AUGMENTATIONS[name](flip(images, generator), generator)
    assert torch.equal(augmentation(name, flipped=True)(images, seeded(4)), expected)
    assert not torch.equal(expected, AUGMENTATIONS[name](images, seeded(4)))


def test_affine_keeps_a_centred_blob_near_the_centre_and_of_its_size() -> None:
    result = affine(blob(500), seeded(1))
    centres = centre_px(result)
    assert centres.abs().max() <= SHIFT_PX + 0.05
    assert centres.abs().max() > SHIFT_PX - 0.1  # the whole span is used
    area = result.double().sum((1, 2, 3)) / 255
    assert 64 * 0.9**2 - 1.5 < area.min() < 64 * 0.92**2
    assert 64 * 1.08**2 < area.max() < 64 * 1.1**2 + 1.5


def test_affine_centres_are_drawn_evenly_on_both_sides() -> None:
    assert centre_px(affine(blob(2000), seeded(1))).mean(0).abs().max() < 0.1


def test_affine_follows_its_formula_pixel_by_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0.7, -0.4, 0.9, 0.25, -0.5]).double()
    monkeypatch.setattr(torch, "rand", lambda shape, **_: ((draws + 1) / 2).float()[:, None].expand(shape).clone())
    image = noise(1)
    angle, scale, shear = 0.7 * math.radians(10), 1 - 0.04, 0.09
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    forward = scale * rotation @ torch.tensor([[1, shear], [0, 1]]).double()
    moved_px = torch.tensor([0.5, -1.0]).double()
    padded = F.pad(image[0, 0].double(), (30,) * 4)
    expected = torch.zeros(28, 28)
    for row in range(28):
        for column in range(28):
            source = torch.linalg.solve(forward, torch.tensor([column - 13.5, row - 13.5]).double() - moved_px)
            x, y = (source + 13.5 + 30).tolist()
            left, top = math.floor(x), math.floor(y)
            across, down = x - left, y - top
            corners = padded[top : top + 2, left : left + 2]
            weights = torch.tensor([1 - down, down])[:, None] * torch.tensor([1 - across, across])
            expected[row, column] = (corners * weights).sum()
    result = affine(image, seeded(0))[0, 0].float()
    assert (result - expected).abs().max() <= 0.5 + 1e-2  # rounded to the nearest code


def test_affine_without_distortion_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 0.5))
    assert torch.equal(affine(noise(4), seeded(0)), noise(4))


def test_affine_is_the_same_under_autocast() -> None:
    plain = affine(noise(8), seeded(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(affine(noise(8), seeded(2)), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@names
def test_same_generator_draws_the_same_distortion_on_a_gpu(name: str) -> None:
    on_cpu = AUGMENTATIONS[name](noise(64), seeded(4))
    on_gpu = AUGMENTATIONS[name](noise(64).cuda(), seeded(4))
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= (1 if name == "affine" else 0)
