"""Networks of random integers for tests, without training or torch, and images that reveal exporters' mistakes."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qattrain.integer import IntegerLayer, IntegerModel, Requantization

Images = NDArray[np.uint8]
MAX_BIAS = 2**22 - 1
LOGIT_SCALE = 1 / 3000  # not a number of few digits
SMALL, NANO, LENET = (2, 3, 5), (8, 16, 32), (20, 50, 500)
ODD = (15, 17, 33)  # multiples of nothing, and enough channels for every oddity of `random_model`
GRIDS = [  # every quantizer with every number of bits it allows
    *((quantizer, bits) for quantizer in ("lsq", "affine", "pow2") for bits in range(1, 9)),
    *(("dorefa", bits) for bits in range(2, 9)),
    ("ternary", 2),
    ("binary", 1),
]
# Arguments of `random_model` that together cover what exporters must get right.
KINDS: list[dict[str, Any]] = [
    *({"bits": b, "act_bits": b} for b in (2, 3, 4, 5, 8)),
    {"quantizers": "affine", "bits": (8, 2, 5, 3), "act_bits": (8, 1, 3)},
    {"quantizers": "affine", "bits": 8, "act_bits": 8, "widths": (3, 4, 6)},
    {"quantizers": "ternary", "bits": 2, "act_bits": (8, 2, 1)},
    {"quantizers": "binary", "bits": 1, "act_bits": 1},
    {"quantizers": ("lsq", "binary", "ternary", "affine"), "bits": (8, 1, 2, 3), "act_bits": (8, 1, 5)},
    {"quantizers": "dorefa", "bits": (8, 2, 5, 3), "act_bits": (8, 1, 3)},
    {"classes": 47, "widths": (4, 3, 7)},
    {"classes": 2, "extreme": True},
]


def grid(quantizer: str, bits: int) -> NDArray[np.int64]:
    """All codes a weight can have, as in section 3 of the design."""
    if quantizer == "dorefa" or bits == 1:
        return np.arange(1 - 2**bits, 2**bits, 2)
    if quantizer == "ternary":
        return np.arange(-1, 2)
    return np.arange(2**bits) - (0 if quantizer == "affine" else 2 ** (bits - 1))


def random_images(count: int, seed: int = 0) -> Images:
    """uint8 (count, 1, 28, 28): an empty image, a full one, then noise and patches, which vary after pooling."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 1, 28, 28))
    images[::2] = random.integers(0, 256, (len(images[::2]), 1, 4, 4)).repeat(7, 2).repeat(7, 3)
    images[:2] = np.array([0, 255]).reshape(2, 1, 1, 1)[:count]
    return images.astype(np.uint8)


def random_model(
    quantizers: str | tuple[str, ...] = "lsq",
    bits: int | tuple[int, ...] = 4,
    act_bits: int | tuple[int, ...] = 4,
    widths: tuple[int, int, int] = NANO,
    classes: int = 10,
    zero_point: int | None = None,
    seed: int = 0,
    extreme: bool = False,
) -> IntegerModel:
    """Codes from the whole grid, biases and multipliers that spread each channel's next codes over theirs.

    A tuple has an entry per layer (weights) or hidden layer (activations). zero_point: of affine weights; None: random.
    extreme: only the ends of all ranges. Layers of more than 12 channels have the ends of ranges and a dead channel.
    """
    random, x = np.random.default_rng(seed), random_images(24, seed + 99).astype(np.int64)
    c1, c2, features = widths
    shapes = {"conv1": (c1, 1, 5, 5), "conv2": (c2, c1, 5, 5), "fc1": (features, c2 * 16), "fc2": (classes, features)}
    each = [value if isinstance(value, tuple) else (value,) * 4 for value in (quantizers, bits, act_bits)]
    layers: list[IntegerLayer] = []
    input_max = 255
    for (name, shape), quantizer, b, act in zip(shapes.items(), each[0], each[1], (*each[2][:3], 0), strict=True):
        kind: Literal["conv", "linear"] = "conv" if len(shape) == 4 else "linear"
        all_codes = grid(quantizer, b)
        codes = random.choice(all_codes[[0, -1]] if extreme else all_codes, shape)
        codes.flat[:2] = all_codes[[0, -1]][: codes.size]
        z = 0
        if quantizer == "affine" and b > 1:
            z = int(random.choice(all_codes[[0, -1]] if extreme else all_codes)) if zero_point is None else zero_point
        zeros = np.zeros(shape[0], np.int64)
        layer = IntegerLayer(name, kind, codes, b, quantizer, int(all_codes[0]), z, zeros, input_max, None)
        layer = replace(layer, pool=2 if kind == "conv" else 1)
        x = x.reshape(len(x), -1) if kind == "linear" else x
        layer = _with_columns(layer, layer.accumulate(x).swapaxes(0, 1).reshape(shape[0], -1), act, extreme, random)
        layers.append(layer)
        if layer.requantization:
            x, input_max = layer.requantization.apply(layer.accumulate(x)), layer.requantization.qmax
    return IntegerModel(tuple(layers), LOGIT_SCALE, (1, 28, 28))


def _with_columns(
    layer: IntegerLayer, sums: NDArray[np.int64], act_bits: int, extreme: bool, random: np.random.Generator
) -> IntegerLayer:
    """The layer with bias, multiplier and shift. sums: (D, some). act_bits: 0 for the last layer."""
    count = len(layer.codes)
    # The median of every channel becomes code 0 and the upper tenth is cut off: codes of all sizes occur.
    middle, top = np.quantile(sums, [0.5, 0.9], axis=1)
    bias = random.integers(-9, 10, count) - middle.astype(np.int64)
    factor = (2**act_bits - 1) / np.maximum(top - middle, 1) * random.uniform(0.8, 1, count)
    shift = np.clip(30 - np.ceil(np.log2(np.maximum(factor, 2.0**-32))), 1, 62).astype(np.int64)
    multiplier = (factor * 2.0**shift).astype(np.int64)
    if layer.quantizer == "pow2":
        multiplier = 2 ** np.log2(np.maximum(multiplier, 1)).astype(np.int64)
    if extreme:
        bias, shift = random.choice([-MAX_BIAS, MAX_BIAS], count), random.choice([1, 62], count)
        multiplier = random.choice([0, 2**31 - 1], count)
    elif count > 12:
        bias[3:5] = MAX_BIAS, -MAX_BIAS
        multiplier[:2], shift[:2] = (0, 1), (62, 1)
        multiplier[5:7], shift[5:7] = (2**31 - 1, 2**30), (62, 1)
        if layer.zero_point in layer.grid:
            layer.codes[2], bias[2] = layer.zero_point, 0  # a dead channel
    how = Requantization(multiplier, shift, act_bits) if act_bits else None
    return replace(layer, bias=bias, requantization=how)


def with_layer(model: IntegerModel, index: int, **changes: Any) -> IntegerModel:
    layers = list(model.layers)
    layers[index] = replace(layers[index], **changes)
    return replace(model, layers=tuple(layers))


def with_requantization(model: IntegerModel, index: int, multipliers: list[int], shifts: list[int]) -> IntegerModel:
    """The listed multipliers and shifts in turn, channel by channel."""
    old = model.layers[index].requantization
    assert old is not None
    m, k = (np.resize(np.array(values, np.int64), len(old.shift)) for values in (multipliers, shifts))
    return with_layer(model, index, requantization=Requantization(m, k, old.bits))


def assert_same_model(one: IntegerModel, other: IntegerModel) -> None:
    """Equality of every integer, name and geometry."""
    assert (one.logit_scale, one.input_shape) == (other.logit_scale, other.input_shape)
    assert len(one.layers) == len(other.layers)
    for a, b in zip(one.layers, other.layers, strict=True):
        fields = vars(a).keys() - {"codes", "bias", "requantization"}
        assert {name: getattr(b, name) for name in fields} == {name: getattr(a, name) for name in fields}
        pairs = []
        if isinstance(a, IntegerLayer):
            assert isinstance(b, IntegerLayer)
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
