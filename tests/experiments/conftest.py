"""Sweeps of seconds, as the command line runs them, in processes that can be killed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import GRID, MOST_SECONDS, Cluster, figures

from qattrain.runs import folder as runs


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Starts a sweep in the test's folder; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qattrain", "sweep", *GRID, *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "qattrain", "sweep", *GRID, "--workers", "1", "--name", "whole"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
    )
    assert done.returncode == 0, done
    assert len(figures(folder / "runs" / "whole")) == 6
    return folder / "runs" / "whole"


@pytest.fixture
def assert_same_sweep(undisturbed: Path, assert_same: Callable[..., None]) -> Callable[[Path], None]:
    """Every figure, and every tensor of every cell, as in the undisturbed sweep; each cell once."""

    def check(folder: Path) -> None:
        from qattrain.runs.checkpoint import load_checkpoint

        assert figures(folder) == figures(undisturbed)
        names = sorted(path.name for path in (undisturbed / "cells").iterdir())
        assert sorted(path.name for path in (folder / "cells").iterdir()) == names
        for name in names:
            one, other = (load_checkpoint(place / "cells" / name / runs.LAST_FILE) for place in (undisturbed, folder))
            assert_same(one.model, other.model)
            assert one.finished
            assert other.finished

    return check


@pytest.fixture
def started_cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="the extra [distributed] is not installed")
    (tmp_path / "cluster").mkdir()
    found = Cluster(tmp_path / "cluster")
    yield found
    found.close()
