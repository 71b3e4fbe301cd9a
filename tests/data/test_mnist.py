"""The real MNIST, if it is available: found without a notice, learned in seconds, evaluated to the same number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.data import choose_dataset


def test_auto_picks_mnist_without_a_notice(mnist_dir: Path) -> None:
    assert choose_dataset(mnist_dir) == ("mnist", None)


def test_one_short_epoch_at_4_bits_learns_the_digits_and_evaluates_to_the_same_number(
    mnist_dir: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QATTRAIN_DATA_DIR", str(mnist_dir))
    place = ("--runs-dir", tmp_path / "runs", "--json")
    done = main("train", "--bits", 4, "--epochs", 1, "--limit-train", 6000, "--threads", 1, *place)
    assert done.rc == 0, done
    assert "NOTICE" not in done.stderr
    trained = json.loads(done.stdout)
    assert (trained["dataset"], trained["bits"], trained["act_bits"]) == ("mnist", 4, 4)
    assert trained["test_accuracy"] > 0.9
    evaluated = json.loads(main("eval", trained["run_dir"], *place).stdout)
    assert evaluated["total"] == 10_000
    assert evaluated["accuracy"] == evaluated["correct"] / 10_000 == trained["test_accuracy"]
    assert evaluated["loss"] == trained["test_loss"]
