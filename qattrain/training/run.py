"""A run from start to end: settle the configuration, then train a new run or resume one.

resolve -> data, model -> session.Session.run -> runs/<name>/ with config.json, metrics.jsonl, last.pt
"""

import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qattrain.config import ExperimentConfig
from qattrain.config.sources import lookup
from qattrain.data import (
    AUTO_NAME,
    Dataset,
    check_identity,
    choose_dataset,
    load_dataset,
    settle_data,
)
from qattrain.errors import CheckpointError, ConfigError, RecordError, reason
from qattrain.layers.network import build_model, copy_weights, plan_layers
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint, require_scales, restore_model
from qattrain.runs.creation import new_folder, written_by_us
from qattrain.runs.environment import describe_environment, keep_freed_memory, pick_compile, pick_device, pick_precision
from qattrain.training.distillation import Teacher
from qattrain.training.loop import check_names
from qattrain.training.optimization import settle_training
from qattrain.training.session import Display, RunResult, Session

FURTHER_EPOCHS = 5  # suggested for taking a finished run further
Loader = Callable[[str, Path], Dataset]  # `load_dataset`, or one that caches, for a process that trains many runs


def resolve(
    config: ExperimentConfig, data_dir: Path, load: Loader = load_dataset
) -> tuple[ExperimentConfig, Dataset, str | None]:
    """Settle every `auto` and load the dataset.

    Returns the settled config, the data, and a notice if the data are a stand-in for MNIST. Raises ConfigError,
    DataError.
    """
    plan = plan_layers(config.model, config.quant)
    quant = plan.quant
    check_names(config.train, config.data.augment)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    name, notice = config.data.dataset, None
    if name == AUTO_NAME:
        name, notice = choose_dataset(data_dir)
    asked = config.data.model_copy(update={"dataset": name})
    dataset = load(asked.spec, data_dir)
    images = len(dataset.train.head(config.data.limit_train).labels) - config.data.val_split
    config.model.chain.place(dataset.shape, dataset.classes)  # refuse early what does not fit
    train = settle_training(config.train, plan, images).model_copy(
        update={
            "precision": precision,
            "device": str(device),
            "threads": config.train.threads or torch.get_num_threads(),
            "compile": pick_compile(config.train.compile, device, images * config.train.epochs),
        }
    )
    data = settle_data(asked, dataset)
    return config.model_copy(update={"train": train, "quant": quant, "data": data}), dataset, notice


def train(
    config: ExperimentConfig,
    data_dir: Path,
    runs_dir: Path,
    display: Display,
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Train a new run from its first step. say: called with a line on what it starts from, if that is a checkpoint.

    Raises ConfigError, DataError, CheckpointError (--init), TrainingError.
    """
    if config.ptq is not None:
        raise ConfigError("this configuration is a post-training quantization; make one with 'qattrain ptq CKPT'")
    return start(*resolve(config, data_dir), runs_dir, display, stop_after, say=say)


def start(
    config: ExperimentConfig,
    dataset: Dataset,
    notice: str | None,
    runs_dir: Path,
    display: Display,
    stop_after: int | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Train a new run from what `resolve` returned; setting `stop` saves and ends it between two steps."""
    prepare_torch(config)
    model = build_model(config.model, config.quant, dataset.classes, dataset.shape)
    if config.train.init is not None:
        source = load_checkpoint(runs.find_checkpoint(config.train.init, runs_dir))
        say(take_over(source, model, config))
    session = Session(config, dataset, notice, model, _teacher(config, dataset, runs_dir))
    with new_run(
        config, runs_dir, notice, session.save
    ) as run_dir:  # epoch 0: it can be resumed from its first step on
        return session.run(run_dir, display, stop_after, stop)


def take_over(source: Checkpoint, model: nn.Module, config: ExperimentConfig) -> str:
    """Give `model`, built for `config`, the weights of the checkpoint that `train.init` names.

    If both networks are quantized on the same grids, it gets the scales and whatever else the quantizers learned, too;
    otherwise its quantizers start from the first batch. Returns a line that says which. Raises ConfigError if the
    shapes differ, CheckpointError if the scales are not those of the checkpoint's own configuration.
    """
    name = config.train.init
    assert name is not None, config
    require_scales(source, f"--init {name}")
    copy_weights(source.model, model, name)
    if "float" in (source.config.method, config.method):
        return f"starts from the weights of {name}"
    differences = grid_differences(source.config, config)
    if differences:
        return (
            f"starts from the weights of {name}; its grids differ ({', '.join(differences)}), so the scales are "
            "initialized anew"
        )
    try:
        model.load_state_dict(source.model)
    except RuntimeError as error:
        raise CheckpointError(f"--init {name}: its scales do not fit its configuration: {reason(error)}") from None
    return f"starts from the weights and scales of {name}"


def grid_differences(one: ExperimentConfig, other: ExperimentConfig) -> list[str]:
    """How the codes of two networks differ, such as `bits 4 -> 2` or `conv1 8 -> 4 bits`; [] if they are the same."""
    plans = [plan_layers(config.model, config.quant) for config in (one, other)]
    was, now = (plan.quant.model_dump() for plan in plans)
    found = [
        f"{key} {was[key]} -> {now[key]}" for key in ("quantizer", "bits", "act_bits", "n") if was[key] != now[key]
    ]
    if one.model.chain.line != other.model.chain.line:
        return [*found, "other layers"]
    bits = [(layer, before, plans[1].layer_bits[layer]) for layer, before in plans[0].layer_bits.items()]
    return found or [f"{layer} {before} -> {after} bits" for layer, before, after in bits if before != after]


def further_command(run_dir: Path, config: ExperimentConfig, epochs: int | None = None) -> list[str]:
    """The command, in words, that takes a finished run further as a new one, with a tenth of its learning rate.

    epochs: how many it asked for in all; None if it did not say.
    """
    lr, done = config.train.lr, config.train.epochs
    assert lr != "auto", config
    more = epochs - done if epochs is not None and epochs > done else FURTHER_EPOCHS
    command = ["qattrain", "train", "--config", str(run_dir / runs.CONFIG_FILE), "--init", str(run_dir)]
    return [*command, "--epochs", str(more), "--lr", f"{lr / 10:g}"]


def resume(
    run: str,
    data_dir: Path,
    runs_dir: Path,
    display: Display,
    asked: dict[tuple[str, ...], Any],
    stop_after: int | None,
) -> RunResult:
    """Resume a run and train to its last epoch; a finished one is returned unchanged.

    asked: settings given along with `--resume`, by path; each must equal the run's own. Raises ConfigError,
    CheckpointError, DataError, TrainingError.
    """
    path = runs.find_checkpoint(run, runs_dir)
    if path.name != runs.LAST_FILE:
        raise ConfigError(
            f"--resume {run}: a run is resumed from its {runs.LAST_FILE} only; give the run's name or folder"
        )
    with written_by_us(path.parent):
        checkpoint = load_checkpoint(path)
        config = checkpoint.config
        for key, value in asked.items():
            recorded = lookup(config.model_dump(mode="json"), key)
            if value not in ("auto", recorded):  # auto accepts any value
                remedy = "train a new run"
                if checkpoint.finished and config.ptq is None:
                    epochs = value if key == ("train", "epochs") else None
                    remedy = (
                        f"take it further as a new run:  {shlex.join(further_command(path.parent, config, epochs))}"
                    )
                raise ConfigError(
                    f"{'.'.join(key)} = {value!r}: {path.parent} was started with {recorded!r} and keeps it; "
                    f"leave the option out, or {remedy}"
                )
        if not checkpoint.finished and stop_after is not None and stop_after <= len(checkpoint.history):
            raise ConfigError(f"--stop-after {stop_after}: {path.parent} already has {len(checkpoint.history)} epochs")
        return continue_run(path, checkpoint, data_dir, display, stop_after)


def continue_run(
    path: Path,
    checkpoint: Checkpoint,
    data_dir: Path,
    display: Display,
    stop_after: int | None = None,
    stop: threading.Event | None = None,
    load: Loader = load_dataset,
) -> RunResult:
    """Continue the run whose `last.pt` is `path`; setting `stop` saves and ends it between two steps.

    The caller holds the run's lock. A finished run is returned as it is, but for its other files, if they do not agree
    with the checkpoint.
    """
    config = checkpoint.config
    _restore_records(path.parent, checkpoint)
    if checkpoint.finished:
        return RunResult(path.parent, checkpoint)
    if checkpoint.trainer is None:
        raise CheckpointError(f"{path} has no optimizer state; only a run of 'qattrain train' can be resumed")
    device = pick_device(config.train.device)
    pick_precision(config.train.precision, device)
    pick_compile(config.train.compile, device, 0)
    dataset = load(config.data.spec, data_dir)
    check_identity(dataset, str(path), checkpoint.class_names, checkpoint.input_shape, config.data.digest)
    prepare_torch(config)
    teacher = _teacher(config, dataset, path.parent.parent)
    model = restore_model(checkpoint, str(path), is_resumed=True)
    session = Session(config, dataset, checkpoint.notice, model, teacher)
    try:
        session.trainer.load_state_dict(checkpoint.trainer)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its training state does not fit the run: {error}") from None
    session.history = list(checkpoint.history)
    return session.run(path.parent, display, stop_after, stop)


def _restore_records(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Write again, from the checkpoint, what is missing or damaged, or older because a process was killed."""
    try:
        metrics_agree = runs.read_metrics(run_dir) == checkpoint.history
    except RecordError:
        metrics_agree = False
    if not metrics_agree:
        runs.write_metrics(run_dir, checkpoint.history)
    try:
        config_is_there = bool(runs.read_record(run_dir))
    except RecordError:
        config_is_there = False
    if not config_is_there:  # of the environment it was trained in nothing is known any more
        runs.write_config(run_dir, checkpoint.config.model_dump(mode="json"), {})


def _teacher(config: ExperimentConfig, dataset: Dataset, runs_dir: Path) -> Teacher | None:
    """The teacher that the config names, on the run's device. Raises CheckpointError, ConfigError."""
    name = config.distill.teacher
    if name is None:
        return None
    path = runs.find_checkpoint(name, runs_dir)
    return Teacher(load_checkpoint(path), path, config, dataset)


def prepare_torch(config: ExperimentConfig) -> None:
    """Seed torch and set its number of threads: CPU results are equal for equal numbers of threads."""
    keep_freed_memory()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)


@contextmanager
def new_run(
    config: ExperimentConfig, runs_dir: Path, notice: str | None, save: Callable[[Path], None]
) -> Iterator[Path]:
    """A new run folder with its `config.json` and what `save` writes into it, its first checkpoint."""

    def fill(folder: Path) -> None:
        environment = describe_environment(torch.device(config.train.device)) | {"dataset_notice": notice}
        runs.write_config(folder, config.model_dump(mode="json"), environment)
        save(folder)

    with new_folder(runs_dir, config.name, runs.default_name(config), fill) as run_dir:
        yield run_dir
