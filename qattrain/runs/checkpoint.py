"""Checkpoints: versioned, atomic, verified.

A file is what `torch.save` writes, followed by b"QATTRAIN" and the SHA-256 of all bytes before the digest. The digest
is checked before anything is unpickled, and torch unpickles with `weights_only=True`, which executes no code: only
tensors and plain types are stored. The file holds the whole configuration: evaluation needs no other file or flag.
"""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qattrain.config import ExperimentConfig, parse_config
from qattrain.config.chain import MNIST_SHAPE, Shape
from qattrain.errors import CheckpointError, ConfigError, reason, system_errors
from qattrain.files import write_atomically
from qattrain.integer.packed import is_packed
from qattrain.layers.network import build_model

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
    """Write the file atomically. Raises TrainingError if it cannot be written."""
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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a file, tensors on the CPU.

    Raises CheckpointError if it is missing, truncated, altered, foreign, of another version, or not what it claims.
    """
    fields = _verified_fields(path)
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this qattrain reads {FORMAT_VERSION}; use the one that wrote it"
        )
    fields = ADDED | fields
    if set(fields) != set(_CHECKS):
        raise CheckpointError(
            f"{path} has fields {sorted(map(str, fields))}; expected {sorted(_CHECKS)}; train it again"
        )
    for name, fits in _CHECKS.items():
        if not fits(fields[name]):
            raise CheckpointError(f"{path}: its field {name!r} is not what qattrain writes; use a copy that is intact")
    try:
        config = parse_config(fields["config"], str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; the checkpoint's configuration is not valid in this version") from None
    tuples = {name: tuple(fields[name]) for name in ("class_names", "input_shape")}
    return Checkpoint(**(fields | {"config": config} | tuples))


def _verified_fields(path: Path) -> dict[str, Any]:
    with system_errors(CheckpointError, f"cannot read the checkpoint {path}", "give a readable file"):
        data = path.read_bytes()
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not body.endswith(MAGIC) and is_packed(path):
        raise CheckpointError(
            f"{path} is a packed file: it has the integers, but not the weights that training needs; give the run that "
            "it was exported from"
        )
    if not body.endswith(MAGIC):
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is not a complete qattrain checkpoint: its end mark is missing; "
            "it is truncated or from another program; give a last.pt or model.safetensors that qattrain wrote"
        )
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path} was altered: its SHA-256 does not match; use a copy that is intact")
    if not body.startswith(ZIP_MAGIC):  # torch.save writes a zip file; older formats are refused
        raise CheckpointError(
            f"{path} does not hold what torch.save writes, nothing was run; give a last.pt that qattrain wrote"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            fields = torch.load(io.BytesIO(body[: -len(MAGIC)]), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make the unpickler fail in any way: all mean a bad file
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, nothing was run: {first_line}"
        ) from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds a {type(fields).__name__}, not a checkpoint")
    return fields


def restore_model(checkpoint: Checkpoint, source: str) -> nn.Sequential:
    """The network with the checkpoint's weights, on the CPU. `source` names the file in errors.

    Raises CheckpointError if the weights do not fit the configuration.
    """
    config = checkpoint.config
    try:
        model = build_model(config.model, config.quant, len(checkpoint.class_names), checkpoint.input_shape)
        model.load_state_dict(checkpoint.model)
    except (ConfigError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source}: its weights do not fit its configuration: {reason(error)}") from None
    return model
