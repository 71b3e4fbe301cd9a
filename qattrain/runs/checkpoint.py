"""Checkpoints: versioned, atomic, verified.

A file is what `torch.save` writes, followed by b"QATTRAIN" and the SHA-256 of all bytes before the digest. First the
digest is checked, then what the archive would unpack to (`archive.py`). Then torch unpickles with `weights_only=True`,
which executes no code, and what came out is checked (`fields.py`). The file holds the whole configuration: evaluation
needs no other file or flag.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qattrain.config import ExperimentConfig, recorded_config
from qattrain.config.chain import MNIST_SHAPE, Shape
from qattrain.errors import CheckpointError, ConfigError, TrainingError, reason
from qattrain.files import read_bounded, write_atomically
from qattrain.integer.packed import is_packed
from qattrain.layers.network import build_model
from qattrain.quant.base import InitializedQuantizer, Quantizer
from qattrain.runs.archive import MOST_BYTES, checked_archive
from qattrain.runs.fields import (
    check_history,
    check_names,
    check_scales,
    check_settings,
    check_state,
    check_tensors,
    check_weights,
)

FORMAT_VERSION = 1
MAGIC = b"QATTRAIN"
ZIP_MAGIC = b"PK\x03\x04"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """Everything about a run at one moment.

    config: every value settled. class_names: of the dataset, in label order. model: state dict. history: one dict per
    epoch, as in `metrics.jsonl`. notice: set if the dataset is a stand-in for MNIST. trainer: optimizer, schedule
    position and random number states, from `loop.Trainer.state_dict`; None if there is nothing to resume. input_shape:
    (C, H, W) of the images.
    """

    config: ExperimentConfig
    class_names: tuple[str, ...]
    model: dict[str, Tensor]
    history: list[dict[str, Any]]
    notice: str | None
    trainer: dict[str, Any] | None
    input_shape: Shape = MNIST_SHAPE

    @property
    def finished(self) -> bool:
        """Whether every epoch is done (a post-training quantization always is finished)."""
        return self.config.ptq is not None or len(self.history) >= self.config.train.epochs

    @property
    def warnings(self) -> list[str]:
        """What was wrong with the network after its last epoch, as `training.health` says; [] in older files."""
        return [*self.history[-1].get("warnings", [])] if self.history else []


# What each field of a file must be; besides these a file has only its version.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "class_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "model": lambda value: isinstance(value, dict) and all(isinstance(tensor, Tensor) for tensor in value.values()),
    "history": lambda value: isinstance(value, list) and all(isinstance(record, dict) for record in value),
    "notice": lambda value: value is None or isinstance(value, str),
    "trainer": lambda value: value is None or isinstance(value, dict),
    "input_shape": lambda value: (
        isinstance(value, list) and len(value) == 3 and all(type(side) is int and side > 0 for side in value)
    ),
}
ADDED = {"input_shape": list(MNIST_SHAPE)}  # fields that older files lack, and what they mean there


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file atomically. Raises TrainingError if it cannot be written, or would be too large to be read."""
    _check_size(path, checkpoint)
    fields = vars(checkpoint) | {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.model_dump(mode="json"),
        "class_names": list(checkpoint.class_names),
        "input_shape": list(checkpoint.input_shape),
    }
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    body = buffer.getvalue() + MAGIC
    write_atomically(path, body + hashlib.sha256(body).digest())


def _check_size(path: Path, checkpoint: Checkpoint) -> None:
    """Refuses, before the first epoch, a run whose last checkpoint could not be read again. Raises TrainingError."""
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.model.values())
    if 3 * model_bytes > MOST_BYTES:  # with what an optimizer keeps
        raise TrainingError(
            f"cannot write {path}: a checkpoint of {model_bytes:,} bytes of weights would have more than "
            f"{MOST_BYTES:,} bytes, the most allowed; use a smaller network"
        )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a file, tensors on the CPU.

    Raises CheckpointError if it is missing, truncated, altered, foreign, of another version, or not what it claims.
    """
    fields, file_bytes = _verified_fields(path)
    version = fields.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        shown = repr(version)[:40] if isinstance(version, str | int | None) else f"a {type(version).__name__}"
        raise CheckpointError(
            f"{path} has format version {shown}; this qattrain reads {FORMAT_VERSION}; use the one that wrote it"
        )
    fields = ADDED | fields
    if set(fields) != set(_CHECKS):
        raise CheckpointError(
            f"{path} has fields {', '.join(sorted(map(str, fields)))[:400]}; expected {', '.join(sorted(_CHECKS))}; "
            "train it again"
        )
    for name, fits in _CHECKS.items():
        if not fits(fields[name]):
            raise CheckpointError(f"{path}: its field {name!r} is not what qattrain writes; use a copy that is intact")
    with _refused(path):
        check_settings(fields["config"])
        check_names(fields["class_names"], fields["notice"], tuple(fields["input_shape"]))
        check_tensors(fields["model"], file_bytes)
    try:
        config = recorded_config(fields["config"], str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; the checkpoint's configuration is not valid in this version") from None
    with _refused(path):
        check_history(fields["history"], config.ptq is not None, config.train.epochs)
        if fields["trainer"] is not None and fields["trainer"].get("epoch") != len(fields["history"]):
            raise ValueError("its training is at another epoch than its history")
    tuples = {name: tuple(fields[name]) for name in ("class_names", "input_shape")}
    return Checkpoint(**(fields | {"config": config} | tuples))


@contextmanager
def _refused(source: object) -> Iterator[None]:
    """Within it a ValueError becomes a CheckpointError about `source`."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{source} is not what qattrain writes: {error}; use a copy that is intact") from None


def _verified_fields(path: Path) -> tuple[dict[str, Any], int]:
    """The fields, and the file's size in bytes."""
    remedy = "give a last.pt or model.safetensors that qattrain wrote"
    data = read_bounded(path, MOST_BYTES, CheckpointError, f"the checkpoint {path}", remedy)
    body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    is_whole = data.endswith(MAGIC, 0, max(0, len(data) - DIGEST_BYTES))
    if not is_whole and is_packed(path):
        raise CheckpointError(
            f"{path} is a packed file: it has the integers, but not the weights that training needs; give the run that "
            "it was exported from"
        )
    if not is_whole:
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is not a complete qattrain checkpoint: its end mark is missing; "
            f"it is truncated or from another program; {remedy}"
        )
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path} was altered: its SHA-256 does not match; use a copy that is intact")
    if not data.startswith(ZIP_MAGIC):  # torch.save writes a zip file; older formats are refused
        raise CheckpointError(
            f"{path} does not hold what torch.save writes, nothing was run; give a last.pt that qattrain wrote"
        )
    try:
        archive = checked_archive(data)
        with warnings.catch_warnings(action="ignore"):
            fields = torch.load(archive, map_location="cpu", weights_only=True)
    except ValueError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values, nothing was run: {error}") from None
    except Exception as error:  # a crafted file can make the unpickler fail in any way: all mean a bad file
        # torch's own words would advise to load it unsafely.
        raise CheckpointError(
            f"{path} does not hold what torch.save writes, nothing was run ({type(error).__name__}); give a last.pt "
            "that qattrain wrote"
        ) from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds a {type(fields).__name__}, not a checkpoint")
    return fields, len(data)


def restore_model(checkpoint: Checkpoint, source: str, is_resumed: bool = False) -> nn.Sequential:
    """The network with the checkpoint's weights, on the CPU. `source` names the file in errors.

    is_resumed: for more training, in which a learned scale below 0, from an older version, may recover; else such a
    network is refused. Raises CheckpointError for that, and if the weights do not fit the configuration.
    """
    config, classes = checkpoint.config, len(checkpoint.class_names)
    try:
        check_weights(checkpoint.model, config.model.chain, classes, checkpoint.input_shape)
        model = build_model(config.model, config.quant, classes, checkpoint.input_shape)
        check_state(checkpoint.model, model.state_dict(), _optional(model))
        model.load_state_dict(checkpoint.model)
    except (ConfigError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source}: its weights do not fit its configuration: {reason(error)}") from None
    if not is_resumed:
        require_scales(checkpoint, source)
    return model


def require_scales(checkpoint: Checkpoint, source: str) -> None:
    """Raises CheckpointError, with the layer's name, if a scale of the network is not positive."""
    try:
        check_scales(checkpoint.model)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}; the network is broken: train it again with a smaller --lr") from None


def _optional(model: nn.Module) -> frozenset[str]:
    """Keys of state that older files lack, and that starts as it should be: of quantizers without a first batch."""
    plain = {
        name
        for name, module in model.named_modules()
        if isinstance(module, Quantizer) and not isinstance(module, InitializedQuantizer)
    }
    return frozenset(key for key in model.state_dict() if key.rpartition(".")[0] in plain)
