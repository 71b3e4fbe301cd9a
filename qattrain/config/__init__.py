"""The whole experiment as frozen pydantic models: TOML in, JSON out, every default defined here and nowhere else.

`qattrain.training.run.resolve` replaces every `auto` before training. A run records only these settled values, so
resuming and comparing never guess again. Names of quantizers, datasets and the like are plain strings here: the tables
that define them are beside the code they name, and names are checked when the experiment is resolved.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qattrain.config.chain import MAX_LAYERS, MOST_WEIGHTS, PRESETS, Chain, canonical_name, parse_chain
from qattrain.errors import ConfigError, did_you_mean, nearest, shortened

COMMAND_LINE = "configuration"  # the source of values that come from no file
FLOAT_BITS = 32  # "32 bits" means: not quantized
AVERAGE_BITS = 8  # of the codes after an average, unless `layer_bits` names it
# Beyond what anybody needs, and far below where memory, threads or 64-bit numbers end.
MOST_BATCH, MOST_IMAGES, MOST_THREADS = 1_000_000, 1_000_000_000, 1024
MOST_EPOCHS = 20_000  # each is a record in the run's checkpoint

Auto = Literal["auto"]


def _check_bits(bits: int) -> int:
    if not (1 <= bits <= 8 or bits == FLOAT_BITS):
        raise ValueError(f"allowed: 1 to 8, or {FLOAT_BITS} for float")
    return bits


Bits = Annotated[int, AfterValidator(_check_bits)]


class StrictModel(BaseModel):
    """Values that cannot change, of exactly these types, and no others beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(StrictModel):
    """The network. `name` is a preset's or a chain (`qattrain.config.chain`); `widths` replaces the numbers after its
    conv and fc, in order; `dropout` is of the last hidden layer's outputs, in training.
    """

    name: str = "lenet"
    widths: Annotated[tuple[int, ...], Field(strict=False, min_length=1, max_length=MAX_LAYERS)] | None = None
    init: str = "kaiming"
    ops: Literal["torch", "explicit"] = "torch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("name")
    @classmethod
    def _canonical(cls, name: str) -> str:
        return canonical_name(name)

    @field_validator("widths")
    @classmethod
    def _positive_widths(cls, widths: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if widths is not None and not (min(widths) >= 1 and max(widths) <= MOST_WEIGHTS):
            raise ValueError(
                f"allowed: whole numbers of at least 1, and at most {MOST_WEIGHTS}, one for each conv and fc with a "
                "number"
            )
        return widths

    @property
    def chain(self) -> Chain:
        """The layers. Raises ConfigError if `widths` has another count than the chain."""
        chain = parse_chain(self.name)
        return chain if self.widths is None else chain.with_widths(self.widths)

    @property
    def is_preset(self) -> bool:
        """Whether `name` is a preset's, not a chain."""
        return self.name in PRESETS


def model_label(model: ModelConfig) -> str:
    """A short name: the preset's, with its widths if they are others, as in `lenet-8-16-64`; or `chain-<8 hex digits>`,
    from the SHA-256 of the chain's line.
    """
    if not model.is_preset:
        return chain_label(model.chain.line)
    widths = model.chain.widths
    return "-".join([model.name, *(map(str, widths) if widths != parse_chain(model.name).widths else [])])


def chain_label(line: str) -> str:
    """`chain-<8 hex digits>` for a chain's canonical line."""
    return f"chain-{hashlib.sha256(line.encode()).hexdigest()[:8]}"


class QuantConfig(StrictModel):
    """Bit widths and the quantizer. None means: the quantizer's default; `n` is pow2's exponent for weights."""

    quantizer: str = "lsq"
    bits: Bits | None = None
    act_bits: Bits | None = None
    layer_bits: dict[str, int] = {}
    surrogate: str = "clipped"
    n: Annotated[int, Field(ge=-8, le=20)] | None = None

    @field_validator("layer_bits")
    @classmethod
    def _allowed_bits(cls, layer_bits: dict[str, int]) -> dict[str, int]:
        for layer, bits in layer_bits.items():
            try:
                _check_bits(bits)
            except ValueError as error:
                raise ValueError(f"{layer}={bits}; {error}") from None
        return layer_bits


def bits_by_layer(quant: QuantConfig, chain: Chain) -> dict[str, int]:
    """Bits of every layer's weights and of every activation, exemptions included. quant: settled (no bits are None).

    Raises ConfigError if an exemption names no layer of the chain.
    """
    assert quant.bits is not None, quant
    assert quant.act_bits is not None, quant
    check_layer_bits(quant, chain)
    asked = dict.fromkeys(chain.weight_layers, quant.bits) | dict.fromkeys(chain.activation_layers, quant.act_bits)
    if quant.act_bits != FLOAT_BITS:
        asked |= dict.fromkeys(chain.average_layers, AVERAGE_BITS)
    return asked | quant.layer_bits


def check_layer_bits(quant: QuantConfig, chain: Chain) -> None:
    """Raises ConfigError if `quant.layer_bits` names no layer of the chain."""
    known = chain.weight_layers + chain.activation_layers
    for layer in quant.layer_bits:
        if layer not in known:
            hint = did_you_mean(layer, known)
            raise ConfigError(f"quant.layer_bits: no layer '{layer}'; {hint}allowed: {', '.join(known)}")


def is_float(quant: QuantConfig, chain: Chain) -> bool:
    """Whether nothing at all is quantized. quant: settled."""
    return set(bits_by_layer(quant, chain).values()) == {FLOAT_BITS}


IMAGE_SIDES = range(4, 257)  # what an image's height and width may be, in pixels
IMAGE_SIZE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})")


class DataConfig(StrictModel):
    """The images. Counts are numbers of images; `val_split` 0 means no validation split.

    `image_size` and `color` prepare the pictures of a folder: None keeps the size they all have. `flip` mirrors half of
    the training images. `digest` is the identity of a folder's or file's images, recorded when a run is settled.
    """

    dataset: str = "auto"
    image_size: str | None = None
    color: bool = False
    augment: str = "shift"
    flip: bool = False
    val_split: Annotated[int, Field(ge=0, le=MOST_IMAGES)] = 0
    limit_train: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    limit_test: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    digest: str | None = None

    @field_validator("image_size")
    @classmethod
    def _small_size(cls, size: str | None) -> str | None:
        match = IMAGE_SIZE.fullmatch(size) if size is not None else None
        if size is not None and not (match and all(int(side) in IMAGE_SIDES for side in match.groups())):
            raise ValueError(
                f"allowed: HEIGHTxWIDTH in pixels, each {IMAGE_SIDES[0]} to {IMAGE_SIDES[-1]}, for example 28x28"
            )
        return size

    @property
    def spec(self) -> str:
        """The dataset in one string that is enough to load it again: `mnist`, `folder:pets@32x32,color`."""
        options = [*([self.image_size] if self.image_size else []), *(["color"] if self.color else [])]
        return "@".join([self.dataset, *([",".join(options)] if options else [])])


class DatasetSpec(NamedTuple):
    """A dataset's specification in parts: `folder:a/pets@32x16,color` is folder, a/pets, (32, 16), True.

    kind: "folder" or "npz", with the path as `name`; or None, with a dataset's plain name. size: (height, width), or
    None for the size that the images have.
    """

    kind: str | None
    name: str
    size: tuple[int, int] | None
    color: bool

    @property
    def dataset(self) -> str:
        """Without the options: `folder:a/pets`."""
        return f"{self.kind}:{self.name}" if self.kind else self.name


_SPEC = re.compile(rf"(?:(folder|npz):)?(.*?)(?:@(?:{IMAGE_SIZE.pattern}(,color)?|(color)))?", re.DOTALL)


def parse_spec(text: str) -> DatasetSpec:
    """The parts of `DataConfig.spec`; options are what comes after the last `@`, if it looks like them."""
    match = _SPEC.fullmatch(text)
    assert match is not None, text
    kind, name, height, width, color, only_color = match.groups()
    return DatasetSpec(kind, name, (int(height), int(width)) if height else None, bool(color or only_color))


def short_name(dataset: str) -> str:
    """A dataset's specification as part of a folder's name: `folder:/some/pets@32x32` is `pets`, `mnist` is `mnist`."""
    spec = parse_spec(dataset)
    if spec.kind is None:
        return dataset
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(spec.name).name.removesuffix(f".{spec.kind}")).strip("-.")
    return plain[:40] or spec.kind


class TrainConfig(StrictModel):
    """The training loop. `init` is a checkpoint to start from. Weight decay does not act on what quantizers
    learn, except pact's clipping level; `scale_lr` is their learning rate as a fraction of the weights'.

    `compile`: whether the elementwise kernels run compiled from C; `auto` compiles on a CPU with a C compiler, unless
    the run is too short to benefit.
    """

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 10
    batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)] | Auto = "auto"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto = "auto"
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = "auto"
    scale_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grad_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    init: str | None = None


class DistillConfig(StrictModel):
    """Knowledge distillation: `teacher` is a float checkpoint; `weight` is that of its logits in the loss."""

    teacher: str | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.7


class PtqConfig(StrictModel):
    """Post-training quantization: how ranges are found, on how many training images, after how many float epochs."""

    calibration: str = "minmax"
    images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1024
    source_epochs: Annotated[int, Field(ge=0, le=MOST_EPOCHS)] = 0


class ExperimentConfig(StrictModel):
    """One training run or, if `ptq` is set, a post-training quantization of the float run that the rest describes."""

    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelConfig = ModelConfig()
    quant: QuantConfig = QuantConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    ptq: PtqConfig | None = None

    @property
    def method(self) -> Literal["float", "qat", "ptq"]:
        """What the run is, every value settled: a float network, trained quantized, or quantized after training."""
        return "ptq" if self.ptq is not None else "float" if is_float(self.quant, self.model.chain) else "qat"

    @model_validator(mode="after")
    def _known_layers(self) -> "ExperimentConfig":
        check_layer_bits(self.quant, self.model.chain)
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name in (".", "..") or any(c in name for c in "/\\\0")):
            raise ValueError("allowed: a folder name without slashes")
        return name


Section = TypeVar("Section", bound=StrictModel)


def parse_config(values: dict[str, Any], source: str) -> ExperimentConfig:
    """Validate nested `values` into a config; `source` names where they came from.

    Raises ConfigError, one line: the key, what was found, what is allowed.
    """
    return validated(ExperimentConfig, values, source)


def recorded_config(values: dict[str, Any], source: str) -> ExperimentConfig:
    """As `parse_config`, for a run that was begun: what every run settles is not open any more. Raises ConfigError."""
    config = parse_config(values, source)
    for section, keys in (("quant", ("bits", "act_bits")), ("train", ("lr", "batch_size", "weight_decay"))):
        for key in keys:
            if getattr(getattr(config, section), key) in (None, "auto"):
                raise ConfigError(f"{source} leaves {section}.{key} open, which no run of qattrain does")
    return config


def validated(section: type[Section], values: dict[str, Any], source: str) -> Section:
    """Validate `values` into one section of the config, as `parse_config` does for the whole. Raises ConfigError."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        # A union (number or "auto") reports an error for each of its branches.
        also = any(other["type"] == "literal_error" and other["loc"][:-1] == first["loc"][:-1] for other in others)
        message = _explain(first, section) + (" or 'auto'" if also else "")
        raise ConfigError(f"{source}: {message}") from None
    except ConfigError as error:  # of the chain, or of a layer that it does not have
        raise ConfigError(str(error) if source == COMMAND_LINE else f"{source}: {error}") from None


def _explain(detail: Any, section: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        for part in path[:-1]:
            section = _section(section.model_fields[part])
        own = {name: ".".join([*path[:-1], name]) for name in section.model_fields}
        # `lr` means `train.lr`: it may be a key of another section. Those of its own section come first.
        known = {key.rpartition(".")[2]: key for key in _keys()} | own
        found = nearest(path[-1], known)
        hint = "" if found is None else f"did you mean {known[found]!r}? "
        return f"unknown key '{shortened('.'.join(path))}'; {hint}allowed: {', '.join(own)}"
    # Branches of a union and items of a list add parts to the path: keep only the key.
    key = ".".join(part for part in path[:2] if part in _known_keys())
    plain = {"missing": "a value is missing", "model_type": "this is a table of settings, not one value"}
    message = plain.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return f"{key} = {_shown(detail['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    """A value that somebody gave, for a message."""
    try:
        return shortened(json.dumps(value, default=str))
    except (ValueError, RecursionError):  # a number with more digits than Python prints; nested too deep
        return f"a {type(value).__name__} too long to show"


def _section(field: Any) -> Any:
    """What a field holds; of `PtqConfig | None` the first."""
    return next((one for one in get_args(field.annotation) if one is not type(None)), field.annotation)


def _keys() -> list[str]:
    """All dotted names of settings: `seed`, `train.lr`."""
    found = []
    for name, field in ExperimentConfig.model_fields.items():
        inner = _section(field)
        is_section = isinstance(inner, type) and issubclass(inner, StrictModel)
        found += [f"{name}.{key}" for key in inner.model_fields] if is_section else [name]
    return found


def _known_keys() -> set[str]:
    return {part for key in _keys() for part in key.split(".")}
