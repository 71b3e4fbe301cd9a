"""Networks of random integers, calibrated so that their codes vary, and images that tell exporters' mistakes."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qattrain.integer import IntegerLayer, IntegerModel, Requantization

Images = NDArray[np.uint8]
NANO, LENET = (8, 16, 32), (20, 50, 500)
GRID = [  # every quantizer at every width it allows
    *((quantizer, bits) for quantizer in ("lsq", "affine", "pow2") for bits in range(1, 9)),
    *(("dorefa", bits) for bits in range(2, 9)),
    ("ternary", 2),
    ("binary", 1),
]


def noise(count: int, seed: int = 0) -> Images:
    """Noise, patches (which vary after pooling, as noise hardly does), an empty image and a full one."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (count // 2, 1, 4, 4)).repeat(7, 2).repeat(7, 3)
    images = np.concatenate([rng.integers(0, 256, (count - len(patches), 1, 28, 28)), patches]).astype(np.uint8)
    images[0], images[-1] = 0, 255
    return images


def weight_grid(quantizer: str, bits: int) -> NDArray[np.int64]:
    """All codes a weight can have (DESIGN section 3)."""
    if quantizer == "dorefa" or bits == 1:
        return np.arange(1 - 2**bits, 2**bits, 2)
    if quantizer == "ternary":
        return np.arange(-1, 2)
    return np.arange(2**bits) - (0 if quantizer == "affine" else 2 ** (bits - 1))


def random_model(
    quantizers: str | tuple[str, ...] = "lsq",
    bits: int | tuple[int, ...] = 4,
    act_bits: int | tuple[int, ...] = 4,
    widths: tuple[int, int, int] = NANO,
    classes: int = 10,
    zero_point: int | None = None,
    seed: int = 0,
) -> IntegerModel:
    """Codes over the whole grid; per channel, biases and multipliers that spread the next codes over theirs.

    A tuple has an entry per layer (weights) or hidden layer (activations). zero_point: of affine weights; None: random.
    """
    rng, x = np.random.default_rng(seed), noise(12, seed).astype(np.int64)
    c1, c2, features = widths
    shapes = {"conv1": (c1, 1, 5, 5), "conv2": (c2, c1, 5, 5), "fc1": (features, c2 * 16), "fc2": (classes, features)}
    each_quantizer = quantizers if isinstance(quantizers, tuple) else (quantizers,) * 4
    each_bits = bits if isinstance(bits, tuple) else (bits,) * 4
    each_act = act_bits if isinstance(act_bits, tuple) else (act_bits,) * 3
    layers: list[IntegerLayer] = []
    for (name, shape), quantizer, b, act in zip(shapes.items(), each_quantizer, each_bits, (*each_act, 0), strict=True):
        kind: Literal["conv", "linear"] = "conv" if len(shape) == 4 else "linear"
        z = 0
        if quantizer == "affine" and b > 1:
            z = int(rng.integers(2**b)) if zero_point is None else zero_point
        grid = weight_grid(quantizer, b)
        codes = rng.choice(grid, shape)
        input_max = layers[-1].requantization.qmax if layers and layers[-1].requantization else 255
        layer = IntegerLayer(
            name, kind, codes, b, quantizer, int(grid[0]), z, np.zeros(shape[0], np.int64), input_max, None
        )
        x = x.reshape(len(x), -1) if kind == "linear" else x
        sums = layer.accumulate(x).swapaxes(0, 1).reshape(shape[0], -1)
        # The middle of the sums becomes about 0: one half of them is cut off, as ReLU does.
        bias = -np.floor(np.median(sums, 1)).astype(np.int64) + rng.integers(-5, 6, shape[0])
        layer = replace(layer, bias=bias)
        if act:
            factors = (2**act - 1) / np.maximum(2 * sums.std(1), 1) * rng.uniform(0.8, 2, shape[0])
            shifts = np.minimum(30 - np.floor(np.log2(factors)).astype(np.int64), 62)
            how = Requantization(np.floor(factors * 2.0**shifts).astype(np.int64), shifts, act)
            layer = replace(layer, requantization=how)
            x = how.apply(layer.accumulate(x))
        layers.append(layer)
    return IntegerModel(tuple(layers), 2.0**-13)


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
