"""Random distortions of a whole batch at once, from uint8 codes to uint8 codes.

The integer network eats raw pixels, so it must be trained on raw pixels too: results are rounded back to 0..255. All
random numbers come from the CPU generator passed in, even for images on an accelerator, so that a seed draws the same
distortions on every device. Mirroring is a setting of its own, off by default: a mirrored digit is another character.

Every augmentation takes images, uint8 (B, C, H, W) on any device, contiguous, and returns the same kind of tensor, on
the same device. All channels of an image are moved alike. Distances are in pixels, whatever the size of the image.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_PX = 2
ROTATION_DEG = 10.0
SCALE_SPAN = 0.1
SHEAR_SPAN = 0.1
ELASTIC_PX = 0.5
ELASTIC_POINTS = 7

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def none(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """The images themselves; draws nothing from the generator."""
    return images


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by whole pixels, -2..2 in x and in y, all 25 moves equally likely; uncovered pixels are 0."""
    down, right = torch.randint(0, 2 * SHIFT_PX + 1, (2, len(images)), generator=generator).to(images.device)
    batch, channels, height, width = images.shape
    padded = F.pad(images, (SHIFT_PX,) * 4).flatten()  # of (B, C, H + 4, W + 4)
    row, plane = width + 2 * SHIFT_PX, (height + 2 * SHIFT_PX) * (width + 2 * SHIFT_PX)
    count = torch.arange(max(batch * channels, height), device=images.device)
    moved = (down * row + right).view(batch, 1).expand(batch, channels).reshape(-1)  # (B C)
    first = (count[: batch * channels] * plane + moved).unsqueeze(1)
    starts = first + count[:height] * row  # (B C, H): where each row of each moved image begins
    rows = padded.as_strided((len(padded) - width + 1, width), (1, 1))  # any W pixels in a row, a view
    return rows.index_select(0, starts.flatten()).view(images.shape)


def affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shears (-0.1..0.1), scales (0.9..1.1), rotates (+-10 degrees) and shifts (+-2 px in x and y) each image.

    Every quantity is uniform and drawn per image. Bilinear, 0 outside, rounded half up to codes.
    """
    return _sampled(images, _inverse_maps(images, generator))


def elastic(images: Tensor, generator: torch.Generator) -> Tensor:
    """`affine`, plus a smooth random displacement of every pixel, like a trembling hand.

    The displacements are normal (standard deviation 0.5 px in x and in y) at 7 x 7 points, bicubic in between.
    Source: Simard, Steinkraus, Platt 2003, "Best Practices for Convolutional Neural Networks Applied to Visual Document
    Analysis", section 2; there the field is white noise smoothed by a Gaussian.
    """
    theta = _inverse_maps(images, generator)
    batch, _, height, width = images.shape
    points = torch.randn((batch, 2, ELASTIC_POINTS, ELASTIC_POINTS), generator=generator)
    points *= torch.tensor([ELASTIC_PX * 2 / width, ELASTIC_PX * 2 / height]).view(2, 1, 1)  # coordinates span -1..1
    field = _bicubic_bases(height) @ points @ _bicubic_bases(width).T  # (B, 2, H, W)
    return _sampled(images, theta, field.permute(0, 2, 3, 1))


@cache
def _bicubic_bases(pixels: int) -> Tensor:
    """(pixels, 7): the weight of each point for each pixel of an axis; `F.interpolate` itself is ten times slower."""
    points = torch.eye(ELASTIC_POINTS).view(ELASTIC_POINTS, 1, ELASTIC_POINTS, 1)
    return F.interpolate(points, size=(pixels, 1), mode="bicubic", align_corners=True).view(-1, pixels).T


def _sampled(images: Tensor, theta: Tensor, field: Tensor | None = None) -> Tensor:
    """Each image resampled by its map (B, 2, 3), displaced by `field` (B, H, W, 2) in coordinates -1..1."""
    # Under autocast the grid would come out in bfloat16, which is wrong by whole pixels at the border.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)  # (B, H, W, 2)
        grid = grid if field is None else grid + field.to(images.device)
        moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Nothing is negative, so adding a half and truncating is floor(v + 0.5), the project's one rounding.
    return moved.add_(0.5).to(torch.uint8)


AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "shift": shift, "affine": affine, "elastic": elastic}


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left-right with probability one half."""
    mirrored = torch.randint(0, 2, (len(images), 1, 1, 1), generator=generator).bool().to(images.device)
    return torch.where(mirrored, images.flip(3), images)


def augmentation(name: str, flipped: bool) -> Augmentation:
    """The augmentation called `name`, a key of AUGMENTATIONS, of images that `flip` may have mirrored before."""
    augment = AUGMENTATIONS[name]
    if not flipped:
        return augment
    return lambda images, generator: augment(flip(images, generator), generator)


def _inverse_maps(images: Tensor, generator: torch.Generator) -> Tensor:
    """Where each output pixel of each image comes from, at random: float32 (B, 2, 3) for affine_grid.

    The forward map is out = s R K in + t with rotation R, shear K = [[1, k], [0, 1]], scale s, in coordinates that span
    -1..1; affine_grid wants in = K^-1 R^-1 / s (out - t), written out here. What mixes x and y also holds the ratio of
    width and height, since -1..1 is H pixels down and W across.
    """
    batch, _, height, width = images.shape
    draws = torch.rand((5, batch), generator=generator).mul_(2).sub_(1)  # (5, B) in -1..1
    angle = draws[0] * math.radians(ROTATION_DEG)
    scale = 1 + draws[1] * SCALE_SPAN
    shear = draws[2] * SHEAR_SPAN
    shift_x, shift_y = draws[3] * (SHIFT_PX * 2 / width), draws[4] * (SHIFT_PX * 2 / height)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    xx, xy = cos + shear * sin, (sin - shear * cos) * (height / width)
    yx, yy = -sin * (width / height), cos
    x_row = torch.stack((xx, xy, -(xx * shift_x + xy * shift_y)))
    y_row = torch.stack((yx, yy, -(yx * shift_x + yy * shift_y)))
    return torch.stack((x_row, y_row)).permute(2, 0, 1).contiguous()  # (2, 3, B) -> (B, 2, 3)
