"""`qattrain fit` in processes of its own, killed in the middle: here and on a cluster it ends as if undisturbed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweep_runs import MOST_SECONDS, under_way, until

from qattrain.export.c_devices import DEVICES
from qattrain.runs import folder as runs

pytest.importorskip("optuna", reason="the extra [search] is not installed")

# Six candidates and three finals, with steps of one image, so that each can be killed in the middle.
ASKED = ("--dataset", "digits", "--limit-train", "200", "--limit-test", "50", "--batch-size", "1", "--lr", "0.003")
ASKED += ("--epochs", "3", "--bytes", "300", "--model", "conv ? 5x5 stride 3 bn, pool 2, fc", "--trials", "6")
ASKED += ("--batch", "3", "--threads", "1", "--name", "study")


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qattrain", "fit", *ASKED, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a search; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
        processes.append(started(folder, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train for it."""
    alive = []
    for process in psutil.Process(parent.pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(process.cmdline()):
                alive.append(process)
    return alive


def found(folder: Path) -> dict[str, Any]:
    """What the search found, but for the time it took."""
    document: dict[str, Any] = json.loads((folder / "runs" / "study" / "fit.json").read_text())
    return {key: value for key, value in document.items() if key not in ("seconds", "digest")}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the search that nobody disturbs."""
    folder = tmp_path_factory.mktemp("fit")
    process = started(folder, "--workers", 2)
    _, stderr = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 0, stderr
    return folder


@pytest.fixture
def assert_same_search(whole: Path, assert_same: Callable[..., None]) -> Callable[[Path], None]:
    """Every figure, and every weight of every candidate, as in the undisturbed search."""

    def check(folder: Path) -> None:
        from qattrain.runs.checkpoint import load_checkpoint

        assert found(folder) == found(whole)
        names = sorted(path.name for path in (whole / "runs" / "study" / "cells").iterdir())
        assert sorted(path.name for path in (folder / "runs" / "study" / "cells").iterdir()) == names
        for name in names:
            paths = [place / "runs" / "study" / "cells" / name / runs.LAST_FILE for place in (folder, whole)]
            assert_same(*(load_checkpoint(path).model for path in paths))

    return check


def test_the_search_writes_what_it_found(whole: Path) -> None:
    document = found(whole)
    assert [row["batch"] for row in document["rows"]] == [1, 1, 1, 2, 2, 2]
    assert {row["status"] for row in document["rows"]} == {"complete", "passed over"}
    assert len(document["finals"]) == 3
    folder = whole / "runs" / "study"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "search.json",
        "fit.json",
        "front.png",
        "front.svg",
    }
    for row in document["rows"]:  # passed over after one epoch of three, and a run like any other
        history = runs.read_metrics(folder / row["run_dir"])
        assert len(history) == row["epochs"] == (3 if row["status"] == "complete" else 1)
        assert history[-1]["val_loss"] == row["loss"]
    assert len(runs.list_runs(folder / "cells")) == 9


def test_on_a_core_it_keeps_to_flash_and_time_as_bench_measures_them(tmp_path: Path, main: Callable[..., Any]) -> None:
    device = DEVICES["cortex-m0"]
    if device.missing:
        pytest.skip(f"not installed: {', '.join(device.missing)}")
    few = ("--dataset", "digits", "--limit-train", 300, "--trials", 3, "--batch", 3, "--epochs", 1, "--threads", 1)
    chain = ("--model", "conv ? 5x5 stride 2 bn, pool 2, fc", "--workers", 1, "--runs-dir", tmp_path, "--name", "core")
    done = main("fit", *few, *chain, "--flash", 3000, "--core", "cortex-m0", "--time-ms", 4, "--json")
    assert done.rc == 0, done.stderr
    document = json.loads(done.stdout)
    (winner,) = (row for row in document["rows"] if row["run_dir"] == document["winner"])
    for row in (winner, document["finals"][0]):
        checkpoint = tmp_path / "core" / row["run_dir"] / runs.LAST_FILE
        done = main("bench", "--device", "cortex-m0", checkpoint, "--layout", "packed", "--json")
        (measured,) = json.loads(done.stdout)["networks"]
        assert row["flash_bytes"] == measured["flash_bytes"]
        assert row["milliseconds"] == pytest.approx(measured["milliseconds_low"], rel=0.01)
    assert 2000 < winner["flash_bytes"] <= 3000
    assert winner["milliseconds"] <= 4


def test_the_same_command_again_trains_nothing_and_says_the_same_as_json(
    whole: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    before = found(whole)
    done = main("fit", *ASKED, "--json")
    assert done.rc == 0
    said = json.loads(done.stdout)
    assert {key: said[key] for key in before if key in said} == {key: before[key] for key in said if key in before}
    assert " to 1 epoch" not in done.stderr
    done = main("fit", *ASKED)
    best = next(row for row in before["rows"] if row["run_dir"] == before["winner"])
    assert f"with {best['weight_bytes']:,} bytes of weights and {best['macs']:,} MACs: {best['model']}" in done.stdout
    assert f"qattrain train --config runs/study/{before['finals'][0]['run_dir']}/config.json" in done.stdout
    assert found(whole) == before


def test_a_page_shows_the_search(whole: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    done = main("report", "study", "--out", "page.html")
    assert done.rc == 0, done.stderr
    page, document = (whole / "page.html").read_text(), found(whole)
    assert f"{100 * document['accuracy_mean']:.2f} % of the test images (mean of 3 seeds)" in page
    for row in document["rows"]:
        assert row["model"] in page
    assert "Accuracy against weights (bytes)" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no budget; give at least one of --bytes, --total-bytes, --macs, --flash and --time-ms"),
        (("--bytes", 5), "no network keeps to --bytes 5: the smallest, "),
        (("--bytes", 900, "--model", "conv 8 3x3, fc"), "has no open place; write ? for each number of outputs"),
        (("--bytes", 900, "--model", "conv ? 29x29, fc"), "its 29x29 kernel does not fit"),
        (("--flash", 900), "--flash without --core"),
        (("--bytes", 900, "--core", "cortex-m0"), "--core cortex-m0 without --flash or --time-ms"),
        (("--flash", 900, "--core", "avr"), "--core 'avr': allowed: cortex-m0"),
        (("--bytes", 900, "--minutes", 1, "--trials", 1), "give only one of them"),
        (("--bytes", 900, "--bits", 32), "only quantized networks are searched"),
        (("--bytes", 900, "--set", "model.widths=[1]"), "widths are what is searched"),
        (("--bytes", 900, "--sampler", "tpee"), "did you mean 'tpe'?"),
        (("--bytes", 900, "--val-split", 1437), "data.val_split = 1437: of 1,437 training images"),
        (("--bytes", 900, "--layer-bits", "conv9=3"), "no layer 'conv9'"),
        (("--bytes", 900, "--set", "model.name=3"), "model.name = 3: allowed: one chain with ?, or a preset"),
        (("--bytes", 900, "--set", "ptq.bits=3"), "ptq: a search trains networks quantized"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    arguments: tuple[object, ...], message: str, tmp_path: Path, main: Callable[..., Any]
) -> None:
    done = main("fit", "--dataset", "digits", "--runs-dir", tmp_path / "runs", *arguments)
    assert done.rc == 2, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "runs").exists()


def test_another_search_in_the_folder_and_a_missing_extra_are_one_line(
    whole: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    done = main("fit", *ASKED, "--bytes", 400)
    assert (done.rc, "runs/study holds another search: budget differ" in done.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = main("fit", *ASKED)
    assert (done.rc, done.stderr.count("error: ")) == (1, 1)
    assert "fit: package optuna cannot be imported; it comes with: pip install 'qattrain[search]'" in done.stderr


def test_kill_9_of_the_parent_and_of_a_worker_changes_nothing(
    tmp_path: Path, assert_same_search: Callable[[Path], None], begin: Callable[..., Any]
) -> None:
    folder = tmp_path / "runs" / "study"
    parent = begin(tmp_path, "--workers", 2)
    until(lambda: under_way(folder))
    parent.kill()
    assert parent.wait() == -signal.SIGKILL

    again = begin(tmp_path, "--workers", 2)
    until(lambda: len(list(folder.glob("cells/*/result.json"))) >= 4)
    until(lambda: workers(again))[-1].kill()
    _, stderr = again.communicate(timeout=MOST_SECONDS)
    assert again.returncode == 0, stderr
    assert_same_search(tmp_path)


def test_ctrl_c_saves_and_a_second_search_at_once_is_one_line(
    tmp_path: Path, assert_same_search: Callable[[Path], None], begin: Callable[..., Any]
) -> None:
    first = begin(tmp_path, "--workers", 1)
    until(lambda: under_way(tmp_path / "runs" / "study"))
    second = begin(tmp_path, "--workers", 1)
    _, stderr = second.communicate(timeout=MOST_SECONDS)
    assert second.returncode == 1, stderr
    assert stderr.splitlines()[-1].startswith("error: ")
    assert "the search runs/study is being written by another process" in stderr
    first.send_signal(signal.SIGINT)
    stdout, stderr = first.communicate(timeout=MOST_SECONDS)
    assert first.returncode == 130, stderr
    assert "run the same command again to resume" in stdout
    again = begin(tmp_path, "--workers", 2)
    _, stderr = again.communicate(timeout=MOST_SECONDS)
    assert again.returncode == 0, stderr
    assert_same_search(tmp_path)


def test_on_a_cluster_a_worker_and_the_parent_killed_in_the_middle_change_nothing(
    tmp_path: Path, assert_same_search: Callable[[Path], None], started_cluster: Any, begin: Callable[..., Any]
) -> None:
    doomed, _ = started_cluster.add_worker(), started_cluster.add_worker()
    folder = tmp_path / "runs" / "study"
    parent = begin(tmp_path, "--scheduler", started_cluster.address)
    until(lambda: len(list(folder.glob("cells/*/result.json"))) >= 2)
    parent.kill()
    parent.wait()
    killer = threading.Thread(
        target=lambda: (
            until(lambda: len(list(folder.glob("cells/*/result.json"))) >= 4),
            doomed.send_signal(signal.SIGKILL),
        )
    )
    killer.start()
    again = begin(tmp_path, "--scheduler", started_cluster.address)
    _, stderr = again.communicate(timeout=MOST_SECONDS)
    killer.join()
    assert again.returncode == 0, stderr
    assert_same_search(tmp_path)
