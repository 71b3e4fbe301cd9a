"""Files that are read within bounds and written completely or not at all, and this program's cache folder."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qattrain.errors import QattrainError, TrainingError, system_errors, write_errors
from qattrain.files.locks import remove_leftovers, temporary_file


@contextlib.contextmanager
def open_regular(path: Path, kind: type[QattrainError], what: str, remedy: str) -> Iterator[BinaryIO]:
    """A file that a stranger may have named, to read a part of it; `read_bounded` reads all.

    Never waits, as opening a pipe would. what: names the file in errors, as in `the configuration run.toml`. Raises
    `kind`, with `remedy` at its end, if it cannot be read, or is a folder, a device or a pipe.
    """
    if "\0" in str(path):
        raise kind(f"cannot read {what}: its name has a null character; {remedy}")
    with (
        system_errors(kind, f"cannot read {what}", remedy),
        open(path, "rb", opener=open_at_once) as file,
    ):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise kind(f"cannot read {what}: it is not a regular file; {remedy}")
        yield file


def read_bounded(path: Path, most_bytes: int, kind: type[QattrainError], what: str, remedy: str) -> bytes:
    """The content of a regular file of at most `most_bytes` bytes; as `open_regular`.

    Never reads more than allowed, whatever the file claims or becomes while it is read. Raises `kind` if it is larger.
    """
    with open_regular(path, kind, what, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most_bytes + 1) if size <= most_bytes else b""
    if max(len(data), size) > most_bytes:
        raise kind(f"cannot read {what}: it has more than {most_bytes:,} bytes, the most allowed; {remedy}")
    return data


def open_at_once(path: str, flags: int) -> int:
    """Opens a pipe nobody writes to without waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, flush it to the disk, and rename it: never a partial file.

    Raises TrainingError with the system's reason (read-only folder, full disk) and then leaves nothing behind.
    """
    with write_errors(TrainingError, f"cannot write {path}", "choose another --runs-dir"):
        replace_files(path.parent, {path.name: data})


def replace_files(folder: Path, files: dict[str, bytes], mode: int = 0o666) -> None:
    """Write `files` (name -> content) into `folder`; none gets its final name before all of them are on the disk.

    A name may begin with a subfolder, which must exist. Also removes what a process left behind that was killed while
    it wrote the same files. mode: of the files, less the user's umask. Raises OSError and then leaves nothing behind.
    """
    staged: dict[str, Path] = {}
    try:
        with contextlib.ExitStack() as open_files:  # closed, and so unlocked, once the files have their names
            for name, data in files.items():
                place = folder / name
                remove_leftovers(place.parent, {place.name})
                handle, staged[name] = temporary_file(place.parent, place.name)
                file = open_files.enter_context(os.fdopen(handle, "wb"))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                staged[name].chmod(mode & ~umask())  # it was made private; others may read results
            for name, path in staged.items():
                path.replace(folder / name)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)  # gone if the rename succeeded


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_dir() -> Path:
    """This program's folder in the user's cache: for compiled kernels, and for datasets without `--data-dir`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "qattrain"
