"""`qattrain explain`: its list, its JSON, its files, and one clear line for what it cannot do."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qattrain.explain import TOPICS, Explanation, Lab, scale


def test_without_a_topic_all_are_listed_with_their_questions(main: Callable[..., Any]) -> None:
    listed, document = main("explain"), main("explain", "--json")
    assert (listed.rc, listed.stderr) == (0, "")
    assert json.loads(document.stdout) == {"topics": {name: topic.question for name, topic in TOPICS.items()}}
    for name in TOPICS:
        assert name in listed.stdout
        assert name in main("explain", "--help").stdout


def test_a_topic_speaks_json_alone_on_stdout_and_writes_its_picture(tmp_path: Path, main: Callable[..., Any]) -> None:
    out = tmp_path / "deep" / "pictures"
    done = main("explain", "affine", "--out", out, "--json")
    assert (done.rc, done.stdout.count("\n")) == (0, 1)
    document = json.loads(done.stdout)
    assert list(document) == ["topic", "question", "numbers", "answer", "look", "paper", "pictures", "seconds"]
    assert sorted(path.name for path in out.iterdir()) == ["affine.png", "affine.svg"]
    assert document["pictures"] == [str(out / "affine.png"), str(out / "affine.svg")]
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main("explain", "affine", "--out", out).rc == 0  # again, over its own files
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    plain = main("explain", "affine", "--out", out)
    assert plain.stderr == ""
    for text in (TOPICS["affine"].question, "code q", "Jacob", "affine.png"):
        assert text in plain.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (("nosuch",), 2, ("'nosuch'", *TOPICS)),
        (("affine", "--out", "a-file"), 1, ("a-file", "another folder")),
        (("affine", "--out", "a-file/below"), 1, ("a-file", "another folder")),
        (("ste", "--dataset", "nosuch"), 2, ("nosuch", "mnist", "digits")),
        (("ptq", "--n", "3"), 2, ("--n 3", "only for the topic scale")),
        (("--n", "3"), 2, ("--n 3", "only for the topic scale")),
        (("scale", "--n", "2"), 2, ("--n 2", "allowed: 3 to 12")),
        (("scale", "--n", "13"), 2, ("--n 13", "allowed: 3 to 12")),
    ],
)
def test_wrong_input_is_one_clear_line(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: Any, code: int, texts: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("not a folder")
    done = main("explain", *arguments)
    assert done.rc == code
    for text in texts:
        assert text in done.error


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Lab, int | None]]:
    """What the topic `scale` is asked for; it answers at once, with another topic's explanation."""
    seen = []

    def explain(lab: Lab, n: int | None = None) -> Explanation:
        seen.append((lab, n))
        return TOPICS["affine"].explain(lab)

    monkeypatch.setitem(TOPICS, "scale", replace(TOPICS["scale"], explain=explain))
    return seen


def test_n_reaches_the_topic(asked: list[tuple[Lab, int | None]], tmp_path: Path, main: Callable[..., Any]) -> None:
    for options in ((), ("--n", 3), ("--n", 12)):
        assert main("explain", "scale", *options, "--out", tmp_path).rc == 0
    assert [n for _, n in asked] == [None, 3, 12]
    assert "2^n, 3 to 12.  [default: 4]" in " ".join(main("explain", "--help").stdout.split()).replace(". [", ".  [")
    assert (scale.ALLOWED_N[0], scale.ALLOWED_N[-1], scale.N) == (3, 12, 4)


def test_the_default_data_are_those_of_the_published_page(
    asked: list[tuple[Lab, int | None]], tmp_path: Path, mnist_dir: Path, main: Callable[..., Any]
) -> None:
    published = json.loads((Path(__file__).parents[2] / "runs" / "published" / "explain.json").read_text())
    for options in ((), ("--dataset", "auto")):
        assert main("explain", "scale", "--data-dir", mnist_dir, "--out", tmp_path, *options).rc == 0
    (default, _), (auto, _) = asked
    assert default.data_line == published["data"]
    assert auto.dataset.name == "mnist"
