"""Files that are there whole or not at all, and where this program keeps its own."""

import contextlib
import os
import tempfile
from pathlib import Path

from qattrain.errors import TrainingError, system_errors


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, flush it to the disk, and rename: never a partial file.

    Raises TrainingError with the system's reason (read-only folder, full disk); nothing is left behind then.
    """
    with system_errors(TrainingError, f"cannot write {path}", "free space there, or choose another --runs-dir"):
        replace_files(path.parent, {path.name: data})


def replace_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` (name -> content) into `folder`; none gets its name before all of them are on the disk.

    Raises OSError; nothing is left behind then.
    """
    staged: dict[str, str] = {}
    try:
        for name, data in files.items():
            handle, staged[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(staged[name], 0o666 & ~_umask())  # noqa: PTH101 mkstemp makes it private; a result is for its readers
        for name, temporary in staged.items():
            os.replace(temporary, folder / name)  # noqa: PTH105
    finally:
        for temporary in staged.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108 gone already if the rename went through


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def default_data_dir() -> Path:
    """Where datasets are kept when neither `--data-dir` nor QATTRAIN_DATA_DIR says."""
    return cache_dir()


def cache_dir() -> Path:
    """This program's folder in the user's cache: datasets, compiled kernels."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "qattrain"
