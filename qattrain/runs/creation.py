"""A run is made whole or not at all, and one process at a time writes into it. Needs no torch.

A new run is prepared in a hidden folder beside its place, and gets its name once its first checkpoint is on the disk.
What a process leaves behind that is killed before that is removed when the next run starts there.
"""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from qattrain.errors import ConfigError, QattrainError, TrainingError, write_errors
from qattrain.files import umask
from qattrain.files.locks import folder_lock, remove_leftovers, temporary_folder
from qattrain.runs.folder import LAST_FILE

ELSEWHERE = "choose another --runs-dir"
LONGEST_HINT = 100  # of the run's name in the hidden folder's, which is not to be too long for the file system


@contextlib.contextmanager
def new_folder(runs_dir: Path, name: str | None, default: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """Make a new run folder, locked until the end: `name`, or the first of `default`, `default-2`, ... that is free.

    fill: writes everything that makes the folder a run; if it fails, nothing is left. Raises ConfigError if `name`
    exists, TrainingError if the folder cannot be made.
    """
    failed = f"cannot make a run folder in {runs_dir}"
    if runs_dir.exists() and not runs_dir.is_dir():
        raise TrainingError(f"{failed}: it is a file; {ELSEWHERE}")
    with write_errors(TrainingError, failed, ELSEWHERE):
        runs_dir.mkdir(parents=True, exist_ok=True)
        if name is not None and os.path.lexists(runs_dir / name):
            raise _exists(runs_dir / name)
        remove_leftovers(runs_dir)
        handle, prepared = temporary_folder(runs_dir, (name or default)[:LONGEST_HINT])
    try:
        try:
            fill(prepared)
        except QattrainError as error:  # the user knows nothing of the hidden folder
            raise type(error)(str(error).replace(str(prepared), str(runs_dir / (name or default)))) from None
        with write_errors(TrainingError, failed, ELSEWHERE):
            prepared.chmod(0o777 & ~umask())
            run_dir = _named(prepared, runs_dir, name, default)
        yield run_dir
    finally:
        shutil.rmtree(prepared, ignore_errors=True)  # gone if it got its name
        os.close(handle)


def _named(prepared: Path, runs_dir: Path, name: str | None, default: str) -> Path:
    """Give the folder the first free name."""
    for number in itertools.count(1):
        run_dir = runs_dir / (name or (default if number == 1 else f"{default}-{number}"))
        try:
            if os.path.lexists(run_dir):  # renaming would replace an empty folder
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            prepared.rename(run_dir)  # fails if another process has just made a run of that name
            return run_dir
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if name is not None:
                raise _exists(run_dir) from None
    raise AssertionError(prepared)


def _exists(run_dir: Path) -> ConfigError:
    if (run_dir / LAST_FILE).is_file():
        return ConfigError(
            f"the run {run_dir} exists; choose another --name, or resume it with --resume {run_dir.name}"
        )
    return ConfigError(f"{run_dir} exists and is no run: it holds no {LAST_FILE}; remove it, or choose another --name")


@contextlib.contextmanager
def written_by_us(run_dir: Path, what: str = "the run") -> Iterator[None]:
    """Hold the lock of a run, and remove what a process left in it that was killed while it wrote.

    what: for messages. Raises TrainingError if another process writes into the run.
    """
    with contextlib.ExitStack() as stack:
        with write_errors(TrainingError, f"cannot open {what} {run_dir}", ELSEWHERE):
            locked = stack.enter_context(folder_lock(run_dir))
        if locked is False:
            raise TrainingError(
                f"{what} {run_dir} is being written by another process; wait until that ends, or stop it first"
            )
        remove_leftovers(run_dir)
        remove_leftovers(run_dir.parent)
        yield
