"""What all tests share: an environment of their own, experiments of a second, the command line, the real MNIST."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from qattrain.config import ExperimentConfig, parse_config
from qattrain.config.sources import merge
from qattrain.training import run as experiment
from qattrain.training.session import RunResult

REPOSITORY = Path(__file__).parents[1]
ASKED_DATA_DIR = os.environ.get("QATTRAIN_DATA_DIR")  # read before the tests' own environment hides it
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

# Deadlines measure the machine, not the code.
hypothesis.settings.register_profile("qattrain", deadline=None)
hypothesis.settings.load_profile("qattrain")


def pytest_sessionstart() -> None:
    torch.set_num_threads(1)
    # As in a terminal, also where the tests run in the background, or under nohup: subprocesses inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting and no cached dataset of the user reaches a test, nor a subprocess it starts."""
    for name in ("QATTRAIN_DATA_DIR", "QATTRAIN_RUNS_DIR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(USER_CACHE / "matplotlib")))  # its fonts stay
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


class SilentDisplay:
    """A display that shows nothing, counts what it was told of, and may press Ctrl-C after a number of steps."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps, self.interrupt_at = 0, interrupt_at
        self.records: list[dict[str, Any]] = []
        self.warnings: list[tuple[int, str]] = []  # with the number of epochs before

    def on_start(self, *_args: object) -> None: ...

    def on_step(self, *_args: object) -> None:
        self.steps += 1
        if self.steps == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def on_epoch(self, record: dict[str, Any], _model: object) -> None:
        self.records.append(record)

    def on_warning(self, text: str) -> None:
        self.warnings.append((len(self.records), text))


@pytest.fixture(scope="session")
def silent_display() -> type[SilentDisplay]:
    return SilentDisplay


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ExperimentConfig]:
    """A configuration of lenet-nano on 200 digits, 2 epochs; `settings` are dotted keys, such as {"train.lr": 0.1}."""

    def make(settings: dict[str, Any] | None = None) -> ExperimentConfig:
        values: dict[str, Any] = {}
        base = {
            "model.name": "lenet-nano",
            "data.dataset": "digits",
            "data.limit_train": 200,
            "train.epochs": 2,
            "train.threads": 1,
        }
        for key, value in (base | (settings or {})).items():
            merge(values, key.split("."), value, "test")
        return parse_config(values, "test")

    return make


@pytest.fixture(scope="session")
def settled_config(tiny_config: Callable[..., ExperimentConfig]) -> Callable[..., dict[str, Any]]:
    """As plain values, with 4 bits, or others, and nothing left open, as runs record it."""
    settled = {"train.lr": 0.05, "train.batch_size": 32, "train.weight_decay": 0.0}

    def make(bits: int = 4, act_bits: int = 4) -> dict[str, Any]:
        values = settled | {"quant.bits": bits, "quant.act_bits": act_bits}
        found: dict[str, Any] = tiny_config(values).model_dump(mode="json")
        return found

    return make


@pytest.fixture
def tiny(tmp_path: Path, tiny_config: Callable[..., ExperimentConfig]) -> Callable[..., RunResult]:
    """Trains `tiny_config(settings)` into `runs_dir`, by default `tmp_path / "runs"`."""

    def train(settings: Any = None, *, runs_dir: Any = None, stop_after: Any = None, display: Any = None) -> RunResult:
        folder, shown = runs_dir or tmp_path / "runs", display or SilentDisplay()
        return experiment.train(tiny_config(settings), tmp_path, folder, shown, stop_after)

    return train


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Deep equality, tensors bit for bit, with the path of the first difference; keys in `ignore` may differ."""

    def check(one: Any, other: Any, ignore: tuple[str, ...] = (), path: str = "") -> None:
        assert type(one) is type(other), (path, one, other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, path
            assert torch.equal(one, other), path
        elif isinstance(one, dict):
            assert list(one) == list(other), path
            for key in one:
                if key not in ignore:
                    check(one[key], other[key], ignore, f"{path}.{key}")
        elif isinstance(one, list | tuple):
            assert len(one) == len(other), path
            for index, pair in enumerate(zip(one, other, strict=True)):
                check(*pair, ignore, f"{path}[{index}]")
        else:
            assert one == other, path

    return check


@dataclass(frozen=True)
class Finished:
    """A finished command: exit code, and what it wrote."""

    rc: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr of a command that failed; nothing else may stand on either stream."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        assert not self.stdout, self
        return lines[0]


@pytest.fixture
def qattrain(tmp_path: Path) -> Callable[..., Finished]:
    """Runs the command line in a process of its own, in `cwd` (default: the test's folder)."""

    def run(*arguments: object, cwd: Path = tmp_path) -> Finished:
        command = [sys.executable, "-m", "qattrain", *map(str, arguments)]
        # The environment as Python knows it: a C library may have added COLUMNS to the process's own.
        done = subprocess.run(
            command, cwd=cwd, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs the entry point in this process: torch is loaded already, so that seconds become milliseconds."""
    from qattrain import cli

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["qattrain", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        code = ended.value.code
        return Finished(code if isinstance(code, int) else 0, written.out, written.err)

    return run


@pytest.fixture
def mnist_dir() -> Path:
    """The folder with the real MNIST, from QATTRAIN_DATA_DIR or beside the repository; skips where there is none."""
    folder = Path(ASKED_DATA_DIR) if ASKED_DATA_DIR else REPOSITORY.parent / "shared" / "data"
    if not (folder / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no real MNIST in {folder}: set QATTRAIN_DATA_DIR to a folder that holds MNIST/raw")
    return folder
