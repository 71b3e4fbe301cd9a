"""`qattrain predict`: a digit for each picture, by checkpoints, float ones too, or packed files; and from a pipe."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from qattrain.data import load_dataset
from qattrain.evaluation import checkpoints, networks
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
    assert [list(image) for image in images] == [["path", "digit", "top", "notes", "error"]] * len(pictures)
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
    assert (done.rc, done.stderr) == (0, "")
    assert "█" in done.stdout
    assert len([line for line in done.stdout.splitlines() if len(line) == 28]) == 14
    assert done.stdout.splitlines()[-1].startswith(f"{path}: ")
    assert done.stdout.splitlines()[-1].count("%") == 3


def test_a_float_network_predicts_too(pictures: list[tuple[Path, int]], tiny: Any, main: Callable[..., Any]) -> None:
    run_dir = tiny({"quant.bits": 32, "train.epochs": 1}).run_dir
    assert len(json.loads(main("predict", run_dir, pictures[0][0], "--json").stdout)["images"]) == 1


def test_an_image_comes_from_a_pipe(trained: Path, pictures: list[tuple[Path, int]]) -> None:
    command = [sys.executable, "-m", "qattrain", "predict", str(trained), "-", "--json"]
    data = pictures[0][0].read_bytes()
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=True)
    (image,) = json.loads(done.stdout)["images"]
    assert image["path"] == "-"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 colour pictures each of dark and of bright discs, in class folders."""
    folder = tmp_path_factory.mktemp("shapes") / "discs"
    for label, (name, paper, ink) in enumerate((("bright", (0, 0, 90), "yellow"), ("dark", (250, 240, 200), "navy"))):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            image = Image.new("RGB", (40 + index, 30 + label), paper)
            ImageDraw.Draw(image).ellipse((8, 5, 25 + index, 25), fill=ink)
            image.save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def classifier(shapes: Path, tiny: Any) -> Path:
    settings = {"data.dataset": f"folder:{shapes}", "data.image_size": "28x28", "data.limit_train": None}
    run_dir: Path = tiny(settings | {"train.epochs": 20}).run_dir
    return run_dir


def test_a_picture_is_prepared_as_the_folder_was(
    classifier: Path, shapes: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, original = [], checkpoints.rank_classes
    monkeypatch.setattr(
        checkpoints, "rank_classes", lambda n, images, top: (seen.append(images), original(n, images, top))[1]
    )
    assert main("export", classifier, "--to", "packed", "--out", tmp_path / "out").rc == 0
    paths = sorted(shapes.rglob("*.png"))
    outputs = []
    for network in (classifier, tmp_path / "out" / "model.safetensors"):
        done = main("predict", network, *paths, "--json")
        assert done.rc == 0, done
        outputs.append(json.loads(done.stdout)["images"])
    assert outputs[0] == outputs[1]
    assert sum(image["digit"] == path.parent.name for image, path in zip(outputs[0], paths, strict=True)) >= 34
    dataset = load_dataset(f"folder:{shapes}@28x28", tmp_path)
    trained_on = {bytes(image.numpy()) for part in (dataset.train, dataset.test) for image in part.images}
    assert {image.tobytes() for image in seen[0]} == trained_on


def test_pictures_get_the_shape_and_colours_that_the_network_takes(
    classifier: Path, shapes: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rank(_: object, images: Any, top: int) -> list[list[tuple[str, float]]]:  # noqa: ARG001
        asked.append(images.shape)
        return [[("dark", 0.95), ("bright", 0.05)]]

    monkeypatch.setattr(checkpoints, "rank_classes", rank)
    monkeypatch.setattr(networks.Trained, "input_shape", (3, 33, 90))
    done = main("predict", classifier, shapes / "dark" / "3.png")
    assert done.rc == 0, done
    assert asked == [(1, 3, 33, 90)]
    printed, answer = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert {len(line) for line in printed} == {45}  # every other pixel: 90 columns would not fit
    assert len(printed) == 9  # 33 rows, every other, two to a line, and half an empty one
    assert answer.endswith("3.png: dark   (dark 95.00 %, bright 5.00 %)")


def test_any_picture_format_is_read_for_such_a_network(
    classifier: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    Image.new("L", (9, 9), 200).save(tmp_path / "a.webp")
    assert main("predict", classifier, tmp_path / "a.webp", "--json").rc == 0
    (tmp_path / "text").write_text("hello")
    done = main("predict", classifier, tmp_path / "text")
    assert done.rc == 1
    assert "text is no PNG, JPEG, BMP, GIF, TIFF or WebP image" in done.error


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
        ([trained, tmp_path / "empty.png"], 1, "empty.png is empty"),
        ([trained, tmp_path / "text.png"], 1, "text.png is no PNG"),
        ([trained, tmp_path / "huge.png"], 1, "huge.png has 10000 x 10000 pixels"),
        (["nosuch", good], 1, "nosuch"),
    ]
    for arguments, code, text in cases:
        result = main("predict", *arguments)
        assert result.rc == code, result
        assert text in result.error


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    trained: Path, pictures: list[tuple[Path, int]], tmp_path: Path, main: Callable[..., Any]
) -> None:
    (tmp_path / "empty.png").touch()
    good, other = pictures[0][0], pictures[1][0]
    given = [good, tmp_path / "empty.png", tmp_path / "none.png", other]
    alone = json.loads(main("predict", trained, good, other, "--json").stdout)["images"]
    done = main("predict", trained, *given, "--json")
    assert done.rc == 1
    images = json.loads(done.stdout)["images"]
    assert [image["path"] for image in images] == [str(path) for path in given]
    assert [images[0], images[3]] == alone
    for image, text in zip(images[1:3], ("empty.png is empty; give a PNG", "none.png: No such file"), strict=True):
        assert (image["digit"], image["top"], image["notes"]) == (None, [], [])
        assert text in image["error"]
    plain = main("predict", trained, *given)
    assert plain.rc == 1
    lines = plain.stdout.splitlines()
    starts = [f"{good}: ", f"not read: {tmp_path / 'empty.png'} is empty", "not read: cannot read", f"{other}: "]
    places = [[number for number, line in enumerate(lines) if line.startswith(start)] for start in starts]
    assert [len(found) for found in places] == [1] * 4
    assert places == sorted(places)
    (error,) = [line for line in plain.stderr.splitlines() if line.startswith("error: ")]
    assert "2 of 4 pictures could not be read: the first: " in error
    assert "empty.png is empty; give a PNG" in error


def test_when_no_file_can_be_read_each_is_told(trained: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    missing = [tmp_path / name for name in ("a.png", "b.png")]
    done = main("predict", trained, *missing)
    assert done.rc == 1
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == ["not read"] * 2
    assert "2 of 2 pictures could not be read" in done.stderr
    done = main("predict", trained, missing[0], "--json")
    assert done.rc == 1
    assert "a.png: No such file" in json.loads(done.stdout)["images"][0]["error"]
    assert "error: cannot read" in done.stderr


def test_what_was_done_to_a_picture_is_told_below_its_answer(
    trained: Path, pictures: list[tuple[Path, int]], tmp_path: Path, main: Callable[..., Any]
) -> None:
    image = Image.open(pictures[0][0])
    ImageDraw.Draw(image).rectangle((3, 5, 291, 294), outline=0, width=3)
    image.save(tmp_path / "framed.gif")
    (plain,) = json.loads(main("predict", trained, pictures[0][0], "--json").stdout)["images"]
    (found,) = json.loads(main("predict", trained, tmp_path / "framed.gif", "--json").stdout)["images"]
    assert "a frame around it was removed" in found["notes"]
    assert "a frame around it was removed" not in plain["notes"]
    assert found["digit"] == plain["digit"]
    lines = main("predict", trained, tmp_path / "framed.gif").stdout.splitlines()
    assert "  a frame around it was removed" in lines
    answer = next(number for number, line in enumerate(lines) if line.startswith(f"{tmp_path / 'framed.gif'}: "))
    assert lines[answer + 1 :] == [f"  {note}" for note in found["notes"]]


@pytest.mark.parametrize(("second", "is_low"), [(0.0899, False), (0.0901, True), (0.4, True)])
def test_a_low_margin_is_told(  # the second has at least a tenth of the first one's 90 %
    second: float,
    is_low: bool,
    trained: Path,
    pictures: list[tuple[Path, int]],
    main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "rank_classes", lambda *_, **__: [[(4, 0.9), (9, second), (7, 0.001)]])
    (image,) = json.loads(main("predict", trained, pictures[0][0], "--json").stdout)["images"]
    assert image["notes"] == ["low margin: 4 or 9?"] * is_low


@pytest.mark.parametrize(("paper", "ink"), [("black", "white"), ("white", "black")])
def test_what_the_other_polarity_would_be_is_told_where_it_is_not_clear(
    paper: str,
    ink: str,
    trained: Path,
    tmp_path: Path,
    main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.new("L", (90, 90), paper)
    ImageDraw.Draw(image).rectangle((20, 0, 70, 90), fill=ink)  # it may as well be two bars
    image.save(tmp_path / "bars.png")
    answers = iter([[[(1, 0.99), (7, 0.005), (4, 0.001)]], [[(8, 0.9)]]])
    monkeypatch.setattr(checkpoints, "rank_classes", lambda *_, **__: next(answers))
    (found,) = json.loads(main("predict", trained, tmp_path / "bars.png", "--json").stdout)["images"]
    ways = ("light on dark", "dark on light") if ink == "white" else ("dark on light", "light on dark")
    assert found["notes"] == [f"taken as {ways[0]}; as {ways[1]} it would be 8"]
    assert found["digit"] == 1


def test_several_digits_in_a_picture_are_told(
    trained: Path, pictures: list[tuple[Path, int]], tmp_path: Path, main: Callable[..., Any]
) -> None:
    both = Image.new("L", (600, 300), "white")
    for index in range(2):
        both.paste(Image.open(pictures[index][0]), (300 * index, 0))
    both.save(tmp_path / "both.bmp")
    (found,) = json.loads(main("predict", trained, tmp_path / "both.bmp", "--json").stdout)["images"]
    assert any("separate shapes are read as one digit" in note for note in found["notes"])


@pytest.mark.parametrize("size", [(25_000_000, 1), (1, 25_000_000), (30_001, 2)])
def test_a_picture_of_odd_sides_is_refused_before_it_is_unpacked(
    trained: Path, tmp_path: Path, size: tuple[int, int], main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", size).save(tmp_path / "odd.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    done = main("predict", trained, tmp_path / "odd.png")
    assert done.rc == 1
    assert f"odd.png has {size[0]} x {size[1]} pixels" in done.error


def test_pipes_devices_and_folders_are_no_pictures(
    trained: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        done = main("predict", trained, path)
        assert done.rc == 1
        assert "it is not a regular file" in done.error
    assert "Is a directory" in main("predict", trained, tmp_path).error
    monkeypatch.setattr("qattrain.data.dataset.MAX_FILE_BYTES", 100_000)
    (tmp_path / "large.png").write_bytes(bytes(100_001))
    assert "more than 100,000 bytes" in main("predict", trained, tmp_path / "large.png").error


@pytest.mark.parametrize("command", ["head -c 300000000 /dev/zero |", "exec <&-;"])
def test_standard_input_is_read_within_bounds(command: str, trained: Path) -> None:
    line = f"{command} {sys.executable} -m qattrain predict {trained} -"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read standard input: ")
    assert len(done.stderr.splitlines()) == 1


def test_many_pictures_are_read_a_hundred_at_a_time(
    trained: Path, pictures: list[tuple[Path, int]], main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path for path, _ in pictures] * 6 + [Path("nosuch.png")]
    sizes: list[int] = []
    original = checkpoints.rank_classes

    def rank(network: Any, images: Any, top: int) -> Any:
        sizes.append(len(images))
        return original(network, images, top)

    monkeypatch.setattr(checkpoints, "rank_classes", rank)
    done = main("predict", trained, *paths, "--json")
    assert [size for size in sizes if size > 1] == [100, 100, 40]
    images = json.loads(done.stdout)["images"]
    assert [image["path"] for image in images] == list(map(str, paths))
    assert [image["digit"] for image in images[:40]] == [image["digit"] for image in images[200:240]]
    assert images[-1]["error"]


def test_a_large_picture_is_read_like_a_smaller_one(trained: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    for mode, ink, paper in (("L", 0, 255), ("P", 3, 9), ("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)), ("I;16", 0, 65535)):
        found = []
        for side in (1400, 2800):  # the larger is reduced by 2
            image = Image.new(mode, (side, side), paper)
            if mode == "P":
                image.putpalette([0, 0, 0] * 9 + [255] * (256 - 9) * 3)
            box = [side * part // 14 for part in (6, 3, 8, 11)]
            image.paste(ink, tuple(box))
            image.save(tmp_path / "seven.png")
            found.append(json.loads(main("predict", trained, tmp_path / "seven.png", "--json").stdout)["images"][0])
        one, other = found
        assert one["digit"] == other["digit"], mode
