"""Sweeps on a dask cluster, here of two workers on this machine that have no folder in common with the sweep."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import GRID, Cluster, under_way, until

from qattrain import __version__
from qattrain.experiments import cluster

pytest.importorskip("distributed", reason="the extra [distributed] is not installed")


@pytest.fixture
def sweep(started_cluster: Cluster, tmp_path: Path, main: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        place = ("--runs-dir", tmp_path / "runs", "--scheduler", started_cluster.address, "--name", "study")
        return main("sweep", *GRID, *place, *arguments)

    return run


def test_cells_go_out_and_come_back_and_a_worker_killed_in_the_middle_changes_nothing(
    started_cluster: Cluster,
    sweep: Callable[..., Any],
    tmp_path: Path,
    assert_same_sweep: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "SLICE_SECONDS", 0.2)  # so that cells come back unfinished, too
    slices: list[str] = []
    submit = cluster.DaskCrew._submit
    monkeypatch.setattr(cluster.DaskCrew, "_submit", lambda *a: (slices.append(a[1].name), submit(*a))[1])
    doomed, _ = started_cluster.add_worker(), started_cluster.add_worker()

    def kill() -> None:
        until(lambda: under_way(tmp_path / "runs" / "study"))
        doomed.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = sweep()
    killer.join()
    assert done.rc == 0, done
    assert doomed.wait() == -signal.SIGKILL
    assert_same_sweep(tmp_path / "runs" / "study")
    assert len(slices) > 6


def test_a_worker_that_cannot_take_part_is_named_and_finished_cells_are_kept(
    started_cluster: Cluster, sweep: Callable[..., Any], tmp_path: Path
) -> None:
    one = ("--bits", "2", "--seeds", "0", "--batch-size", "32")
    started_cluster.add_worker()
    assert sweep(*one).rc == 0
    (cell,) = (tmp_path / "runs" / "study" / "cells").glob("*w2a2-lsq*")
    before = (cell / "last.pt").stat().st_mtime_ns

    unreadable = sweep(*one, "--set", f"train.init={cell}")
    assert unreadable.rc == 2
    assert "not on the workers" in unreadable.error
    lacking = sweep(*one, "--dataset", "mnist")
    assert lacking.rc == 1
    for text in ("worker tcp://127.0.0.1", "no mnist", "--data-dir", "QATTRAIN_DATA_DIR"):
        assert text in lacking.stderr.splitlines()[-1]

    other_version = "import qattrain\nqattrain.__version__ = '0.0.7'\n"
    for code, said in (
        (other_version, "qattrain 0.0.7"),
        ("import sys\nsys.modules['qattrain'] = None\n", "no qattrain"),
    ):
        other = started_cluster.add_worker(preload=code)
        until(lambda: count_workers(started_cluster.address) == 2)
        refused = sweep(*one, "--seeds", "0,1")
        assert refused.rc == 1
        line = refused.stderr.splitlines()[-1]
        for text in ("worker tcp://127.0.0.1", said, f"this is {__version__}"):
            assert text in line
        other.kill()
        other.wait()
        until(lambda: count_workers(started_cluster.address) == 1)
    assert (cell / "last.pt").stat().st_mtime_ns == before
    assert sweep(*one, "--seeds", "0,1").rc == 0
    assert (cell / "last.pt").stat().st_mtime_ns == before


def count_workers(address: str) -> int:
    time.sleep(0.2)
    client = cluster._connect(address)
    try:
        return len(client.nthreads())
    finally:
        client.close()


def test_a_scheduler_without_workers_is_told(
    sweep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.5)
    done = sweep()
    assert done.rc == 1
    assert "no workers" in done.error
    assert "dask worker" in done.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_an_unreachable_scheduler_is_told_within_seconds(
    main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    done = main("sweep", "--bits", "2", "--scheduler", address)
    assert done.rc == 1
    for text in (address, "no dask scheduler answered within 1 s", "dask scheduler --host 127.0.0.1"):
        assert text in done.error


def test_without_the_extra_the_remedy_is_told(main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = main("sweep", "--bits", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert done.rc == 1
    assert "pip install 'qattrain[distributed]'" in done.error
