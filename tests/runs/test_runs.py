"""Run folders: each gets a name of its own, is found by it again, and junk beside it does no harm."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import parse_config
from qattrain.errors import CheckpointError, ConfigError, TrainingError
from qattrain.runs import folder as runs
from qattrain.runs.creation import new_folder


@pytest.fixture(scope="module")
def config(settled_config: Callable[..., Any]) -> dict[str, Any]:
    values: dict[str, Any] = settled_config()
    return values


def make_run(runs_dir: Path, name: str, config: dict[str, Any], epochs: int = 2) -> Path:
    """A folder that looks like a run, its checkpoint an empty file."""

    def fill(folder: Path) -> None:
        runs.write_config(folder, config, {})
        runs.write_metrics(folder, [{"epoch": e + 1, "test_accuracy": 0.5 + e / 10} for e in range(epochs)])
        (folder / runs.LAST_FILE).touch()

    with new_folder(runs_dir, name, "unused", fill) as run_dir:
        return run_dir


def create_run_dir(runs_dir: Path, name: str | None, default: str) -> Path:
    with new_folder(runs_dir, name, default, lambda folder: (folder / runs.LAST_FILE).touch()) as run_dir:
        return run_dir


def changed(config: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    return config | {section: config[section] | values}


def test_default_names_tell_what_is_in_the_run() -> None:
    def name(bits: int, act_bits: int, quantizer: str, dataset: str, seed: int) -> str:
        quant = {"bits": bits, "act_bits": act_bits, "quantizer": quantizer}
        return runs.default_name(parse_config({"quant": quant, "data": {"dataset": dataset}, "seed": seed}, "test"))

    assert name(4, 4, "lsq", "mnist", 0) == "lenet-w4a4-lsq-mnist-s0"
    assert name(32, 32, "lsq", "digits", 7) == "lenet-w32a32-float-digits-s7"
    assert name(32, 8, "affine", "digits", 7) == "lenet-w32a8-affine-digits-s7"


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"quant": {"surrogate": "tanh"}}, "lenet-w4a4-lsq-tanh-mnist-s0"),
    ({"quant": {"surrogate": "tanh", "bits": 32, "act_bits": 32}}, "lenet-w32a32-float-mnist-s0"),
    ({"quant": {"surrogate": "tanh"}, "ptq": {}}, "lenet-w4a4-lsq-ptq-mnist-s0"),
    ({"quant": {"quantizer": "pow2", "n": 5}}, "lenet-w4a4-pow2-n5-mnist-s0"),
    ({"quant": {"layer_bits": {"conv1": 8, "act2": 2}}}, "lenet-w4a4-conv1w8-act2a2-lsq-mnist-s0"),
    ({"quant": {"layer_bits": dict.fromkeys(("conv1", "conv2", "fc1", "fc2"), 8)}}, "lenet-w4a4-mixed-lsq-mnist-s0"),
    ({"model": {"widths": (8, 16, 64)}}, "lenet-8-16-64-w4a4-lsq-mnist-s0"),
    ({"model": {"widths": (20, 50, 500)}}, "lenet-w4a4-lsq-mnist-s0"),
    ({"model": {"ops": "explicit", "init": "xavier"}}, "lenet-w4a4-lsq-explicit-xavier-mnist-s0"),
    ({"data": {"dataset": "folder:pets", "image_size": "32x16", "color": True}}, "lenet-w4a4-lsq-pets-32x16-color-s0"),
    ({"data": {"dataset": "folder:pets", "image_size": "28x28", "flip": True}}, "lenet-w4a4-lsq-pets-s0"),
    ({"data": {"dataset": "mnist", "augment": "affine"}}, "lenet-w4a4-lsq-mnist-affine-s0"),
    ({"train": {"optimizer": "adamw", "schedule": "cosine", "lr": 0.1}}, "lenet-w4a4-lsq-adamw-cosine-mnist-s0"),
    ({"train": {"init": "x"}, "distill": {"teacher": "y"}}, "lenet-w4a4-lsq-init-teacher-mnist-s0"),
]


@pytest.mark.parametrize(("values", "name"), OTHERS, ids=[name for _, name in OTHERS])
def test_a_default_name_has_a_part_for_whatever_differs_in_kind(values: dict[str, Any], name: str) -> None:
    base: dict[str, Any] = {"quant": {"bits": 4, "act_bits": 4}, "data": {"dataset": "mnist"}}
    merged = {key: base.get(key, {}) | values.get(key, {}) for key in base | values}
    assert runs.default_name(parse_config(merged, "test")) == name


def test_default_names_are_numbered_and_given_names_are_not(tmp_path: Path) -> None:
    runs_dir = tmp_path / "deep" / "runs"
    names = [create_run_dir(runs_dir, None, "default").name for _ in range(4)]
    assert names == ["default", "default-2", "default-3", "default-4"]
    shutil.rmtree(runs_dir / "default-2")
    assert create_run_dir(runs_dir, None, "default").name == "default-2"
    (runs_dir / "default-5").touch()  # a file in the way is stepped over
    assert create_run_dir(runs_dir, None, "default").name == "default-6"
    assert create_run_dir(runs_dir, "mine", "default").name == "mine"
    with pytest.raises(ConfigError) as caught:
        create_run_dir(runs_dir, "mine", "default")
    for text in ("mine", "exists", "--name", "--resume mine"):
        assert text in str(caught.value)


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_runs_dir_that_is_no_folder_is_refused(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TrainingError) as caught:
            create_run_dir(place, name, "default")
        assert str(place) in str(caught.value)
        assert "--runs-dir" in str(caught.value)


def test_a_checkpoint_is_found_by_file_by_folder_and_by_name(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_dir = tmp_path / "runs"
    run_dir = make_run(runs_dir, "mine", config)
    expected = run_dir / runs.LAST_FILE
    for text in ("mine", str(run_dir), str(expected)):
        assert runs.find_checkpoint(text, runs_dir) == expected
    (run_dir / runs.BEST_FILE).touch()
    assert runs.find_checkpoint(str(run_dir / runs.BEST_FILE), runs_dir) == run_dir / runs.BEST_FILE
    (tmp_path / "mine").mkdir()  # a folder of that name that is no run does not hide the run
    monkeypatch.chdir(tmp_path)
    assert runs.find_checkpoint("mine", runs_dir) == expected


def test_a_cell_of_a_sweep_finds_the_runs_beside_the_sweep(tmp_path: Path) -> None:
    expected = tmp_path / "teacher" / runs.LAST_FILE
    expected.parent.mkdir()
    expected.write_bytes(b"")
    cells = tmp_path / "sweep" / runs.CELLS_FOLDER
    cells.mkdir(parents=True)
    assert runs.find_checkpoint("teacher", cells) == expected
    (cells / "teacher").mkdir()
    (cells / "teacher" / runs.LAST_FILE).write_bytes(b"")  # a cell's own neighbours come first
    assert runs.find_checkpoint("teacher", cells) == cells / "teacher" / runs.LAST_FILE


def make_cell(runs_dir: Path, sweep: str, cell: str, name: str = runs.LAST_FILE) -> Path:
    path = runs_dir / sweep / runs.CELLS_FOLDER / cell / name
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_a_cell_of_a_sweep_is_found_by_its_name_and_by_that_of_its_sweep(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    one = make_cell(tmp_path, "one", "a-w4")
    make_cell(tmp_path, "one", "b", runs.CONFIG_FILE)
    for text in ("a-w4", "one/a-w4", "one/cells/a-w4", str(one.parent)):
        assert runs.find_checkpoint(text, tmp_path) == one
    beside = make_cell(tmp_path, "other", "c").parent.parent
    assert runs.find_checkpoint("a-w4", beside) == runs.find_checkpoint("one/a-w4", beside) == one
    with pytest.raises(CheckpointError, match="before its first checkpoint"):
        runs.find_checkpoint("b", tmp_path)
    with pytest.raises(CheckpointError, match=r"did you mean 'a-w4'\?"):
        runs.find_checkpoint("a-w", tmp_path)
    for text in ("one/", "one/nosuch", "nosuch/a-w4", "../a-w4", "*", "one/*"):
        with pytest.raises(CheckpointError):
            runs.find_checkpoint(text, tmp_path)

    make_cell(tmp_path, "two", "a-w4")
    with pytest.raises(CheckpointError, match=r"^'a-w4' is a cell of 2 sweeps; name one of them: one/a-w4, two/a-w4$"):
        runs.find_checkpoint("a-w4", tmp_path)
    assert runs.find_checkpoint("one/a-w4", tmp_path) == one
    run = make_run(tmp_path, "a-w4", config) / runs.LAST_FILE
    assert runs.find_checkpoint("a-w4", tmp_path) == run  # a run of that name comes first


def test_a_folder_that_is_no_run_is_told_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for cell in "abcde":
        make_cell(tmp_path / "runs", "my sweep", cell)
    make_cell(tmp_path / "runs", "young", "a", runs.CONFIG_FILE)
    (tmp_path / "runs" / "compare-1").mkdir()
    (tmp_path / "runs" / "compare-1" / runs.COMPARISON_FILE).touch()
    (tmp_path / "runs" / "stopped").mkdir()
    (tmp_path / "runs" / "stopped" / runs.CONFIG_FILE).touch()
    said = {
        "my sweep": "is a sweep, not a run; name one of its cells: a, b, c, ...; list them with: qattrain runs "
        "--runs-dir 'runs/my sweep/cells'",
        "young": "is a sweep, not a run, and none of its cells has started",
        "compare-1": "is a comparison, not a run; name one of its runs",
        "stopped": "the run was stopped before its first checkpoint",
        "my sweep/cells": "is not a run: it holds no last.pt; name one of the runs in it: a, b, c",
    }
    for text, expected in said.items():
        for given in (text, f"runs/{text}"):
            with pytest.raises(CheckpointError) as caught:
                runs.find_checkpoint(given, Path("runs"))
            assert str(caught.value).startswith(f"runs/{text} ")
            assert expected in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_that_is_not_there_is_refused_with_the_runs_there_are(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    runs_dir = tmp_path / "runs"
    with pytest.raises(CheckpointError, match=r"nosuch.*none yet"):
        runs.find_checkpoint("nosuch", runs_dir)
    make_run(runs_dir, "mine", config)
    (runs_dir / "empty").mkdir()
    for text, found in (("nosuch", "mine"), ("empty", runs.LAST_FILE), (str(runs_dir / "empty"), runs.LAST_FILE)):
        with pytest.raises(CheckpointError) as caught:
            runs.find_checkpoint(text, runs_dir)
        assert found in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["x" * 300, "a\0b", ""])
def test_a_name_that_can_be_no_file_is_refused_like_a_missing_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError):
        runs.find_checkpoint(text, tmp_path / "runs")


JUNK = {
    "no json": "{",
    "a list": "[]",
    "a number": "3",
    "no config": "{}",
    "config is null": '{"config": null}',
    "config is a list": '{"config": []}',
    "config is empty": '{"config": {}}',
    "sections are text": '{"config": {"quant": "x", "data": "x", "ptq": null, "train": "x"}}',
    "sections are null": '{"config": {"quant": null, "data": null, "ptq": null, "train": null}}',
    "sections are lists": '{"config": {"quant": [], "data": [], "ptq": [], "train": []}}',
}


def test_junk_in_the_runs_dir_is_left_out_unless_it_has_a_checkpoint(tmp_path: Path, config: dict[str, Any]) -> None:
    for name, text in JUNK.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.CONFIG_FILE).write_text(text)
        (tmp_path / name / runs.METRICS_FILE).write_text("{}\n{}\n")
        (tmp_path / name / runs.LAST_FILE).touch()
    (tmp_path / "a file").touch()
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "config is a folder" / runs.CONFIG_FILE).mkdir(parents=True)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / runs.CONFIG_FILE).write_bytes(b"\xff\xfe")
    (tmp_path / "another program's").mkdir()
    (tmp_path / "another program's" / runs.CONFIG_FILE).write_text("{}")
    junk = {"metrics are junk": "{", "metrics are numbers": "1\n2\n", "metrics are empty": ""}
    for name, metrics in junk.items():
        (make_run(tmp_path, name, changed(config, "train", epochs=9)) / runs.METRICS_FILE).write_text(metrics)
    for key in ("bits", "act_bits"):  # a digest of its own, but no run of ours
        junk[f"{key} are open"] = ""
        make_run(tmp_path, f"{key} are open", changed(config, "quant", **{key: None}))
    make_run(tmp_path, "mine", config)
    found = runs.list_runs(tmp_path)
    assert [run.name for run in found if run.damaged is None] == ["mine"]
    damaged = {run.name: run for run in found if run.damaged}
    assert sorted(damaged) == sorted([*JUNK, *junk])
    for name, run in damaged.items():
        assert run.damaged is not None
        assert run.damaged.startswith(str(tmp_path / name))
        assert f"qattrain train --resume '{tmp_path / name}'".replace("'", "") in run.damaged.replace("'", "")
        assert (run.accuracy, run.bits, run.epochs) == (None, None, None)
    said: list[str] = []
    assert runs.find_finished(config, tmp_path, said.append) == tmp_path / "mine" / runs.LAST_FILE
    assert len(said) == len([name for name in JUNK if name < "mine"])
    assert all(line.endswith("it is not reused") for line in said)
    assert runs.list_runs(tmp_path / "nowhere") == []
    assert runs.find_finished(config, tmp_path / "nowhere") is None


def test_runs_are_listed_newest_first_with_what_they_are(tmp_path: Path, config: dict[str, Any]) -> None:
    ptq = config | {"ptq": {"calibration": "minmax", "images": 1024, "source_epochs": 2}}
    made = [
        make_run(tmp_path, "b", config),
        make_run(tmp_path, "a", changed(config, "quant", bits=32, act_bits=32), 1),
        make_run(tmp_path, "c", ptq, 1),
        make_run(tmp_path, "d", config, 0),
    ]
    for hours, run_dir in enumerate(made):
        for path in run_dir.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600 * hours))
    found = runs.list_runs(tmp_path)
    assert [(run.name, run.method, run.epochs, run.epochs_asked) for run in found] == [
        ("b", "qat", 2, 2),
        ("a", "float", 1, 2),
        ("c", "ptq", 0, 0),
        ("d", "qat", 0, 2),
    ]
    assert [run.accuracy for run in found] == [0.6, 0.5, 0.5, None]
    assert found[1].age_seconds == pytest.approx(3600, abs=60)


def test_a_finished_run_is_found_whatever_its_name_and_threads_but_nothing_else(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    path = make_run(tmp_path, "mine", changed(config, "train", threads=7) | {"name": "mine"}) / runs.LAST_FILE
    assert runs.find_finished(config | {"name": "other"}, tmp_path) == path
    for section, values in config.items():
        if isinstance(values, dict):
            for key in set(values) - {"threads"}:
                assert runs.find_finished(changed(config, section, **{key: "another"}), tmp_path) is None, key
    assert runs.find_finished(config | {"seed": 1}, tmp_path) is None
    assert runs.find_finished(config | {"ptq": {"source_epochs": 2}}, tmp_path) is None
    path.unlink()
    assert runs.find_finished(config, tmp_path) is None


def test_an_unfinished_run_is_not_taken_for_a_finished_one(tmp_path: Path, config: dict[str, Any]) -> None:
    make_run(tmp_path, "mine", config, epochs=1)
    assert runs.find_finished(config, tmp_path) is None


def test_a_run_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / runs.CONFIG_FILE).write_text("{}")
        assert folder.parent == tmp_path
        assert runs.list_runs(tmp_path) == []
        raise TrainingError(f"cannot write {folder / runs.LAST_FILE}: the disk is full")

    for name in (None, "mine"):
        with (
            pytest.raises(TrainingError, match=f"^cannot write {tmp_path / (name or 'default') / runs.LAST_FILE}: the"),
            new_folder(tmp_path, name, "default", fail),
        ):
            pass
        assert list(tmp_path.iterdir()) == []


def test_two_processes_never_get_the_same_folder(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path, None, "default", lambda folder: (folder / runs.LAST_FILE).touch()) as one,
        new_folder(tmp_path, None, "default", lambda folder: (folder / runs.LAST_FILE).touch()) as other,
    ):
        assert [one.name, other.name] == ["default", "default-2"]

    def another_is_faster(folder: Path) -> None:
        (folder / runs.LAST_FILE).touch()
        create_run_dir(tmp_path, "mine", "unused")

    with pytest.raises(ConfigError, match="--resume mine"), new_folder(tmp_path, "mine", "", another_is_faster):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty exists and is no run.*remove it, or choose another --name"):
        create_run_dir(tmp_path, "empty", "unused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["default", "default-2", "empty", "mine"]


def test_metrics_that_cannot_be_removed_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(
        TrainingError, match=r"^cannot remove .*metrics.jsonl: Read-only .*; choose another --runs-dir$"
    ):
        runs.write_metrics(tmp_path, [])
