"""What this program makes once and keeps to use again: sealed with a digest, so that damage is noticed.

Whoever reads a sealed file that is damaged makes it again. A digest does not stop somebody who may write the file, as
he can seal his own. So what is executed (compiled kernels) is kept only where nobody but the user may write.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from qattrain.errors import QattrainError
from qattrain.files import read_bounded, replace_files

MARK = b"QATTRAIN"  # before the SHA-256, as in a checkpoint
DIGEST_BYTES = 32
SEAL_BYTES = len(MARK) + DIGEST_BYTES
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def sealed(data: bytes) -> bytes:
    """`data`, followed by MARK and the SHA-256 of both."""
    body = data + MARK
    return body + hashlib.sha256(body).digest()


def read_sealed(path: Path, most_bytes: int) -> bytes | None:
    """What `sealed` was given; None if the file is missing, unreadable, damaged or longer than `most_bytes`."""
    try:
        return _unsealed(read_bounded(path, most_bytes + SEAL_BYTES, QattrainError, str(path), "make it again"))
    except QattrainError:
        return None


def read_own_sealed(path: Path, most_bytes: int) -> bytes | None:
    """As `read_sealed`; None also if the file is not the user's own, if others may write it, or if it is a link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())  # of the very file that is read, whatever its name comes to mean
            trusted = stat.S_ISREG(found.st_mode) and not _whose(found)
            return _unsealed(file.read(most_bytes + SEAL_BYTES)) if trusted else None
    except OSError:
        return None


def _unsealed(content: bytes) -> bytes | None:
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    intact = body.endswith(MARK) and hashlib.sha256(body).digest() == digest
    return body[: -len(MARK)] if intact else None


def write_own_sealed(path: Path, data: bytes) -> None:
    """Write `sealed(data)` for the user alone: under a temporary name, flushed to the disk, renamed. Raises OSError."""
    replace_files(path.parent, {path.name: sealed(data)}, mode=0o600)


def own_folder(path: Path) -> tuple[Path | None, str]:
    """`path`, made with mode 0700 if it is not there, and ""; or None and why it cannot be trusted.

    None and "" if it cannot be made. It is trusted if it is a folder, no symbolic link, that belongs to the user, and
    that nobody else may write to.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    try:
        found = path.lstat()
    except OSError:
        return None, ""
    if stat.S_ISLNK(found.st_mode):
        return None, "it is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return None, "it is not a folder"
    why = _whose(found)
    return (None, why) if why else (path, "")


def _whose(found: os.stat_result) -> str:
    """Why others than the user could have written what was found; "" if only the user could."""
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}, not to you ({os.geteuid()})"
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & OTHERS_MAY_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return ""
