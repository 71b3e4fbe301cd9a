"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from qattrain.errors import TrainingError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, flush it to the disk, and rename: never a partial file.

    Raises TrainingError with the system's reason (read-only folder, full disk); nothing is left behind then.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 mkstemp makes it private; a result is for its readers
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingError(f"cannot write {path}: {reason}; free space there, or choose another --runs-dir") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108 gone already if the rename went through


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
