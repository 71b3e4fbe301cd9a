"""Where a program changes the disk, and what can go wrong there.

`Points` puts itself before every function through which Python changes a file or folder (open for writing, write,
fsync, rename, mkdir, ...), numbers these points, and lets a fault happen at one of them. A write has two points: before
it, and when half of it is in the file. What it leaves out: what programs in other languages write, such as a compiler;
what reads; and functions that were imported by name before.
"""

import builtins
import errno
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What changes a file or folder, and whether it takes space, so that it fails on a full disk.
FUNCTIONS = {
    "open": True,
    "write": True,
    "pwrite": True,
    "mkdir": True,
    "link": True,
    "symlink": True,
    "fsync": True,
    "ftruncate": False,
    "truncate": False,
    "replace": False,
    "rename": False,
    "unlink": False,
    "remove": False,
    "rmdir": False,
    "chmod": False,
    "fchmod": False,
    "utime": False,
}


class Points:
    """Counts the points below `root`; at point `at`, counted from 0, `fault` begins.

    target: the folder, in root, that a fault may remove. names: of the points so far.
    """

    def __init__(self, root: Path, target: str, at: int | None = None, fault: "Fault | None" = None) -> None:
        self.root, self.target, self.at, self.fault = f"{os.path.realpath(root)}/", target, at, fault
        self.names: list[str] = []
        self.is_paused = False  # while a fault itself changes the disk
        self.open = io.open

    def install(self) -> None:
        """Never taken back: the process that is tested ends soon."""
        for name, takes_space in FUNCTIONS.items():
            setattr(os, name, self._wrapped(getattr(os, name), name, takes_space))
        io.open = builtins.open = self._open  # type: ignore[assignment]

    def reached(self, name: str, path: str | None, takes_space: bool) -> None:
        if path is None or self.is_paused or not path.startswith(self.root):
            return
        number = len(self.names)
        self.names.append(f"{name} {os.path.relpath(path, self.root)}")
        if self.fault is not None and self.at is not None and number >= self.at:
            self.is_paused = True
            try:
                self.fault(self, number == self.at, takes_space)
            finally:
                self.is_paused = False

    def _wrapped(self, function: Callable[..., Any], name: str, takes_space: bool) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            changes = name != "open" or (args[1] if len(args) > 1 else options.get("flags", 0)) & WRITING
            if changes:
                self.reached(name, _path(args[0], options), takes_space)
            return function(*args, **options)

        return call

    def _open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self.open(file, mode, *args, **options)
        path = _path(file, {})
        if not isinstance(file, int):
            self.reached("open", path, True)
        opened = self.open(file, mode, *args, **options)
        return _Written(opened, self, path) if path is not None and path.startswith(self.root) else opened


class _Written:
    """A file whose writes are points."""

    def __init__(self, file: Any, points: Points, path: str) -> None:
        self._file, self._points, self._path = file, points, path

    def write(self, data: Any) -> int:
        self._points.reached("write", self._path, True)
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._points.reached("half of", self._path, True)
        self._file.write(data[half:])
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self._points.reached("truncate", self._path, False)
        length: int = self._file.truncate(size)
        return length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def _path(file: Any, options: dict[str, Any]) -> str | None:
    """Where a file, or an open one, lies; None if it lies nowhere."""
    try:
        if isinstance(file, int):
            return str(Path(f"/proc/self/fd/{file}").readlink())
        within = options.get("dir_fd")
        folder = Path.cwd() if within is None else Path(f"/proc/self/fd/{within}").readlink()
        return str(folder / os.fsdecode(file))
    except (OSError, TypeError):
        return None


# --- the faults -----------------------------------------------------------------------------------------------------

# Called at the point and at all later ones: points, whether it is the first, whether what follows takes space.
Fault = Callable[[Points, bool, bool], None]


def killed(_points: Points, _first: bool, _takes_space: bool) -> None:
    """As by `kill -9`, by the system without memory, or by a power failure."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(_points: Points, _first: bool, takes_space: bool) -> None:
    """The disk is full from now on."""
    if takes_space:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_once(_points: Points, first: bool, takes_space: bool) -> None:
    """The disk is full for a moment: somebody else frees space at once."""
    if first and takes_space:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(_points: Points, _first: bool, _takes_space: bool) -> None:
    """The file system is read-only from now on, as after a hardware error."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def interrupted(_points: Points, first: bool, _takes_space: bool) -> None:
    """Ctrl-C."""
    if first:
        signal.raise_signal(signal.SIGINT)


def removed(points: Points, first: bool, _takes_space: bool) -> None:
    """Somebody removes the folder that is being written."""
    if first:
        shutil.rmtree(Path(points.root) / points.target, ignore_errors=True)
