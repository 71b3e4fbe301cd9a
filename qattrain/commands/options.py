"""Options that several commands share, each written once. Nothing here imports torch: help must appear at once."""

import ast
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from qattrain.experiments.folder import SweepFolder
    from qattrain.experiments.sweep import Crew

DEFAULT_RUNS = Path("runs")
PACKAGE = Path(__file__).parents[1]


def listed(module: str, table: str) -> str:
    """The keys of a table for a help text, e.g. "lsq, affine or pow2". module: a path in the package.

    They are read from the table's source: importing it would load torch, and a copy of the names here would be another
    line to change for everyone who adds an entry.
    """
    for node in ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys)) if name == table:
                *others, last = (ast.literal_eval(key) for key in keys if key is not None)
                return f"{', '.join(others)} or {last}"
    raise AssertionError(f"{module} defines no dictionary {table}")


QUANTIZERS = listed("quant/__init__.py", "QUANTIZERS")  # of train and of ptq


class Setting(NamedTuple):
    """A command-line option for one setting. key: its dotted path. names: only if other than its key in SETTINGS."""

    key: str
    type: Any
    help: str
    metavar: str | None = None
    names: tuple[str, ...] = ()

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(self.key.split("."))


# Options of the commands that describe an experiment: `train`, `compare`, `sweep`.
SETTINGS: dict[str, Setting] = {
    "bits": Setting(
        "quant.bits", int, "Weight bits, 1 to 8; 32 is the float baseline. [default: 4; ternary 2, binary 1]"
    ),
    "act_bits": Setting("quant.act_bits", int, "Activation bits, 1 to 8 or 32. [default: same as --bits]"),
    "layer_bits": Setting(
        "quant.layer_bits",
        str,
        "Bits of single layers by name: conv1, dw1, fc1 (weights), act1, avg1 (activations), counted by kind.",
        "L=N,...",
    ),
    "quantizer": Setting("quant.quantizer", str, f"{QUANTIZERS}. [default: lsq]", "Q"),
    "surrogate": Setting(
        "quant.surrogate",
        str,
        f"Straight-through gradient: {listed('quant/surrogates.py', 'SURROGATES')}. [default: clipped]",
        "S",
    ),
    "model": Setting(
        "model.name",
        str,
        f"{listed('config/chain.py', 'PRESETS')}; or a chain, such as 'conv 8 3x3 bn, pool 2, fc'. [default: lenet]",
        "M",
    ),
    "dataset": Setting(
        "data.dataset",
        str,
        f"auto, {listed('data/__init__.py', 'DATASETS')}; folder:PATH (pictures in class folders) or npz:PATH (arrays "
        "x_train, y_train, x_test, y_test). [default: auto: MNIST if available, else scikit-learn's digits]",
        "D",
    ),
    "image_size": Setting(
        "data.image_size", str, "Size that folder:PATH's pictures get. [default: their own, if all have one]", "HxW"
    ),
    "color": Setting("data.color", bool, "Use folder:PATH's pictures in colour. [default: grey]"),
    "epochs": Setting("train.epochs", int, "Passes over the training images. [default: 10]"),
    "lr": Setting("train.lr", float, "Peak learning rate. [default: by optimizer; different at 1 bit]"),
    "batch_size": Setting(
        "train.batch_size", int, "Images per step. [default: 128; 32 with fewer than 10,000 training images]"
    ),
    "augment": Setting("data.augment", str, f"{listed('data/augment.py', 'AUGMENTATIONS')}. [default: shift]", "A"),
    "flip": Setting("data.flip", bool, "Also mirror half of the training images left-right. [default: no]"),
    "seed": Setting("seed", int, "Seed of weights, image order and augmentation. [default: 0]"),
    "device": Setting("train.device", str, "auto, cpu or cuda. [default: auto]"),
    "precision": Setting(
        "train.precision", str, "auto, fp32 or bf16. [default: auto: bf16 if the hardware supports it]", "P"
    ),
    "threads": Setting("train.threads", int, "CPU threads. [default: torch's choice]"),
    "val_split": Setting(
        "data.val_split", int, "Training images held out for validation; the best epoch on them is kept as well."
    ),
    "limit_train": Setting("data.limit_train", int, "Use only the first N training images."),
    "limit_test": Setting("data.limit_test", int, "Use only the first N test images."),
}


def train_flags() -> dict[tuple[str, ...], str]:
    """The flag of `train` for each setting that has one, by the setting's path."""
    flags = {setting.path: f"--{name.replace('_', '-')}" for name, setting in SETTINGS.items()}
    return flags | {("train", "init"): "--init", ("distill", "teacher"): "--teacher"}


Settings = dict[tuple[str, ...], Any]  # path of a setting -> value given on the command line

# A sweep takes one value of these: --layer-bits has commas of its own, threads belong to the worker, not the cell, and
# switches have no value to list.
NO_AXIS = ("layer_bits", "threads", "color", "flip")


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for every entry of SETTINGS; those that were used arrive as its `settings`."""
    return _with_options(command, SETTINGS, several=())


def takes_axes(command: Callable[..., None]) -> Callable[..., None]:
    """The same with comma-separated values for all but NO_AXIS: `settings` then maps their paths to lists."""
    several = tuple(name for name in SETTINGS if name not in NO_AXIS)
    options = {name: SETTINGS[name]._replace(type=str) if name in several else SETTINGS[name] for name in SETTINGS}
    presets = listed("config/chain.py", "PRESETS")
    chains = f"{presets}; chains as a list: \"['conv 8 3x3, pool 2, fc', 'lenet']\". [default: lenet]"
    options["model"] = options["model"]._replace(help=chains, metavar="M,...")
    options["seed"] = Setting("seed", str, "Comma-separated seeds. [default: 0]", "N,...", ("--seeds", "--seed"))
    return _with_options(command, options, several)


def takes_open(command: Callable[..., None]) -> Callable[..., None]:
    """The same as `takes_settings`, for a search: what is not given is found."""
    words = {
        "bits": "Weight bits of all layers, 1 to 8. [default: searched, layer by layer]",
        "act_bits": "Activation bits, 1 to 8. [default: searched]",
        "layer_bits": "Bits of single layers, kept as they are: conv1, dw1, fc1 (weights), act1, avg1 (activations).",
        "model": f"A chain with ? for each number of outputs to be found, such as 'conv ? 3x3 bn, pool 2, fc'; or a "
        f"preset, of which all are: {listed('config/chain.py', 'PRESETS')}. [default: all presets]",
        "epochs": "Epochs of the winner's trainings. [default: 10]",
        "seed": "Seed of the search; the winner is trained on this one and the next two. [default: 0]",
        "val_split": "Training images held out to rank candidates on. [default: 5000, but at most a sixth]",
        "threads": "CPU threads of each training. [default: shared among the workers]",
    }
    options = {name: one._replace(help=words.get(name, one.help)) for name, one in SETTINGS.items()}
    return _with_options(command, options, several=())


def _with_options(
    command: Callable[..., None], options: dict[str, Setting], several: tuple[str, ...]
) -> Callable[..., None]:
    by_name, shared = inspect.Parameter.KEYWORD_ONLY, []
    parameters = inspect.signature(command).parameters.values()
    for name, setting in options.items():
        option = typer.Option(*setting.names, metavar=setting.metavar, help=setting.help)
        shared.append(inspect.Parameter(name, by_name, default=None, annotation=Annotated[setting.type | None, option]))

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

    arguments = [p.replace(kind=by_name) for p in parameters if p.name != "settings"]
    first = [p for p in arguments if p.default is inspect.Parameter.empty]  # the positional arguments
    arguments = first + shared + [p for p in arguments if p not in first]
    with_settings.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in arguments} | {"return": None}
    return with_settings


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file, or a run's config.json, to start from.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. --set train.weight_decay=0; repeatable."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="QATTRAIN_DATA_DIR",
        show_envvar=True,
        help="Folder that holds the datasets, or that they are downloaded to. [default: in the user's cache]",
    ),
]
RunsDir = Annotated[
    Path, typer.Option(envvar="QATTRAIN_RUNS_DIR", show_envvar=True, help="Folder that holds the runs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

CheckpointName = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="A checkpoint file, a run folder, a run's name, or a sweep's cell.", show_default=False
    ),
]
NetworkName = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="A checkpoint file or packed file, a run folder, a run's name, or a sweep's cell.",
        show_default=False,
    ),
]


Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine. [default: one per core, at most 8]")
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="tcp://HOST:PORT", help="Train on the workers of this dask cluster instead."),
]


def hired(
    folder: "SweepFolder",
    context: typer.Context,
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    data_dir: Path | None,
) -> "Crew":
    """The workers that --workers or --scheduler ask for. Raises TrainingError."""
    from qattrain.experiments.sweep import LocalCrew

    if scheduler is None:
        return LocalCrew(folder, data_folder(data_dir), workers, threads)
    from qattrain.experiments.cluster import DaskCrew

    # Unless --data-dir is given, each worker knows best where its data are.
    source: Any = context.get_parameter_source("data_dir")
    given = data_dir.absolute() if data_dir is not None and source.name == "COMMANDLINE" else None
    return DaskCrew(scheduler, folder, given, threads or 1)


def data_folder(given: Path | None) -> Path:
    """`--data-dir`, or the default."""
    from qattrain.files import cache_dir

    return given if given is not None else cache_dir()
