"""Locks that die with their owner, and what dead owners left behind.

A lock is the system's own (`flock`) on an open file or folder: it falls when the process that holds it ends, however it
ends, so none is ever stale. It belongs to the file and not to its name: a folder that is renamed stays locked. Some
network file systems have no such locks; there nothing is locked, and nothing that may have an owner is removed.

Files and folders in the making are named `.NAME.RANDOM.tmp` and `.NAME.RANDOM.new`, and are locked as long as their
owner lives. So everybody may remove those that are not locked.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

FILE_SUFFIX, FOLDER_SUFFIX = ".tmp", ".new"
_IN_THE_MAKING = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.tmp|\.new)", re.DOTALL)  # as tempfile names them


def try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed, without waiting.

    False: another has it open and locked, be it in this process. None: this file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[bool | None]:
    """Hold the lock of a folder; yields what `try_lock` says. Raises OSError if the folder cannot be opened."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield try_lock(handle)
    finally:
        os.close(handle)


def temporary_file(folder: Path, name: str) -> tuple[int, Path]:
    """A new, locked file in `folder` that is to become `name`: its handle and path. Raises OSError."""
    while True:
        handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=FILE_SUFFIX)
        if try_lock(handle) is not False and os.fstat(handle).st_nlink:
            return handle, Path(path)
        os.close(handle)  # another process took it for a leftover before it was locked


def temporary_folder(folder: Path, name: str) -> tuple[int, Path]:
    """A new, locked folder in `folder` that is to become `name`: its handle and path. Raises OSError."""
    while True:
        path = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.", suffix=FOLDER_SUFFIX))
        with contextlib.suppress(FileNotFoundError):  # as above
            handle = os.open(path, os.O_RDONLY)
            if try_lock(handle) is not False and path.is_dir():
                return handle, path
            os.close(handle)


def is_in_the_making(name: str) -> bool:
    """Whether a file or folder of this name is not there yet as far as anybody else is concerned."""
    return _IN_THE_MAKING.fullmatch(name) is not None


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove what dead processes left half made in `folder`: all of it, or what was to become one of `names`.

    What cannot be removed stays.
    """
    found: list[tuple[re.Match[str], str]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [(match, entry.path) for entry in entries if (match := _IN_THE_MAKING.fullmatch(entry.name))]
    for match, path in found:
        if names is None or match[1] in names:
            with contextlib.suppress(OSError):
                _remove_if_dead(path, is_folder=match[2] == FOLDER_SUFFIX)


def _remove_if_dead(path: str, *, is_folder: bool) -> None:
    handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        ours = stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)
        if ours and try_lock(handle):
            if is_folder:
                shutil.rmtree(path)
            else:
                Path(path).unlink()
    finally:
        os.close(handle)
