"""Networks of random integers for tests: no training, no torch, every number of the design's ranges possible."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qattrain.integer import IntegerLayer, IntegerModel, Requantization

MAX_BIAS = 2**22 - 1
LOGIT_SCALE = 1 / 3000  # not a number of few digits

# Arguments of `random_model` that together cover what exporters must get right.
KINDS: list[dict[str, Any]] = [
    *({"bits": (b,) * 4, "act_bits": (b,) * 3} for b in (2, 3, 4, 5, 8)),
    {"quantizers": ("affine",) * 4, "bits": (8, 2, 5, 3), "act_bits": (8, 1, 3)},
    {"quantizers": ("affine",) * 4, "bits": (8,) * 4, "act_bits": (8,) * 3, "widths": (3, 4, 6)},
    {"quantizers": ("ternary",) * 4, "bits": (2,) * 4, "act_bits": (8, 2, 1)},
    {"quantizers": ("binary",) * 4, "bits": (1,) * 4, "act_bits": (1, 1, 1)},
    {"quantizers": ("lsq", "binary", "ternary", "affine"), "bits": (8, 1, 2, 3), "act_bits": (8, 1, 5)},
    {"quantizers": ("dorefa",) * 4, "bits": (8, 2, 5, 3), "act_bits": (8, 1, 3)},
    {"classes": 47, "widths": (4, 3, 7)},
    {"classes": 2, "extreme": True},
]


def grid(quantizer: str, bits: int) -> NDArray[np.int64]:
    """All codes of that grid, as in section 3 of the design."""
    if quantizer in ("binary", "dorefa"):
        return np.arange(1 - 2**bits, 2**bits, 2)
    if quantizer == "ternary":
        return np.array([-1, 0, 1])
    low = 0 if quantizer == "affine" else -(2 ** (bits - 1))
    return np.arange(low, low + 2**bits)


def random_model(
    seed: int = 0,
    widths: tuple[int, int, int] = (2, 3, 5),
    classes: int = 10,
    quantizers: tuple[str, str, str, str] = ("lsq",) * 4,
    bits: tuple[int, int, int, int] = (4,) * 4,
    act_bits: tuple[int, int, int] = (4,) * 3,
    extreme: bool = False,
) -> IntegerModel:
    """Codes drawn from the whole grid, multipliers so that the next codes vary. extreme: only the ends of ranges."""
    random = np.random.default_rng(seed)
    c1, c2, features = widths
    shapes: list[tuple[int, ...]] = [(c1, 1, 5, 5), (c2, c1, 5, 5), (features, 16 * c2), (classes, features)]
    layers, input_max = [], 255
    for index, shape in enumerate(shapes):
        codes = grid(quantizers[index], bits[index])
        weight = random.choice(codes[[0, -1]] if extreme else codes, shape)
        zero_point = 0
        if quantizers[index] == "affine":
            zero_point = int(random.choice(codes[[0, -1]]) if extreme else random.choice(codes[len(codes) // 3 :][:2]))
        bias = random.choice([-MAX_BIAS, MAX_BIAS], shape[0]) if extreme else random.integers(-500, 500, shape[0])
        requantization = None
        if index < 3:
            shift = random.choice([1, 62], shape[0]) if extreme else random.integers(20, 40, shape[0])
            # Half of a typical sum, spread over the codes.
            spread = np.abs(weight - zero_point).reshape(shape[0], -1).sum(1) * input_max / 8 + 1
            usual = np.minimum(2.0**shift * 2 ** act_bits[index] / spread, 2**31 - 1)
            multiplier = random.choice([0, 2**31 - 1], shape[0]) if extreme else usual.astype(np.int64)
            requantization = Requantization(multiplier.astype(np.int64), shift.astype(np.int64), act_bits[index])
        kind: Any = "conv" if index < 2 else "linear"
        name = ("conv1", "conv2", "fc1", "fc2")[index]
        layer = IntegerLayer(
            name,
            kind,
            weight.astype(np.int64),
            bits[index],
            quantizers[index],
            int(codes[0]),
            zero_point,
            bias.astype(np.int64),
            input_max,
            requantization,
        )
        layers.append(layer)
        input_max = 2 ** act_bits[index] - 1 if index < 3 else 0
    return IntegerModel(tuple(layers), LOGIT_SCALE)


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (count, 1, 28, 28); the first two are all 0 and all 255."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)  # vary after pooling, unlike white noise
    images = patches.repeat(7, 2).repeat(7, 3)
    images[:2] = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)[:count]
    return images


def assert_same_model(one: IntegerModel, other: IntegerModel) -> None:
    """Equality of every integer and name."""
    assert one.logit_scale == other.logit_scale
    assert len(one.layers) == len(other.layers)
    for a, b in zip(one.layers, other.layers, strict=True):
        for field in ("name", "kind", "bits", "quantizer", "zero_point", "input_max"):
            assert getattr(a, field) == getattr(b, field), (a.name, field)
        pairs = [(a.codes, b.codes), (a.bias, b.bias)]
        if a.requantization is not None:
            assert b.requantization is not None
            assert a.requantization.bits == b.requantization.bits
            pairs.append((a.requantization.multiplier, b.requantization.multiplier))
            pairs.append((a.requantization.shift, b.requantization.shift))
        else:
            assert b.requantization is None
        for mine, theirs in pairs:
            assert mine.dtype == theirs.dtype == np.int64
            assert np.array_equal(mine, theirs), a.name
