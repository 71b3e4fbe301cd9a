"""SIGTERM and SIGHUP save and exit, as Ctrl-C does; what they interrupted equals what nobody interrupted."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint
from qattrain.training import run as experiment

SLOW = {"data.limit_train": 1400, "train.batch_size": 1, "train.epochs": 1}
ARGUMENTS = ["train", "--dataset", "digits", "--model", "lenet-nano", "--threads", "1", "--epochs", "1"]
ARGUMENTS += ["--limit-train", "1400", "--batch-size", "1"]
COMMAND = [sys.executable, "-m", "qattrain", *ARGUMENTS]


def until_it_trains(folder: Path) -> Path:
    """The run's folder, a while after it is there."""
    deadline = time.monotonic() + 120
    while not (found := list((folder / "runs").glob("[!.]*"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    return found[0]


@pytest.fixture
def assert_resumes(
    tiny: Callable[..., Any], silent_display: Any, assert_same: Callable[..., None], tmp_path: Path
) -> Callable[[Path], None]:
    """The run was saved in mid-epoch, and resumed it equals the one that nobody stopped."""

    def check(run_dir: Path) -> None:
        state = load_checkpoint(run_dir / runs.LAST_FILE).trainer
        assert state is not None
        assert 0 < state["step"] < 1400
        experiment.resume(str(run_dir), tmp_path, tmp_path, silent_display(), {}, None)
        whole = tiny(SLOW, runs_dir=tmp_path / "whole").run_dir
        one, other = (load_checkpoint(path / runs.LAST_FILE) for path in (whole, run_dir))
        assert_same(one.model, other.model)
        assert_same(one.trainer, other.trainer, ignore=("seconds",))
        assert sorted(path.name for path in run_dir.iterdir()) == ["config.json", "last.pt", "metrics.jsonl"]

    return check


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_told_to_end_is_saved_and_says_so(
    tmp_path: Path, assert_resumes: Callable[[Path], None], number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run_dir = until_it_trains(tmp_path)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert f"stopped by {number.name} and saved; to continue:  qattrain train --resume {run_dir.name}" in stdout
    assert "Traceback" not in stderr
    assert_resumes(run_dir)


def test_a_run_whose_terminal_is_closed_is_saved(tmp_path: Path, assert_resumes: Callable[[Path], None]) -> None:
    child, terminal = pty.fork()
    if child == 0:  # its output, too, goes to a terminal that is gone
        os.chdir(tmp_path)
        os.execv(sys.executable, COMMAND)
    said = b""
    while b"images/s" not in said:  # in mid-epoch
        said += os.read(terminal, 1000)  # fails if the process ends before
    run_dir = until_it_trains(tmp_path)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert_resumes(run_dir)


def test_nohup_is_respected(tmp_path: Path) -> None:
    arguments = [*COMMAND[:-4], "--limit-train", "300", "--batch-size", "1"]
    process = subprocess.Popen(["nohup", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run_dir = until_it_trains(tmp_path)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert load_checkpoint(run_dir / runs.LAST_FILE).finished


def test_a_command_that_has_nothing_to_save_says_why_it_ended(
    main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code, words in (
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ):
        monkeypatch.setattr("qattrain.runs.folder.newest_runs", lambda *_, n=number: signal.raise_signal(n))
        before = signal.getsignal(number)
        done = main("runs", "--runs-dir", tmp_path)
        assert (done.rc, done.stdout) == (code, "")
        assert done.stderr.strip() == f"error: {words}; the last checkpoint is kept"
        assert signal.getsignal(number) is before


def test_ctrl_c_while_something_is_imported_is_one_line_and_130(tmp_path: Path) -> None:
    """An import that is interrupted may fail in any way, or go on."""
    (tmp_path / "slow.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n"
        "    raise ImportError('half of it is there')\n"
    )
    for begin in ("import slow", "from qattrain import cli; cli.COMMANDS['runs'].__globals__['asdict'] = None"):
        code = (
            "import sys\n"
            f"sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['qattrain', 'runs']\n"
            "from qattrain import __main__ as entry\n"
        )
        if begin == "import slow":  # while the command line itself is loaded
            code += "import builtins; sys.modules['qattrain.commands.bench'] = None\n"
            code = code.replace("sys.modules['qattrain.commands.bench'] = None", "real = builtins.__import__")
            code += (
                "def slowly(name, *rest):\n"
                "    if name == 'qattrain.commands': builtins.__import__ = real; import slow\n"
                "    return real(name, *rest)\n"
                "builtins.__import__ = slowly\n"
            )
        else:  # while a command loads what it needs
            code += "import qattrain.runs.folder as f\nf.newest_runs = lambda *_: __import__('slow')\n"
        done = subprocess.run(
            [sys.executable, "-c", f"{code}entry.main()"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 130
        assert [line for line in done.stderr.splitlines() if line] in (
            ["error: interrupted"],
            ["error: interrupted; the last checkpoint is kept"],
        )
