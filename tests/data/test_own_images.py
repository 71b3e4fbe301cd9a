"""Somebody's own pictures from end to end: trained on by one command, resumed, evaluated, refused when they changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qattrain.files import cache_dir
from qattrain.runs.checkpoint import load_checkpoint

NAMES = (("x", "images"), ("y", "labels"))  # in Keras's arrays, in the cache
TRAIN = ("train", "--model", "lenet-nano", "--threads", "1", "--dataset")


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the folder `pets`, 12 noisy pictures of each class in different sizes."""
    random = np.random.default_rng(0)
    for name, grey in (("cat", 40), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = grey + random.integers(-30, 30, (20 + index, 30, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pets" / name / f"{index}.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def ok(done: Any) -> dict[str, Any]:
    assert done.rc == 0, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("working_folder")
def test_one_command_trains_and_others_evaluate_export_and_resume(main: Callable[..., Any]) -> None:
    asked = (*TRAIN, "folder:pets", "--image-size", "28x28", "--epochs", "4", "--flip", "--json")
    stopped = ok(main(*asked, "--stop-after", "2"))
    assert (stopped["run_dir"], stopped["dataset"]) == ("runs/lenet-nano-w4a4-lsq-pets-s0", "folder:pets@28x28")
    trained = ok(main(*asked, "--resume", "lenet-nano-w4a4-lsq-pets-s0"))
    assert trained["epochs"] == 4
    data = load_checkpoint(Path(trained["checkpoint"])).config.data
    assert (data.dataset, data.image_size, data.color, data.flip) == ("folder:pets", "28x28", False, True)
    run = trained["run_dir"]
    evaluated = ok(main("eval", run, "--json"))
    assert (evaluated["dataset"], evaluated["total"]) == ("folder:pets@28x28", 4)
    assert evaluated["accuracy"] == trained["test_accuracy"]
    ok(main("export", run, "--to", "packed", "--json"))
    packed = ok(main("eval", f"{run}/export/model.safetensors", "--json"))
    assert (packed["dataset"], packed["total"]) == ("folder:pets@28x28", 4)
    assert packed["accuracy"] == trained["test_accuracy"]
    assert "cat" in main("eval", run).stdout


@pytest.mark.usefixtures("working_folder")
def test_the_same_images_as_arrays_and_as_pictures_are_the_same_run(
    main: Callable[..., Any], assert_same: Callable[..., None]
) -> None:
    one = ok(main(*TRAIN, "folder:pets", "--image-size", "28x28", "--epochs", "1", "--json"))
    (kept,) = (cache_dir() / "images").iterdir()
    with np.load(kept) as found:
        arrays = {f"{letter}_{part}": found[f"{part}_{what}"] for part in ("train", "test") for letter, what in NAMES}
    shown = {key: array.transpose(0, 2, 3, 1) if key[0] == "x" else array for key, array in arrays.items()}
    np.savez("pets.npz", **shown, class_names=np.array(["cat", "dog"]))
    other = ok(main(*TRAIN, "npz:pets.npz", "--epochs", "1", "--json"))
    assert other["run_dir"] == "runs/lenet-nano-w4a4-lsq-pets-s0-2"
    first, second = (load_checkpoint(Path(run["checkpoint"])) for run in (one, other))
    assert first.config.data.digest == second.config.data.digest
    assert first.class_names == second.class_names
    assert_same(first.model, second.model)


def test_changed_and_missing_images_are_refused_by_name(working_folder: Path, main: Callable[..., Any]) -> None:
    asked = (*TRAIN, "folder:pets", "--image-size", "28x28", "--epochs", "2", "--json", "--stop-after", "1")
    run = ok(main(*asked))["run_dir"]
    float_run = ok(main(*asked, "--bits", "32"))["run_dir"]
    (working_folder / "pets" / "cat" / "0.jpg").rename(working_folder / "cat.jpg")
    for command in (
        ("eval", run),
        ("train", "--resume", run),
        ("export", run, "--to", "packed"),
        ("ptq", float_run, "--bits", "8"),
    ):
        done = main(*command)
        assert done.rc == 1, done
        assert all(text in done.error for text in ("folder:pets has changed since", "last.pt was trained on it"))
    (working_folder / "pets" / "cow").mkdir()
    shutil.copy(working_folder / "cat.jpg", working_folder / "pets" / "cow" / "0.jpg")
    shutil.copy(working_folder / "pets" / "dog" / "0.jpg", working_folder / "pets" / "cow" / "1.jpg")
    assert "was trained for 2 classes, folder:pets has 3" in main("eval", run).error
    shutil.rmtree(working_folder / "pets")
    done = main("eval", run)
    assert done.rc == 1
    assert f"folder:pets: {working_folder / 'pets'} does not exist" in done.error


@pytest.mark.usefixtures("working_folder")
def test_switches_are_no_axes_and_sizes_are(main: Callable[..., Any]) -> None:
    asked = ("sweep", "--dataset", "folder:pets", "--flip", "--model", "lenet-nano", "--epochs", "1", "--workers", "1")
    document = ok(main(*asked, "--image-size", "28x28", "--seeds", "0,1", "--threads", "1", "--json"))
    assert (document["finished"], document["cells"]) == (2, 2)


@pytest.mark.usefixtures("working_folder")
def test_comparing_reuses_runs_as_long_as_the_images_are_the_same(main: Callable[..., Any]) -> None:
    asked = ("compare", "fp32", "vs", "qat", "--dataset", "folder:pets", "--image-size", "28x28", "--epochs", "1")
    asked = (*asked, "--model", "lenet-nano", "--threads", "1")
    ok(main(*asked, "--json"))
    assert len(list(Path("runs").glob("lenet*"))) == 2
    assert main(*asked).stderr.count("reused, its configuration is the same") == 2
    Path("pets/cat/0.jpg").unlink()
    ok(main(*asked, "--json"))
    assert len(list(Path("runs").glob("lenet*"))) == 4
