"""Half-made files of the dead go, those of the living stay, and a run has one writer."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import TrainingError
from qattrain.files import locks, write_atomically
from qattrain.files.locks import folder_lock, is_in_the_making, remove_leftovers, temporary_file, temporary_folder
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint
from qattrain.runs.creation import new_folder, written_by_us


def held_elsewhere(code: str) -> subprocess.Popen[str]:
    """A process that runs the code, says `ready` and waits."""
    waiting = f"{code}\nprint('ready', flush=True)\nimport time; time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_leftovers_are_removed_once_their_owner_is_dead_and_nothing_else_is(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from qattrain.files.locks import temporary_file, temporary_folder\n"
        f"place = Path({str(tmp_path)!r})\n"
        "temporary_file(place, 'last.pt'); (temporary_folder(place, 'run')[1] / 'config.json').touch()\n"
    )
    owner = held_elsewhere(code)
    theirs = set(tmp_path.iterdir())
    assert len(theirs) == 2
    assert all(is_in_the_making(path.name) for path in theirs)
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".last.pt.abcdefgh.tmp").mkdir()
    (tmp_path / ".notes.tmp").touch()
    (tmp_path / "last.pt").touch()
    (tmp_path / ".last.pt.hgfedcba.tmp").symlink_to(tmp_path / "last.pt")
    ours = set(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    write_atomically(tmp_path / "last.pt", b"x")
    assert set(tmp_path.iterdir()) == ours
    kill(owner)
    remove_leftovers(tmp_path, {"last.p", "pt"})
    assert set(tmp_path.iterdir()) == ours
    write_atomically(tmp_path / "last.pt", b"y")  # the next write of the same file removes what was to become it
    assert {path.suffix for path in ours - set(tmp_path.iterdir())} == {".tmp"}
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == ours - theirs
    remove_leftovers(tmp_path / "nowhere")


def test_what_is_taken_for_a_leftover_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = locks.try_lock, []

    def slow(handle: int, *, shared: bool = False) -> bool | None:
        calls.append(handle)
        if len(calls) == 1:  # another process is faster, the first time
            monkeypatch.setattr(locks, "try_lock", original)
            remove_leftovers(tmp_path)
            monkeypatch.setattr(locks, "try_lock", slow)
        return original(handle, shared=shared)

    for make in (temporary_file, temporary_folder):
        calls.clear()
        monkeypatch.setattr(locks, "try_lock", slow)
        handle, path = make(tmp_path, "name")
        assert len(calls) == 2
        assert list(tmp_path.iterdir()) == [path]
        os.close(handle)
        monkeypatch.setattr(locks, "try_lock", original)
        remove_leftovers(tmp_path)
        assert not list(tmp_path.iterdir())


def test_without_locks_everything_works_and_nothing_of_others_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / ".last.pt.abcdefgh.tmp").touch()
    write_atomically(tmp_path / "last.pt", b"x")
    with (
        new_folder(tmp_path, None, "run", lambda folder: (folder / runs.LAST_FILE).touch()) as run_dir,
        written_by_us(run_dir),
        folder_lock(run_dir) as locked,
    ):
        assert locked is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".last.pt.abcdefgh.tmp", "last.pt", "run"]


def test_a_process_killed_while_it_makes_a_run_leaves_nothing_after_the_next_start(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from qattrain.runs.creation import new_folder\n"
        "def fill(folder):\n"
        "    (folder / 'config.json').touch()\n"
        "    print('ready', flush=True)\n"
        "    import time; time.sleep(60)\n"
        f"new_folder(Path({str(tmp_path)!r}), 'mine', '', fill).__enter__()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def make(name: str) -> None:
        with new_folder(tmp_path, name, "", lambda folder: (folder / runs.LAST_FILE).touch()):
            pass

    make("other")
    assert len(list(tmp_path.iterdir())) == 2  # of a process that lives
    assert [run.name for run in runs.list_runs(tmp_path)] == ["other"]
    kill(process)
    make("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]


def test_a_run_that_is_being_written_is_not_resumed(tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    run_dir = tiny(stop_after=1).run_dir
    (run_dir / ".x.tmp").mkdir()
    code = (
        "from pathlib import Path; from qattrain.files.locks import temporary_file\n"
        "from qattrain.runs.creation import written_by_us\n"
        f"run = Path({str(run_dir)!r}); lock = written_by_us(run); lock.__enter__(); temporary_file(run, 'last.pt')\n"
    )
    writer = held_elsewhere(code)
    before = sorted(run_dir.iterdir())
    assert len(before) == 5
    refused = main("train", "--resume", run_dir)
    assert refused.rc == 1
    last = refused.stderr.splitlines()[-1]
    assert (
        last == f"error: the run {run_dir} is being written by another process; wait until that ends, or stop it first"
    )
    assert sorted(run_dir.iterdir()) == before
    kill(writer)
    assert main("train", "--resume", run_dir).rc == 0
    assert load_checkpoint(run_dir / runs.LAST_FILE).finished
    assert sorted(path.name for path in run_dir.iterdir()) == [".x.tmp", "config.json", "last.pt", "metrics.jsonl"]


def test_a_run_is_locked_from_its_first_moment_to_its_last(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path, "run", "", lambda folder: (folder / runs.LAST_FILE).touch()) as run_dir,
        pytest.raises(TrainingError, match="is being written by another process"),
        written_by_us(run_dir),
    ):
        pass
    with written_by_us(run_dir):
        pass
    with pytest.raises(TrainingError, match=r"cannot open the run .*gone"), written_by_us(tmp_path / "gone"):
        pass
