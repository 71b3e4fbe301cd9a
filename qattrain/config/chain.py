"""The chain: a network as one line of text, what its words mean, and what shapes they have on images of one size.

    conv 20 5x5, pool 2, conv 50 5x5, pool 2, fc 500, fc                    the preset `lenet`

    conv D KxK [stride S] [pad P] [groups G] [bn]    convolution with D output channels; stride 1, pad 0, groups 1
    dw KxK [stride S] [pad P] [bn]                   depthwise convolution: one kernel per channel (groups = channels)
    pool K                                           maximum over K x K windows, stride K; follows conv or dw
    avgpool                                          average over the whole map
    fc D [bn]                                        fully connected layer with D outputs
    fc                                               the last layer: one output per class

Options come in any order. Where a search is to find a number of outputs there is a `?`, as in `conv ? 3x3`.
A ReLU with activation codes comes after every product but the last. Names count by kind:
conv1, dw1, fc1 for products, act1, act2, ... for their ReLUs, avg1 for averages. Chains only: no branches, no sums.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NoReturn

from qattrain.errors import ConfigError, did_you_mean, shortened

PRESETS: dict[str, str] = {
    "lenet": "conv 20 5x5, pool 2, conv 50 5x5, pool 2, fc 500, fc",
    "lenet-small": "conv 16 5x5, pool 2, conv 24 5x5, pool 2, fc 32, fc",
    "lenet-nano": "conv 8 5x5, pool 2, conv 16 5x5, pool 2, fc 32, fc",
    "pico": "conv 1 2x2 stride 2 bn, conv 12 5x5 bn, pool 2, conv 24 3x3 bn, fc",
    "ds-cnn": "conv 6 5x5 stride 2 bn, dw 3x3 bn, conv 24 1x1 bn, pool 2, dw 3x3 bn, conv 40 1x1 bn, fc",
}

Shape = tuple[int, int, int]  # channels, height, width
MNIST_SHAPE: Shape = (1, 28, 28)  # of the images that the presets are made for
Kind = Literal["conv", "dw", "avg", "fc"]

OPTIONS = {"conv": ("stride", "pad", "groups", "bn"), "dw": ("stride", "pad", "bn"), "fc": ("bn",)}
EXAMPLES = {
    "conv": "conv 16 3x3 stride 2 pad 1 bn",
    "dw": "dw 3x3 stride 2 bn",
    "pool": "pool 2",
    "avgpool": "avgpool",
    "fc": "fc 100, or a bare fc at the end",
}
EXAMPLE = "conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 16 1x1 bn, avgpool, fc"
LARGEST = {"width": 4096, "kernel": 31, "stride": 31, "pool": 31}
MAX_LAYERS = 64
MOST_WEIGHTS = 2**25  # of a layer
MOST_SUMS = 2**20  # of a layer for one image, before pooling: training keeps those of a whole batch


@dataclass(frozen=True)
class Layer:
    """One layer of a chain. width: outputs; None: as many as channels (dw, avg) or classes (the last fc).

    activation: name of the activation codes it ends with; None for the last layer. pool: side of the max-pooling
    windows after it, 1 for none.
    """

    kind: Kind
    name: str
    activation: str | None
    width: int | None = None
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bn: bool = False
    pool: int = 1


@dataclass(frozen=True)
class PlacedLayer:
    """A layer on images of one size. inputs, outputs: (C, H, W), or (C, 1, 1) in fully connected layers.

    outputs: after pooling. weight_shape: as in torch; () for an average. macs: multiply-accumulates for one image.
    """

    layer: Layer
    inputs: Shape
    outputs: Shape
    weight_shape: tuple[int, ...]
    macs: int


@dataclass(frozen=True)
class Chain:
    """The layers in order; see the top of this file for the grammar."""

    layers: tuple[Layer, ...]

    @property
    def weight_layers(self) -> tuple[str, ...]:
        """Names of all layers with weights."""
        return tuple(layer.name for layer in self.layers if layer.kind != "avg")

    @property
    def activation_layers(self) -> tuple[str, ...]:
        """Names of all activation codes, averages included."""
        return tuple(layer.activation for layer in self.layers if layer.activation is not None)

    @property
    def average_layers(self) -> tuple[str, ...]:
        """Names of all averages."""
        return tuple(layer.name for layer in self.layers if layer.kind == "avg")

    @property
    def line(self) -> str:
        """The chain in its one canonical form."""
        return ", ".join(_text(layer) for layer in self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers that follow `conv` and `fc`."""
        return tuple(layer.width for layer in self.layers if layer.width is not None)

    def with_widths(self, widths: tuple[int, ...]) -> "Chain":
        """The same chain with other numbers after `conv` and `fc`. Raises ConfigError if there are more or fewer."""
        if len(widths) != len(self.widths):
            raise ConfigError(
                f"model.widths = {list(widths)}: '{self.line}' has {len(self.widths)} widths, {list(self.widths)}; "
                "give as many"
            )
        new = iter(widths)
        return Chain(tuple(layer if layer.width is None else replace(layer, width=next(new)) for layer in self.layers))

    def place(self, shape: Shape, classes: int) -> list[PlacedLayer]:
        """Every layer on images of `shape`. Raises ConfigError, naming the layer, if they do not fit."""
        placed, (channels, height, width) = [], shape
        for layer in self.layers:
            inputs = (channels, height, width)
            if layer.kind == "fc":
                features = math.prod(inputs)
                outputs = (layer.width or classes, 1, 1)
                placed.append(PlacedLayer(layer, inputs, outputs, (outputs[0], features), outputs[0] * features))
            elif layer.kind == "avg":
                outputs = (channels, 1, 1)
                placed.append(PlacedLayer(layer, inputs, outputs, (), 0))
            else:
                placed.append(_placed_conv(layer, inputs))
                outputs = placed[-1].outputs
            _check_size(placed[-1])
            channels, height, width = outputs
        return placed


def output_side(side: int, kernel: int, stride: int, padding: int) -> int:
    """Rows (or columns) of a convolution's map: windows that fit into `side` pixels and their padding."""
    return (side + 2 * padding - kernel) // stride + 1


def _placed_conv(layer: Layer, inputs: Shape) -> PlacedLayer:
    channels, *sides = inputs
    groups = channels if layer.kind == "dw" else layer.groups
    width = channels if layer.width is None else layer.width
    if channels % groups or width % groups:
        raise ConfigError(
            f"--model: {layer.name} has groups {groups}, but {channels} input and {width} output channels; "
            "groups must divide both"
        )
    rows, columns = (output_side(side, layer.kernel, layer.stride, layer.padding) for side in sides)
    at = f"--model: {layer.name} on a map of {sides[0]}x{sides[1]}:"
    if min(rows, columns) < 1:
        raise ConfigError(
            f"{at} its {layer.kernel}x{layer.kernel} kernel does not fit; use a smaller one, pad, or larger images"
        )
    if min(rows, columns) < layer.pool:
        raise ConfigError(f"{at} pool {layer.pool} does not fit its output of {rows}x{columns}; use a smaller one")
    weight_shape = (width, channels // groups, layer.kernel, layer.kernel)
    outputs = (width, rows // layer.pool, columns // layer.pool)
    return PlacedLayer(layer, inputs, outputs, weight_shape, rows * columns * math.prod(weight_shape))


def _check_size(placed: PlacedLayer) -> None:
    """Raises ConfigError if a layer is far larger than what this project is for, and than most memories."""
    weights = math.prod(placed.weight_shape)
    sums = placed.macs // (weights // placed.weight_shape[0]) if placed.weight_shape else 0
    for count, most, what in ((weights, MOST_WEIGHTS, "weights"), (sums, MOST_SUMS, "outputs before pooling")):
        if count > most:
            raise ConfigError(
                f"--model: {placed.layer.name} has {count:,} {what}; allowed: at most {most:,}; use fewer outputs, "
                "or a stride, pool or avgpool before it"
            )


def _text(layer: Layer) -> str:
    words = {"avg": "avgpool"}.get(layer.kind, layer.kind)
    if layer.width is not None:
        words += f" {layer.width}"
    if layer.kind in ("conv", "dw"):
        words += f" {layer.kernel}x{layer.kernel}"
    for option, value, default in (("stride", layer.stride, 1), ("pad", layer.padding, 0), ("groups", layer.groups, 1)):
        words += f" {option} {value}" if value != default else ""
    words += " bn" if layer.bn else ""
    return words + (f", pool {layer.pool}" if layer.pool > 1 else "")


@cache
def parse_chain(text: str) -> Chain:
    """The chain that `text` describes: a preset's name, or the line itself. Raises ConfigError."""
    if text in PRESETS:
        return parse_chain(PRESETS[text])
    parts = [" ".join(part.split()) for part in text.split(",")]
    if not is_chain(text):
        raise ConfigError(
            f"model {shortened(repr(text))}: {did_you_mean(text, PRESETS)}allowed: {', '.join(PRESETS)}, or a chain of "
            f"layers such as '{EXAMPLE}'"
        )
    if not parts[-1]:
        raise ConfigError(
            f"--model: '{shortened(text)}' ends in a comma; leave it out, or write another layer after it"
        )
    if len(parts) > MAX_LAYERS:
        raise ConfigError(f"--model: a chain of {len(parts)} parts; allowed: at most {MAX_LAYERS}")
    layers: list[Layer] = []
    names: Counter[str] = Counter()
    for number, part in enumerate(parts, start=1):
        _add(layers, names, _Part(part, number, is_last=number == len(parts)))
    return Chain(tuple(layers))


OPEN = "?"


@dataclass(frozen=True)
class OpenChain:
    """A chain of which some widths are open. chain: with 1 in these places. places: their positions in its `widths`."""

    chain: Chain
    places: tuple[int, ...]

    def filled(self, widths: Sequence[int]) -> Chain:
        """The chain with these widths in the open places."""
        new = dict(zip(self.places, widths, strict=True))
        return self.chain.with_widths(tuple(new.get(place, old) for place, old in enumerate(self.chain.widths)))

    @property
    def line(self) -> str:
        """The chain with its open places."""
        with_marks = self.chain.with_widths(
            tuple(-1 if place in self.places else old for place, old in enumerate(self.chain.widths))
        )
        return with_marks.line.replace("-1", OPEN)


def parse_open_chain(text: str) -> OpenChain:
    """A chain with `?` for some numbers after conv and fc, or a preset, of which all are open. Raises ConfigError."""
    if text in PRESETS:
        chain = parse_chain(text)
        return OpenChain(chain, tuple(range(len(chain.widths))))
    parts, places = [part.split() for part in text.split(",")], []
    with_width = [words for words in parts if len(words) > 1 and words[0] in ("conv", "fc")]
    for place, words in enumerate(with_width):
        if words[1] == OPEN:
            words[1] = "1"
            places.append(place)
    for number, words in enumerate(parts, start=1):
        if OPEN in words:
            _Part(" ".join(words), number, is_last=False).fail(
                f"a '{OPEN}' stands for a number of outputs, right after conv or fc", "conv ? 3x3 bn"
            )
    chain = parse_chain(", ".join(map(" ".join, parts)))
    if not places:
        raise ConfigError(
            f"--model '{shortened(text)}' has no open place; write ? for each number of outputs to be found, for "
            "example: conv ? 5x5 bn, pool 2, fc"
        )
    if any(layer.groups > 1 for layer in chain.layers):
        raise ConfigError(
            f"--model '{shortened(text)}': groups must divide the numbers of channels, so they cannot stand in a chain "
            "with open places; use dw, or leave groups out"
        )
    return OpenChain(chain, tuple(places))


def is_chain(text: str) -> bool:
    """Whether `text` is meant as a chain: it begins with one of the grammar's words."""
    return text.replace(",", " ").split()[:1] in [[word] for word in EXAMPLES]


def canonical_name(text: str) -> str:
    """A preset's name as it is, a chain in its one canonical form. Raises ConfigError."""
    return text if text in PRESETS else parse_chain(text).line


@dataclass(frozen=True)
class _Part:
    """The words between two commas."""

    text: str
    number: int
    is_last: bool

    @property
    def words(self) -> list[str]:
        return self.text.split()

    def fail(self, expected: str, example: str | None = None) -> NoReturn:
        """Raises ConfigError: where it is, what was expected, an example."""
        example = example or EXAMPLES.get(self.words[0] if self.words else "", EXAMPLE)
        raise ConfigError(
            f"--model: part {self.number}, '{shortened(self.text)}': {shortened(expected)}; for example: {example}"
        )

    def count(self, word: str, what: str, smallest: int, largest: int) -> int:
        """`word` as a number."""
        if not word.isdecimal() or len(word) > 9 or not smallest <= int(word) <= largest:
            self.fail(f"'{word}' is not {what}, a whole number from {smallest} to {largest}")
        return int(word)


def _add(layers: list[Layer], names: Counter[str], part: _Part) -> None:
    """Appends what `part` says to `layers`, or to the last of them if it is a pooling."""
    word, *rest = part.words or [""]
    on_map = not layers or layers[-1].kind != "fc"
    if word not in EXAMPLES:
        hint = did_you_mean(word, EXAMPLES)
        part.fail(f"{hint}expected one of {', '.join(EXAMPLES)}" + (" after the comma" if not word else ""))
    if part.is_last and (word != "fc" or rest):
        part.fail("a chain ends in a bare fc, as wide as there are classes", EXAMPLE)
    if word != "fc" and not on_map:
        part.fail(f"{word} needs a map of pixels, but comes after fc")
    if word == "pool":
        if not layers or layers[-1].kind not in ("conv", "dw"):
            part.fail("pool follows conv or dw")
        if len(rest) != 1:
            part.fail("expected one number, the side of the windows")
        pool = layers[-1].pool * part.count(rest[0], "a side", 1, LARGEST["pool"])
        if pool > LARGEST["pool"]:
            part.fail(f"'{rest[0]}' makes windows of {pool}; allowed: at most {LARGEST['pool']}")
        layers[-1] = replace(layers[-1], pool=pool)
        return
    kind: Kind = {"conv": "conv", "dw": "dw", "avgpool": "avg"}.get(word, "fc")  # type: ignore[assignment]
    names[kind] += 1
    name = f"{kind}{names[kind]}"
    if kind == "avg":
        if rest:
            part.fail("avgpool has no options")
        layers.append(Layer(kind, name, name))
        return
    if part.is_last:
        layers.append(Layer(kind, name, None))
        return
    names["act"] += 1
    layers.append(_product(kind, name, f"act{names['act']}", rest, part))


def _product(kind: Kind, name: str, activation: str, rest: list[str], part: _Part) -> Layer:
    """A hidden conv, dw or fc from the words after its own."""
    width = None
    if kind != "dw":
        if not rest:
            part.fail(f"expected the number of outputs after {kind}")
        width, rest = part.count(rest[0], "a number of outputs", 1, LARGEST["width"]), rest[1:]
    layer = Layer(kind, name, activation, width)
    if kind != "fc":
        match = re.fullmatch(r"(\d+)x(\d+)", rest[0]) if rest else None
        if match is None or match[1] != match[2]:
            part.fail("expected a square kernel such as 3x3" + (f", found '{rest[0]}'" if rest else ""))
        layer, rest = replace(layer, kernel=part.count(match[1], "a kernel's side", 1, LARGEST["kernel"])), rest[1:]
    seen: set[str] = set()
    while rest:
        option, rest = rest[0], rest[1:]
        if option not in OPTIONS[kind]:
            hint, allowed = did_you_mean(option, OPTIONS[kind]), ", ".join(OPTIONS[kind])
            part.fail(f"'{option}' is no option of {kind}; {hint}allowed: {allowed}")
        if option in seen:
            part.fail(f"{option} is given twice")
        seen.add(option)
        if option == "bn":
            layer = replace(layer, bn=True)
            continue
        if not rest:
            part.fail(f"expected a number after {option}")
        limits = {"stride": (1, LARGEST["stride"]), "pad": (0, layer.kernel - 1), "groups": (1, LARGEST["width"])}
        value, rest = part.count(rest[0], f"a {option} here", *limits[option]), rest[1:]
        layer = replace(layer, **{"padding" if option == "pad" else option: value})  # type: ignore[arg-type]
    return layer
