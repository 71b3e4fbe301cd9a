"""Compiled kernels are executed, so a library is loaded only if this program wrote it, whole, for this user."""

import functools
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import ConfigError
from qattrain.files import compiler as compiling
from qattrain.files.kept import SEAL_BYTES, sealed
from qattrain.quant import native

PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) {{ FILE *file = fopen("{mark}", "w"); if (file) fclose(file); }}
"""
TRAIN = ("train", "--dataset", "digits", "--model", "lenet-nano", "--epochs", 1, "--limit-train", 64, "--threads", 1)
SMALL = "kernel.c"  # compiled in milliseconds, unlike native.c


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    if compiling.find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_library", functools.cache(native._library.__wrapped__))
    return tmp_path / "cache" / "qattrain"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """Loads a library of one small function, and returns what that gives: 1234."""
    (tmp_path / SMALL).write_text("int answer(void) { return 1234; }\n")
    monkeypatch.setattr(compiling, "files", lambda _package: tmp_path)
    monkeypatch.setattr(compiling, "FLAGS", ("-O1", "-fPIC"))

    def answer() -> int:
        return int(compiling.shared_library("a.package", SMALL, ()).answer())

    return answer


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for every library that is compiled."""
    made: list[str] = []
    original = compiling._make_library
    monkeypatch.setattr(compiling, "_make_library", lambda *args: (made.append(args[3].name), original(*args))[1])
    return made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    compiling._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


def only_library(cache: Path) -> Path:
    (library,) = (cache / "kernels").iterdir()
    return library


def planted(mark: Path, folder: Path) -> bytes:
    """A library that makes the file `mark` when it is loaded."""
    source, library = folder / "planted.c", folder / "planted.so"
    source.write_text(PLANTED.format(mark=mark))
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    content = library.read_bytes()
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(library)], check=True)
    mark.unlink()  # it works
    return content


def test_a_planted_or_truncated_library_is_neither_run_nor_a_crash(
    cache: Path, tmp_path: Path, qattrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    quick = tmp_path / "quick-cc"  # the last -O counts
    quick.write_text(f'#!/bin/sh\nexec {compiling.find_compiler()} "$@" -O0\n')
    quick.chmod(0o755)
    monkeypatch.setenv("CC", str(quick))
    kernels = cache / "kernels"

    def prepare() -> None:
        native._library.cache_clear()
        native.prepare()

    prepare()
    assert kernels.stat().st_mode & 0o777 == 0o700
    libraries = sorted(kernels.iterdir())
    assert [path.suffix for path in libraries] == [".so", ".so"]
    intact = [path.read_bytes() for path in libraries]
    bad = planted(tmp_path / "ran", tmp_path)
    libraries[0].write_bytes(bad)
    libraries[1].write_bytes(intact[1][:20_000])
    done = qattrain(*TRAIN, "--set", "train.compile='on'", "--runs-dir", tmp_path / "runs")
    assert done.rc == 0, done
    assert not (tmp_path / "ran").exists()
    assert [path.read_bytes() for path in libraries] == intact  # compiled anew
    kernels.chmod(0o777)  # anybody may have written this, and sealed it
    for path in libraries:
        path.write_bytes(sealed(bad))
    prepare()
    (line,) = said()
    assert "compiled kernels are not kept in" in line
    assert "mode 777" in line
    assert not (tmp_path / "ran").exists()
    assert all(path.read_bytes() == sealed(bad) for path in libraries)  # left as it was found


def test_a_library_is_compiled_once_and_loaded_from_a_copy(
    cache: Path, load: Callable[[], int], compilations: list[str]
) -> None:
    assert [load(), load()] == [1234, 1234]
    library = only_library(cache)
    assert compilations == [library.name]
    assert library.stat().st_mode & 0o777 == 0o600
    maps = Path("/proc/self/maps")  # of Linux: the files that are mapped into memory
    assert not maps.exists() or str(library) not in maps.read_text()


def test_every_bit_flip_and_every_cut_is_noticed(
    cache: Path, load: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    library = only_library(cache)
    intact = library.read_bytes()
    rng = random.Random(1)
    damaged = [intact[: rng.randrange(len(intact))] for _ in range(10)] + [b""]
    for bit in rng.sample(range(8 * len(intact)), 40):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    compiled: list[bool] = []

    def noticed(*_args: Any) -> Any:
        compiled.append(True)
        raise OSError("compiled anew")

    monkeypatch.setattr(compiling, "_make_library", noticed)
    for content in damaged:
        library.write_bytes(content)
        with pytest.raises(ConfigError, match="compiled anew"):
            load()
    assert len(compiled) == len(damaged)
    library.write_bytes(intact)
    assert load() == 1234


def test_a_damaged_library_is_replaced(cache: Path, load: Callable[[], int], compilations: list[str]) -> None:
    load()
    library = only_library(cache)
    intact = library.read_bytes()
    library.write_bytes(intact[:-SEAL_BYTES])  # as an older version wrote it
    assert [load(), load()] == [1234, 1234]
    assert len(compilations) == 2
    assert library.read_bytes() == intact


def test_a_library_that_others_may_write_or_a_link_is_compiled_anew(
    cache: Path, tmp_path: Path, load: Callable[[], int], compilations: list[str]
) -> None:
    load()
    library = only_library(cache)
    library.chmod(0o666)
    assert load() == 1234
    library.rename(tmp_path / "elsewhere")
    library.symlink_to(tmp_path / "elsewhere")
    assert load() == 1234
    assert len(compilations) == 3
    assert not library.is_symlink()


@pytest.mark.parametrize("kind", ["group-writable", "of another user", "a link", "a file"])
def test_a_folder_that_is_not_the_users_alone_is_left_alone_and_told_once(
    kind: str, cache: Path, tmp_path: Path, load: Callable[[], int], compilations: list[str], said: Any
) -> None:
    kernels = cache / "kernels"
    kernels.mkdir(parents=True)
    if kind == "group-writable":
        kernels.chmod(0o770)
        reason = "others may write to it (mode 770)"
    elif kind == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root may give a folder away")
        os.chown(kernels, 12345, -1)
        reason = "it belongs to user 12345"
    elif kind == "a link":
        kernels.rename(tmp_path / "elsewhere")
        kernels.symlink_to(tmp_path / "elsewhere")
        reason = "it is a symbolic link"
    else:
        kernels.rmdir()
        kernels.write_text("in the way")
        reason = "it is not a folder"
    assert [load(), load()] == [1234, 1234]
    assert len(compilations) == 2
    assert kernels.is_file() or not list(kernels.iterdir())
    (line,) = said()
    assert reason in line
    assert str(kernels) in line


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    cache: Path, tmp_path: Path, load: Callable[[], int], said: Any
) -> None:
    (tmp_path / "cache").write_text("in the way of the cache itself")
    assert [load(), load()] == [1234, 1234]
    assert said() == []
    assert not cache.exists()
