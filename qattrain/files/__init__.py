"""Files that are read within bounds and written completely or not at all, and this program's cache folder."""

import contextlib
import os
import stat
from pathlib import Path

from qattrain.errors import QattrainError, TrainingError, system_errors, write_errors
from qattrain.files.locks import remove_leftovers, temporary_file


def read_bounded(path: Path, most_bytes: int, kind: type[QattrainError], what: str, remedy: str) -> bytes:
    """The content of a regular file of at most `most_bytes` bytes.

    Never waits, as opening a pipe would, and never reads more than allowed, whatever the file claims or becomes while
    it is read. what: names the file in errors, as in `the configuration run.toml`. Raises `kind`, with `remedy` at its
    end, if it cannot be read, is a folder, a device or a pipe, or is larger.
    """
    if "\0" in str(path):
        raise kind(f"cannot read {what}: its name has a null character; {remedy}")
    with (
        system_errors(kind, f"cannot read {what}", remedy),
        open(path, "rb", opener=open_at_once) as file,
    ):
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise kind(f"cannot read {what}: it is not a regular file; {remedy}")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
    if max(len(data), status.st_size) > most_bytes:
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


def replace_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` (name -> content) into `folder`; none gets its final name before all of them are on the disk.

    A name may begin with a subfolder, which must exist. Also removes what a process left behind that was killed while
    it wrote the same files. Raises OSError and then leaves nothing behind.
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
                staged[name].chmod(0o666 & ~umask())  # it was made private; others may read results
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
