"""Opening a file that a stranger may have named: a regular file, without waiting for a pipe's other end."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qattrain.errors import QattrainError, system_errors


@contextmanager
def open_regular(path: Path, kind: type[QattrainError], what: str, remedy: str) -> Iterator[BinaryIO]:
    """The file, to read a part of it; `read_bounded` reads all. Raises `kind`, `cannot read <what>: ...; <remedy>`."""
    with (
        system_errors(kind, f"cannot read {what}", remedy),
        open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file,
    ):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise kind(f"cannot read {what}: it is not a regular file; {remedy}")
        yield file
