"""What a person sees: a live table on a terminal, one plain line per epoch elsewhere, a notice nobody can miss."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qattrain.report.console import Console, Table, age, percent

TRAIN = [sys.executable, "-m", "qattrain", "train", "--model", "lenet-nano", "--batch-size", "8", "--epochs", "2"]


def seen_on_a_terminal(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    """Everything `command` writes to a terminal of 100 columns."""
    leader, follower = pty.openpty()
    sizes = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, cwd=cwd, env=env | sizes)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # on Linux, the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    assert process.wait() == 0
    return b"".join(chunks).decode()


def test_a_terminal_shows_a_growing_table_and_a_bar_with_loss_and_time_left(tmp_path: Path) -> None:
    screen = seen_on_a_terminal([*TRAIN, "--dataset", "digits"], tmp_path, dict(os.environ, OMP_NUM_THREADS="1"))
    for word in ("train loss", "test loss", "test accuracy", "images/s", "time", "left"):
        assert word in screen, word
    # The screen is drawn eight times per second: at least one of two epochs, about a second each, is seen.
    assert re.search(r"epoch [12] of 2", screen)
    assert re.search(r"/\d+\s+loss \d\.\d{4}", screen)
    assert "saved in" in screen.rpartition("test accuracy")[2]


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
