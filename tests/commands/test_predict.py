"""`qattrain predict`: a digit for each picture, by checkpoints, float ones too, or packed files; and from a pipe."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qattrain.data import load_dataset
from qattrain.training import run as experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any, silent_display: Any) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config({"data.limit_train": None, "train.epochs": 5})
    return experiment.train(config, folder, folder, silent_display()).run_dir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """Test images enlarged and inverted, dark on light, with their labels."""
    folder = tmp_path_factory.mktemp("pictures")
    test, found = load_dataset("digits", folder).test, []
    for index in range(40):
        image = Image.fromarray(255 - test.images[index, 0].numpy()).resize((300, 300), Image.Resampling.BICUBIC)
        path = folder / f"{index}.png"
        image.save(path)
        found.append((path, int(test.labels[index])))
    return found


def test_most_pictures_are_recognized(
    trained: Path, pictures: list[tuple[Path, int]], main: Callable[..., Any]
) -> None:
    done = main("predict", trained, *(path for path, _ in pictures), "--json")
    assert done.rc == 0, done
    images = json.loads(done.stdout)["images"]
    assert [list(image) for image in images] == [["path", "digit", "top"]] * len(pictures)
    assert [image["path"] for image in images] == [str(path) for path, _ in pictures]
    assert sum(image["digit"] == label for image, (_, label) in zip(images, pictures, strict=True)) >= 34
    for image in images:
        probabilities = [p for _, p in image["top"]]
        assert image["digit"] == image["top"][0][0]
        assert len(probabilities) == 3
        assert 1 >= probabilities[0] >= probabilities[1] >= probabilities[2] >= 0
        assert sum(probabilities) <= 1 + 1e-9


def test_a_packed_file_predicts_the_same(
    trained: Path, pictures: list[tuple[Path, int]], tmp_path: Path, main: Callable[..., Any]
) -> None:
    assert main("export", trained, "--to", "packed", "--out", tmp_path).rc == 0
    paths = [path for path, _ in pictures]
    one, other = (main("predict", ckpt, *paths, "--json") for ckpt in (trained, tmp_path / "model.safetensors"))
    assert one.rc == other.rc == 0
    assert one.stdout == other.stdout


def test_people_see_the_picture_the_digit_and_three_probabilities(
    trained: Path, pictures: list[tuple[Path, int]], main: Callable[..., Any]
) -> None:
    path, _ = pictures[0]
    done = main("predict", trained, path)
    assert (done.rc, done.stdout) == (0, "")
    assert "█" in done.stderr
    assert len([line for line in done.stderr.splitlines() if len(line) == 28]) == 14
    assert done.stderr.splitlines()[-1].startswith(f"{path}: ")
    assert done.stderr.splitlines()[-1].count("%") == 3


def test_a_float_network_predicts_too(pictures: list[tuple[Path, int]], tiny: Any, main: Callable[..., Any]) -> None:
    run_dir = tiny({"quant.bits": 32, "train.epochs": 1}).run_dir
    assert len(json.loads(main("predict", run_dir, pictures[0][0], "--json").stdout)["images"]) == 1


def test_an_image_comes_from_a_pipe(trained: Path, pictures: list[tuple[Path, int]]) -> None:
    command = [sys.executable, "-m", "qattrain", "predict", str(trained), "-", "--json"]
    data = pictures[0][0].read_bytes()
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=True)
    (image,) = json.loads(done.stdout)["images"]
    assert image["path"] == "-"


def test_what_cannot_be_predicted_is_one_clear_line(
    trained: Path, pictures: list[tuple[Path, int]], tmp_path: Path, main: Callable[..., Any]
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (10_000, 10_000)).save(tmp_path / "huge.png")
    good = pictures[0][0]
    cases: list[tuple[list[object], int, str]] = [
        ([trained], 2, "IMAGE"),
        ([trained, tmp_path / "none.png"], 1, "none.png: No such file"),
        ([trained, tmp_path], 1, "Is a directory"),
        ([trained, good, tmp_path / "empty.png"], 1, "empty.png is empty"),
        ([trained, tmp_path / "text.png"], 1, "text.png is no PNG"),
        ([trained, tmp_path / "huge.png"], 1, "huge.png has 10000 x 10000 pixels"),
        (["nosuch", good], 1, "nosuch"),
    ]
    for arguments, code, text in cases:
        result = main("predict", *arguments)
        assert result.rc == code, result
        assert text in result.error
