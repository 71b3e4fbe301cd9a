"""Random distortions of a whole batch at once, from uint8 codes to uint8 codes.

The integer network eats raw pixels, so it must be trained on raw pixels too: results are rounded back to 0..255. All
random numbers come from the CPU generator passed in, even for images on an accelerator, so that a seed draws the same
distortions on every device. There are no flips or crops: a mirrored digit is another character.

Every augmentation takes images, uint8 (B, 1, 28, 28) on any device, contiguous, and returns the same kind of tensor, on
the same device.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qattrain.data.dataset import IMAGE_SIDE

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
    padded = F.pad(images, (SHIFT_PX,) * 4).flatten()  # of (B, 1, 32, 32)
    side, count = IMAGE_SIDE + 2 * SHIFT_PX, torch.arange(max(len(images), IMAGE_SIDE), device=images.device)
    first = (count[: len(images)] * side * side + down * side + right).unsqueeze(1)
    starts = first + count[:IMAGE_SIDE] * side  # (B, 28): where each row of each moved image begins
    rows = padded.as_strided((len(padded) - IMAGE_SIDE + 1, IMAGE_SIDE), (1, 1))  # any 28 pixels in a row, a view
    return rows.index_select(0, starts.flatten()).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)


def affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shears (-0.1..0.1), scales (0.9..1.1), rotates (+-10 degrees) and shifts (+-2 px in x and y) each image.

    Every quantity is uniform and drawn per image. Bilinear, 0 outside, rounded half up to codes.
    """
    return _sampled(images, _inverse_maps(len(images), generator))


def elastic(images: Tensor, generator: torch.Generator) -> Tensor:
    """`affine`, plus a smooth random displacement of every pixel, like a trembling hand.

    The displacements are normal (standard deviation 0.5 px in x and in y) at 7 x 7 points, bicubic in between.
    Source: Simard, Steinkraus, Platt 2003, "Best Practices for Convolutional Neural Networks Applied to Visual Document
    Analysis", section 2; there the field is white noise smoothed by a Gaussian.
    """
    theta = _inverse_maps(len(images), generator)
    points = torch.randn((len(images), 2, ELASTIC_POINTS, ELASTIC_POINTS), generator=generator)
    bases = _bicubic_bases()
    field = bases @ (points * (ELASTIC_PX * 2 / IMAGE_SIDE)) @ bases.T  # (B, 2, 28, 28)
    return _sampled(images, theta, field.permute(0, 2, 3, 1))


@cache
def _bicubic_bases() -> Tensor:
    """(28, 7): the weight of each point for each pixel along an axis; `F.interpolate` itself is ten times slower."""
    points = torch.eye(ELASTIC_POINTS).view(ELASTIC_POINTS, 1, ELASTIC_POINTS, 1)
    return F.interpolate(points, size=(IMAGE_SIDE, 1), mode="bicubic", align_corners=True).view(-1, IMAGE_SIDE).T


def _sampled(images: Tensor, theta: Tensor, field: Tensor | None = None) -> Tensor:
    """Each image resampled by its map (B, 2, 3), displaced by `field` (B, 28, 28, 2) in coordinates -1..1."""
    # Under autocast the grid would come out in bfloat16, which is wrong by whole pixels at the border.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)  # (B, 28, 28, 2)
        grid = grid if field is None else grid + field.to(images.device)
        moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Nothing is negative, so adding a half and truncating is floor(v + 0.5), the project's one rounding.
    return moved.add_(0.5).to(torch.uint8)


AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "shift": shift, "affine": affine, "elastic": elastic}


def _inverse_maps(count: int, generator: torch.Generator) -> Tensor:
    """Where each output pixel of `count` images comes from, at random: float32 (B, 2, 3) for affine_grid.

    The forward map is out = s R K in + t with rotation R, shear K = [[1, k], [0, 1]], scale s, in coordinates that span
    -1..1; affine_grid wants in = K^-1 R^-1 / s (out - t), written out here.
    """
    draws = torch.rand((5, count), generator=generator).mul_(2).sub_(1)  # (5, B) in -1..1
    angle = draws[0] * math.radians(ROTATION_DEG)
    scale = 1 + draws[1] * SCALE_SPAN
    shear = draws[2] * SHEAR_SPAN
    shift_x, shift_y = draws[3:] * (SHIFT_PX * 2 / IMAGE_SIDE)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    xx, xy = cos + shear * sin, sin - shear * cos
    yx, yy = -sin, cos
    x_row = torch.stack((xx, xy, -(xx * shift_x + xy * shift_y)))
    y_row = torch.stack((yx, yy, -(yx * shift_x + yy * shift_y)))
    return torch.stack((x_row, y_row)).permute(2, 0, 1).contiguous()  # (2, 3, B) -> (B, 2, 3)
