"""What a person sees: on a terminal of any size, on a simple one, in a file, with and without colours."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qattrain.report.console import Console, Table, age, laid_out, percent

SMALL = ["--model", "lenet-nano", "--dataset", "digits", "--limit-train", "200", "--threads", "1"]
TRAIN = ["train", *SMALL, "--batch-size", "8", "--epochs"]
RED = "\x1b[1;31m"
COLOR = re.compile(r"\x1b\[[\d;]*\b(3[0-7]|38|9[0-7])\b[\d;]*m")
LOUD = "38;2;249;38;114"  # rich's own red of a bar


def on_a_terminal(
    arguments: list[str], cwd: Path, columns: int = 80, lines: int = 24, rc: int = 0, **env: str
) -> list[str]:
    """All that a command writes to a terminal of that size, in the pieces in which it comes."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "qattrain", *arguments],
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env=inherited | {"TERM": "xterm-256color"} | env,
    )
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # on Linux, the other end is closed
            break
        if not piece:
            break
        pieces.append(piece.decode(errors="replace"))
    os.close(leader)
    assert process.wait() == rc, "".join(pieces)
    return pieces


def plain(text: str) -> str:
    """Without escape sequences."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_live_view_loads_aloud_prints_each_epoch_once_and_keeps_one_bar(tmp_path: Path, columns: int) -> None:
    epochs = 26  # more than the screen has lines
    pieces = on_a_terminal([*TRAIN, str(epochs), "--val-split", "40"], tmp_path, columns)
    screen = "".join(pieces)
    assert "loading torch" in plain(screen).splitlines()[0]
    shown = plain(screen)
    rows = [line for line in re.split(r"[\r\n]+", shown) if re.match(r" *\d+  +\d\.\d{4}", line)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, epochs + 1))
    assert {row.count("%") for row in rows} == {2}  # of the test images and of the validation images
    for word in ("train", "loss", "test", "val", "accuracy", "images/s", *(["time"] if columns > 60 else [])):
        assert word in shown, word
    bars = re.findall(r"epoch \d+ of 26 .*?left", shown)
    assert bars
    assert all(len(bar) <= columns for bar in bars)
    assert any(re.search(r"loss \d+\.\d{4}  [\d,]+ images/s +\d+:\d\d left", bar) for bar in bars), bars[:5]
    assert LOUD not in screen
    assert "\x1b[1m" in screen  # the accuracy stands out
    assert max(len(line) for line in re.split(r"[\r\n]+", shown) if "qattrain eval" not in line) <= columns
    assert "saved in" in shown.rpartition("test accuracy")[2]


def test_a_simple_terminal_gets_a_line_at_once_and_one_per_epoch(tmp_path: Path) -> None:
    pieces = on_a_terminal([*TRAIN, "3"], tmp_path, TERM="dumb")
    assert pieces[0].startswith("loading")
    screen = "".join(pieces)
    assert "\x1b" not in screen
    assert [len(re.findall(rf"epoch +{epoch}  train loss", screen)) for epoch in (1, 2, 3)] == [1, 1, 1]


def test_colours_only_where_they_are_wanted(tmp_path: Path) -> None:
    wrong = ["train", "--bits", "9"]
    assert "".join(on_a_terminal(wrong, tmp_path, rc=2)).startswith(f"{RED}error:")
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "".join(on_a_terminal(wrong, tmp_path, rc=2, **env)).startswith("error: ")
    screen = "".join(on_a_terminal([*TRAIN, "1"], tmp_path, NO_COLOR="1"))
    assert not COLOR.search(screen)
    assert "test accuracy" in screen


def test_a_long_error_is_wrapped_between_words_on_a_terminal_only(tmp_path: Path, qattrain: Callable[..., Any]) -> None:
    arguments = ["train", "--set", "train.lrr=1"]
    lines = plain("".join(on_a_terminal(arguments, tmp_path, 60, rc=2))).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert " ".join(lines) == qattrain(*arguments).error


def test_results_go_to_stdout_progress_to_stderr(tmp_path: Path, qattrain: Callable[..., Any]) -> None:
    trained = qattrain(*TRAIN, 1)
    assert trained.stdout.startswith("test accuracy ")
    assert "epoch   1" in trained.stderr
    assert "lenet-nano-w4a4-lsq-digits-s0" in qattrain("runs").stdout
    assert "epoch" not in trained.stdout.partition("after 1 epoch")[2]
    assert "\x1b" not in trained.stdout + trained.stderr
    (tmp_path / "head").touch()
    with subprocess.Popen(
        [sys.executable, "-m", "qattrain", "runs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as cut:
        assert cut.stdout is not None
        assert cut.stderr is not None
        cut.stdout.close()  # as `head` does
        assert cut.stderr.read() == b""


def test_an_encoding_without_our_signs_gets_others(
    tmp_path: Path, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tiny({"train.epochs": 1}).run_dir
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run(
        [sys.executable, "-m", "qattrain", "inspect", run_dir], cwd=tmp_path, capture_output=True, check=True
    )
    text = done.stdout.decode("ascii")
    assert "?" not in text
    assert re.search(r"[#%*=+]{2}", text)  # the histograms


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of a comparison and a sweep."""
    folder = tmp_path_factory.mktemp("project")
    grid = ["--bits", "2,32", "--quantizer", "lsq,affine", "--ptq", "8", "--name", "study", "--workers", "1"]
    for line in (["compare", "fp32", "ptq", "qat", *SMALL, "--epochs", "1"], ["sweep", *SMALL, "--epochs", "1", *grid]):
        subprocess.run([sys.executable, "-m", "qattrain", *line], cwd=folder, check=True, capture_output=True)
    return folder


NARROW = {
    "compare": ["compare", "fp32", "ptq", "qat", *SMALL, "--epochs", "1"],
    "runs": ["runs"],
    "sweep": ["sweep", "--name", "study", "--report-only"],
    "inspect": ["inspect", "lenet-nano-w4a4-lsq-digits-s0"],
    "eval": ["eval", "lenet-nano-w4a4-lsq-digits-s0"],
    "explain": ["explain"],
}


def words(text: str) -> list[str]:
    """Of a table, without its rules and without the ages of runs, which grow."""
    return [word for word in re.sub(r"\d+ (s|min|h)\b", "", text).split() if set(word) != {"─"}]


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("name", NARROW)
def test_every_table_is_whole_on_every_terminal(
    project: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, columns: int
) -> None:
    monkeypatch.chdir(project)
    wide = main(*NARROW[name]).stdout
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = main(*NARROW[name]).stdout
    tables = [line for line in narrow.splitlines() if not re.search(r"[a-z]:|saved in|accuracy \d", line)]
    assert max(map(cell_len, tables)) <= columns
    missing = [word for word in words(wide) if word not in words(narrow)]
    assert set(missing) <= {"name", "method"}  # the heading of what stands on a line of its own
    assert "…" not in narrow


def test_a_real_terminal_of_60_columns_shows_what_a_file_holds(project: Path, qattrain: Callable[..., Any]) -> None:
    screen = plain("".join(on_a_terminal(["runs"], project, 60)))
    assert set(words(qattrain("runs", cwd=project).stdout)) - set(words(screen)) == {"name"}


@given(data=st.data(), width=st.integers(20, 200))
def test_no_cell_of_any_table_is_ever_cut(data: Any, width: int) -> None:
    words = st.text("abcdefghij0123456789.,%", min_size=1, max_size=12)
    columns = data.draw(st.lists(words, min_size=1, max_size=9, unique=True))
    rows = data.draw(st.lists(st.tuples(*[words] * len(columns)), min_size=1, max_size=4))
    keys = data.draw(st.integers(1, len(columns)))
    lines = [line.plain for line in laid_out(Table("", columns, rows, keys=keys), width)]
    assert max(map(cell_len, lines)) <= max(width, sum(25 for _ in range(keys)))
    shown = " ".join(lines).split()
    assert [cell for row in rows for cell in row if cell not in shown] == []


def test_the_stand_in_for_mnist_is_announced_in_a_box(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    Console(as_json=False).notice("MNIST is not here")
    out, err = capsys.readouterr()
    assert out == ""
    assert "NOTICE" in err
    assert "MNIST is not here" in err


def test_json_has_stdout_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.text("for people")
    console.table(Table("", ["a"], [["1"]]))
    console.result({"x": 1})
    out, err = capsys.readouterr()
    assert out == '{"x": 1}\n'
    assert "for people" in err


def test_not_a_number_never_becomes_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Console(as_json=True).result({"x": float("nan")})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (90_000, "1 d")]
)
def test_ages_are_whole_units_rounded_down(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_fractions_are_shown_as_percent() -> None:
    assert percent(0.99434) == "99.43 %"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "qattrain", "runs"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write: ")
    assert done.stderr.count("\n") == 1
