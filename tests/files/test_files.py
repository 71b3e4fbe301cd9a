"""A file is there whole or not at all, and nothing else is left beside it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import DataError, TrainingError
from qattrain.files import read_bounded, write_atomically


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with options under the test's folder; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", options, "qattrain-test", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def refused(path: Path, data: bytes, *texts: str) -> None:
    with pytest.raises(TrainingError) as caught:
        write_atomically(path, data)
    assert len(str(caught.value).splitlines()) == 1
    for text in (str(path), "--runs-dir", *texts):
        assert text in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\0\xff" * 100_000])
def test_bytes_are_written_and_overwritten_exactly(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pt"
    for content in (b"older and longer" * 100_000, data):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_as_readable_as_any_other_of_the_user(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"x")
        assert os.umask(0o022) == 0o022  # looking at the mask did not change it
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_data_reach_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
    write_atomically(tmp_path / "file", b"x")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    if isinstance(error, OSError):
        refused(path, b"new", "No space left on device")
    else:
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_a_file_as_folder_and_a_folder_as_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "none" / "a", b"x", "No such file or directory")
    refused(tmp_path / "file" / "a", b"x", "Not a directory")
    refused(tmp_path / "folder", b"x", "directory")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=64k")
    write_atomically(folder / "file", b"old")
    refused(folder / "file", bytes(200_000), "No space left on device")
    assert (folder / "file").read_bytes() == b"old"
    assert list(folder.iterdir()) == [folder / "file"]


def test_a_read_only_disk_is_refused(mounted: Callable[[str], Path]) -> None:
    refused(mounted("ro") / "file", b"x", "Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(tmp_path / "file", b"x", "Permission denied")
    assert not list(tmp_path.iterdir())


def test_a_run_on_a_full_or_read_only_disk_is_one_line_and_leaves_nothing_half_written(
    mounted: Callable[[str], Path], main: Callable[..., Any]
) -> None:
    common = ("train", "--dataset", "digits", "--epochs", 1, "--limit-train", 64, "--threads", 1)
    for options, model, reason in (("size=64k", "lenet", "No space left"), ("ro", "lenet-nano", "Read-only")):
        folder = mounted(options)
        result = main(*common, "--model", model, "--runs-dir", folder / "runs")
        assert result.rc == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert reason in last
        assert "Traceback" not in result.stderr
        assert not [path for path in folder.rglob("*") if path.name != "runs"]


def test_what_is_not_a_regular_file_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    full = tmp_path / "full"
    full.write_bytes(b"12345")
    for path, reason in (
        (pipe, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "directory"),
        (full, "more than 4 bytes"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(DataError, match=f"^cannot read the thing.*{reason}.*; give another$"):
            read_bounded(path, 4, DataError, "the thing", "give another")
    assert read_bounded(full, 5, DataError, "the thing", "give another") == b"12345"
