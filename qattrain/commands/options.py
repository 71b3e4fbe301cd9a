"""Options that several commands share, each written once. No torch in here: help texts must come at once."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

DEFAULT_RUNS = Path("runs")


class Setting(NamedTuple):
    """An option that stands for a setting of the configuration: its path there, type and help."""

    path: tuple[str, ...]
    type: Any
    option: Any


# Options of `train`, `compare` and whatever else describes an experiment.
SETTINGS: dict[str, Setting] = {
    "bits": Setting(
        ("quant", "bits"),
        int,
        typer.Option(help="Weight bits, 1 to 8; 32 is the float baseline. [default: 4; ternary 2, binary 1]"),
    ),
    "act_bits": Setting(
        ("quant", "act_bits"), int, typer.Option(help="Activation bits, 1 to 8 or 32. [default: as --bits]")
    ),
    "layer_bits": Setting(
        ("quant", "layer_bits"),
        str,
        typer.Option(
            metavar="L=N,...",
            help="Other bits for layers by name: conv1 conv2 fc1 fc2 (weights), act1 act2 act3 (activations).",
        ),
    ),
    "quantizer": Setting(
        ("quant", "quantizer"),
        str,
        typer.Option(metavar="Q", help="lsq, affine, pow2, dorefa, pact, ternary or binary. [default: lsq]"),
    ),
    "model": Setting(
        ("model", "name"),
        str,
        typer.Option(metavar="M", help="lenet, lenet-small or lenet-nano. [default: lenet]"),
    ),
    "dataset": Setting(
        ("data", "dataset"),
        str,
        typer.Option(
            metavar="D",
            help="auto, mnist, fashion-mnist, kmnist, emnist-balanced, emnist-letters or digits. "
            "[default: auto: MNIST if it can be had, else scikit-learn's digits]",
        ),
    ),
    "epochs": Setting(("train", "epochs"), int, typer.Option(help="Passes over the training images. [default: 10]")),
    "lr": Setting(
        ("train", "lr"), float, typer.Option(help="Peak learning rate. [default: by optimizer; another at 1 bit]")
    ),
    "batch_size": Setting(
        ("train", "batch_size"),
        int,
        typer.Option(help="Images a step. [default: 128; 32 where there are fewer than 10,000 images]"),
    ),
    "augment": Setting(
        ("data", "augment"), str, typer.Option(metavar="A", help="none, shift, affine or elastic. [default: shift]")
    ),
    "seed": Setting(("seed",), int, typer.Option(help="Seed of weights, order and augmentation. [default: 0]")),
    "device": Setting(("train", "device"), str, typer.Option(help="auto, cpu or cuda. [default: auto]")),
    "precision": Setting(
        ("train", "precision"),
        str,
        typer.Option(metavar="P", help="auto, fp32 or bf16. [default: auto: bf16 where the hardware has it]"),
    ),
    "threads": Setting(("train", "threads"), int, typer.Option(help="CPU threads. [default: torch's choice]")),
    "val_split": Setting(
        ("data", "val_split"),
        int,
        typer.Option(help="Training images held out for validation; the best epoch on them is kept, too."),
    ),
    "limit_train": Setting(("data", "limit_train"), int, typer.Option(help="Use only the first N training images.")),
    "limit_test": Setting(("data", "limit_test"), int, typer.Option(help="Use only the first N test images.")),
}


def train_flags() -> dict[tuple[str, ...], str]:
    """The option of `train` for every setting that has one, by the setting's path."""
    flags = {setting.path: f"--{name.replace('_', '-')}" for name, setting in SETTINGS.items()}
    return flags | {("train", "init"): "--init", ("distill", "teacher"): "--teacher"}


Settings = dict[tuple[str, ...], Any]  # path of a setting -> the value given on the command line


# Of these a sweep takes one value: a table has its own commas, and threads are the worker's, not the cell's.
NO_AXIS = ("layer_bits", "threads")


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for every entry of SETTINGS; it gets those that were given as `settings`."""
    return _with_options(command, SETTINGS, several=())


def takes_axes(command: Callable[..., None]) -> Callable[..., None]:
    """The same with several values, split at commas, for all but NO_AXIS: `settings` maps their paths to lists."""
    several = tuple(name for name in SETTINGS if name not in NO_AXIS)
    options = {name: SETTINGS[name]._replace(type=str) if name in several else SETTINGS[name] for name in SETTINGS}
    seeds = typer.Option("--seeds", "--seed", metavar="N,...", help="Seeds, several at commas. [default: 0]")
    options["seed"] = options["seed"]._replace(option=seeds)
    return _with_options(command, options, several)


def _with_options(
    command: Callable[..., None], options: dict[str, Setting], several: tuple[str, ...]
) -> Callable[..., None]:
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[setting.type | None, setting.option],
        )
        for name, setting in options.items()
    ]

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> None:
        from qattrain.config.sources import parse_layer_bits, parse_values

        given = {name: value for name in options if (value := arguments.pop(name)) is not None}
        settings: Settings = {
            options[name].path: parse_values(value, name) if name in several else value for name, value in given.items()
        }
        layer_bits = SETTINGS["layer_bits"].path
        if layer_bits in settings:
            settings[layer_bits] = parse_layer_bits(settings[layer_bits])
        command(settings=settings, **arguments)

    arguments = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    first = [p for p in arguments if p.default is inspect.Parameter.empty]  # positional on the command line
    arguments = first + shared + [p for p in arguments if p not in first]
    with_settings.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in arguments} | {"return": None}
    return with_settings


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file, or a run's config.json, to start from.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example --set train.weight_decay=0. Repeatable."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="QATTRAIN_DATA_DIR",
        show_envvar=True,
        help="Where datasets lie or are downloaded to. [default: the user's cache folder]",
    ),
]
RunsDir = Annotated[
    Path,
    typer.Option(envvar="QATTRAIN_RUNS_DIR", show_envvar=True, help="Where runs are kept."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]

CheckpointName = Annotated[
    str, typer.Argument(metavar="CKPT", help="A checkpoint file, a run folder, or a run's name.", show_default=False)
]
NetworkName = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="A checkpoint or a packed file, a run folder, or a run's name.", show_default=False
    ),
]


def data_folder(given: Path | None) -> Path:
    """`--data-dir`, or the default."""
    from qattrain.files import default_data_dir

    return given if given is not None else default_data_dir()
