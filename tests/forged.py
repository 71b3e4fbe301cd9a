"""Checkpoints with a valid digest and other contents: what a forger who knows the format would write."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qattrain.runs.checkpoint import DIGEST_BYTES, MAGIC

Fields = dict[str, Any]


def sealed(body: bytes) -> bytes:
    return body + MAGIC + hashlib.sha256(body + MAGIC).digest()


def body_of(path: Path) -> bytes:
    return path.read_bytes()[: -DIGEST_BYTES - len(MAGIC)]


def fields_of(path: Path) -> Fields:
    loaded: Fields = torch.load(io.BytesIO(body_of(path)), weights_only=True)
    return loaded


def store(path: Path, fields: object) -> Path:
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(buffer.getvalue()))
    return path


def forge(path: Path, source: Path, change: Callable[[Fields], object]) -> Path:
    """`source` with changed fields, in `path`."""
    fields = fields_of(source)
    change(fields)
    return store(path, fields)


def rezipped(
    source: Path, content: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED, more: int = 0
) -> bytes:
    """The body of `source` with other contents of its parts, and so many empty parts more."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(body_of(source))) as old, zipfile.ZipFile(made, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, content(name, old.read(name)))
        for number in range(more):
            new.writestr(f"archive/x{number}", b"")
    return made.getvalue()
