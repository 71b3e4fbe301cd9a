"""`qattrain playground` and `export --to page`: one self-contained page, proven before it is written; wrong inputs."""

import html
import json
import os
import re
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import SMALL, random_images, random_model, with_layer

from qattrain.evaluation.checkpoints import OWN_DATA
from qattrain.export import javascript
from qattrain.export.base import NOISE_IMAGES
from qattrain.export.browser import find_browser
from qattrain.export.javascript import find_node
from qattrain.export.page_export import (
    EXAMPLES,
    FOLDER,
    HARD_EXAMPLES,
    PROOF_IMAGES,
    Entry,
    Pictures,
    build_page,
    choose_examples,
    engine_script,
    page_data,
    trace,
)
from qattrain.export.page_shipped import shipped_entries, shipped_pictures
from qattrain.integer import ModelFacts
from qattrain.integer.packed import write_packed
from qattrain.training import run as experiment

FIELDS = ["page", "bytes", "networks", "executed_by", "verified_images", "mismatches"]
TEST_IMAGES = 360  # of the digits


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("trained") / "runs"
    for name, bits in (("two", 2), ("four", 4), ("float", 32)):
        settings = {"name": name, "quant.bits": bits, "train.epochs": 1}
        experiment.train(tiny_config(settings), folder, folder, silent_display())
    return folder


@pytest.fixture
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file that does not say what its images were."""
    return packed(tmp_path_factory.mktemp("packed") / "tiny.safetensors", random_model(widths=SMALL), OWN_DATA)


@pytest.fixture
def without_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(javascript, "NODE_NAMES", ())
    monkeypatch.setattr(javascript, "find_browser", lambda: None)


needs_machine = pytest.mark.skipif(
    find_node() is None and find_browser() is None, reason="not installed: Node.js or Chromium"
)


@needs_machine
def test_without_a_run_it_shows_the_shipped_networks_with_neither_torch_nor_data(tmp_path: Path) -> None:
    out = tmp_path / "play.html"
    code = (
        "import sys\n"
        f"sys.argv = ['qattrain', 'playground', '--out', {str(out)!r}, '--json']\n"
        "from qattrain import cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "none")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True, text=True)
    assert not (tmp_path / "none").exists()
    document = json.loads(done.stdout)
    assert list(document) == FIELDS
    assert [network["bits"] for network in document["networks"]] == list(range(1, 1 + len(shipped_entries())))
    assert (document["bytes"], document["mismatches"]) == (out.stat().st_size, 0)
    assert document["bytes"] <= 400_000
    assert document["verified_images"] == len(shipped_pictures().images) + NOISE_IMAGES
    assert document["executed_by"].startswith(("Node.js ", "Chromium "))
    data = page_data(out.read_bytes())
    assert data["executed"] == {"by": document["executed_by"], "images": document["verified_images"]}
    assert (len(data["proof"]["images"]), data["proof"]["from"]) == (PROOF_IMAGES, "drawings")
    easy, hard = data["examples"][:EXAMPLES], data["examples"][EXAMPLES:]
    assert [example["label"] for example in easy] == list(range(10))
    assert len(hard) == HARD_EXAMPLES
    assert all(example["hard"] for example in hard)
    assert data["first"] == EXAMPLES


def test_the_shipped_networks_disagree_at_first_view() -> None:
    entries, pictures = shipped_entries(), shipped_pictures()
    answers = np.stack([trace(entry.model, pictures.images).logits.argmax(1) for entry in entries])
    assert pictures.labels is not None
    examples, first = choose_examples(answers, pictures.labels)
    assert first is not None
    index, is_hard = examples[first]
    assert is_hard
    assert len(set(answers[:, index])) == 2
    assert answers[-1, index] == pictures.labels[index] != answers[0, index]


@needs_machine
def test_runs_and_packed_files_stand_side_by_side(runs_dir: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    out = tmp_path / "play.html"
    assert main("export", "two", "--to", "packed", "--runs-dir", runs_dir, "--out", tmp_path / "mine").rc == 0
    assert main("ptq", "float", "--bits", "4", "--runs-dir", runs_dir, "--name", "after").rc == 0
    given = ["playground", "two", "after", tmp_path / "mine" / "model.safetensors", "two"]
    done = main(*given, "--runs-dir", runs_dir, "--out", out, "--json")
    assert done.rc == 0, done
    document = json.loads(done.stdout)
    assert [(network["name"], network["method"], network["bits"]) for network in document["networks"]] == [
        ("two", "qat", 2),
        ("after", "ptq", 4),
        ("mine", None, 2),
        ("two (2)", "qat", 2),
    ]
    assert document["verified_images"] == TEST_IMAGES + NOISE_IMAGES
    data = page_data(out.read_bytes())
    assert data["title"] == "Draw a digit: lenet-nano at 2 to 4 bits"
    assert data["handwriting"] is True
    assert data["networks"][0]["packed"] == data["networks"][2]["packed"]


@needs_machine
def test_a_page_is_one_file_that_names_the_digests_of_its_scripts(
    runs_dir: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    assert main("export", "four", "--to", "page", "--runs-dir", runs_dir, "--out", tmp_path / "out").rc == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.html"]
    text = (tmp_path / "out" / "model.html").read_text(encoding="utf-8")
    assert engine_script() in text
    text = html.unescape(text.split("<title>")[0]) + text
    assert len(re.findall("'sha256-[^']{44}'", text)) == 2
    assert "default-src 'none'" in text
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", text) == []
    data = page_data(text.encode())
    assert [example["label"] for example in data["examples"]][:EXAMPLES] == list(range(10))
    assert (data["proof"]["from"], data["networks"][0]["method"]) == ("test images", None)


@pytest.mark.usefixtures("without_machine")
def test_without_node_or_a_browser_a_page_is_written_and_says_so(
    runs_dir: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    for name, given in (("model.html", ("export", "four", "--to", "page")), ("play.html", ("playground", "four"))):
        out = tmp_path if given[0] == "export" else tmp_path / name
        done = main(*given, "--runs-dir", runs_dir, "--out", out)
        assert done.rc == 0
        assert "was not executed" in done.stderr
        assert "0 logits" not in done.stdout
        assert page_data((tmp_path / name).read_bytes())["executed"] is None
    document = json.loads(main("playground", "--out", tmp_path / "play.html", "--json").stdout)
    assert (document["executed_by"], document["verified_images"], document["mismatches"]) == (None, 0, None)


@needs_machine
def test_one_wrong_code_is_told_and_nothing_is_written(
    runs_dir: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "engine.js"
    broken.write_text((FOLDER / "engine.js").read_text().replace("rest < 0.5 ? whole", "rest <= 0.51 ? whole"))
    monkeypatch.setattr("qattrain.export.page_export.ENGINE", ("packed.js", str(broken), "cells.js", "prepare.js"))
    for given in (("export", "four", "--to", "page"), ("playground", "four")):
        done = main(*given, "--runs-dir", runs_dir, "--out", tmp_path / "out", "--json")
        assert done.rc == 1
        assert re.search(r"\d+ of 616 images differ in .*, in \d+ logits and [1-9]\d* hidden codes", done.error), done
        assert not (tmp_path / "out").exists()


def packed(path: Path, model: Any, dataset: str = "digits", names: tuple[str, ...] | None = None) -> Path:
    facts = ModelFacts("net", dataset, names or tuple(map(str, range(model.classes))), None)
    path.write_bytes(write_packed(model, facts))
    return path


def test_wrong_inputs_are_one_clear_line_and_leave_nothing(
    runs_dir: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    model = random_model(widths=SMALL)
    color = with_layer(model, 0, codes=np.repeat(model.products[0].codes, 3, axis=1))
    color = packed(tmp_path / "color.safetensors", type(model)(color.layers, color.logit_scale, (3, 28, 28)))
    good = packed(tmp_path / "good.safetensors", model)
    words = packed(tmp_path / "words.safetensors", model, names=tuple("abcdefghij"))
    other = packed(tmp_path / "eleven.safetensors", random_model(widths=SMALL, classes=11))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:-1] + b"!")
    notes = tmp_path / "notes.html"
    notes.write_text("<p>about qattrain")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = tmp_path / "out.html"
    cases: list[tuple[list[object], int, tuple[str, ...]]] = [
        (["float"], 1, ("'conv1' (QuantConv2d): 32 bits",)),
        ([color], 1, ("1 channel", "3x28x28")),
        ([good] * 11, 2, ("11 networks", "1 to 10")),
        ([damaged], 1, ("damaged.safetensors", "altered")),
        ([good, words], 2, ("words.safetensors", "same")),
        ([good, other], 2, ("eleven.safetensors", "11", "same")),
        (["nosuch"], 1, ("nosuch",)),
        ([good, "--out", tmp_path], 1, ("is a folder", "play.html")),
        ([good, "--out", tmp_path / "none" / "a.html"], 1, ("no folder",)),
        ([good, "--out", notes], 1, ("notes.html", "not a page of qattrain", "--force")),
    ]
    for arguments, code, texts in cases:
        where = [] if "--out" in arguments else ["--out", out]
        done = main("playground", *arguments, *where, "--runs-dir", runs_dir)
        assert done.rc == code, done
        assert [text for text in texts if text not in done.error] == []
    for arguments, code, texts in (
        (["float"], 1, ("32 bits",)),
        ([color, "--no-verify"], 1, ("1 channel", "3x28x28")),
        (["four", "--layout", "int8"], 2, ("--layout 'int8'", "leave it out")),
        (["four", "--prefix", "cats"], 2, ("--prefix 'cats'", "only with --to c")),
        (["four", "--board"], 2, ("--board", "only with --to c")),
        (["four", "--measure"], 2, ("--measure", "only with --to c")),
    ):
        done = main("export", *arguments, "--to", "page", "--out", out, "--runs-dir", runs_dir)
        assert done.rc == code, done
        assert [text for text in texts if text not in done.error] == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    own = packed(tmp_path / "own.safetensors", model, OWN_DATA)
    assert main("playground", own, "--out", notes, "--force").rc == 0
    assert main("playground", own, "--out", notes).rc == 0  # now it is ours


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, main: Callable[..., Any], tiny_file: Path) -> None:
    tmp_path.chmod(0o500)
    done = main("playground", tiny_file, "--out", tmp_path / "play.html")
    assert (done.rc, "cannot write" in done.error) == (1, True)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_file: Path
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = main("playground", tiny_file, "--out", tmp_path / "play.html")
    assert (done.rc, "cannot write" in done.error, "No space left" in done.error) == (1, True, True)
    assert list(tmp_path.iterdir()) == []


def test_open_opens_a_browser_or_says_that_it_cannot(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_file: Path
) -> None:
    opened: list[str] = []
    out = tmp_path / "play.html"
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) == 1)
    done = main("playground", tiny_file, "--out", out, "--open")
    assert (done.rc, done.stderr) == (0, "")
    assert "no browser could be started" in main("playground", tiny_file, "--out", out, "--open").stderr
    assert opened == [out.resolve().as_uri()] * 2


def test_names_cannot_break_out_of_the_page() -> None:
    model, images = random_model(widths=SMALL), random_images(5)
    evil = "</script><script>alert(1)</script>\u2028&\"'"
    facts = ModelFacts(evil, evil, (evil, *"123456789"), None)
    entries = [Entry(evil, "qat", model, write_packed(model, facts))]
    content, _ = build_page(entries, Pictures(images, None, "test images"), evil, False, None)
    assert page_data(content)["title"] == evil
    assert b"<script>alert" not in content
    assert len(re.findall(rb"<script", content)) == 3


def test_examples_are_of_all_classes_and_the_first_view_divides_the_networks() -> None:
    truth = np.arange(40) % 10
    answers = np.stack([truth.copy() for _ in range(4)])
    answers[:, 0] = 5  # all wrong
    answers[0, 11] = answers[1, 11] = 7  # two camps
    answers[0, 12] = 8
    answers[:2, 13] = 1, 2  # three camps
    examples, first = choose_examples(answers, truth)
    assert [(index, is_hard) for index, is_hard in examples[:10]] == [
        *((n, False) for n in (10, *range(1, 10))),
    ]
    assert examples[10:] == [(11, True), (12, True), (13, True), (0, True)]
    assert first == 10
    assert choose_examples(answers[:1, 1:11], None) == ([(n, False) for n in range(10)], 0)
    assert choose_examples(answers[:, :0], None) == ([], None)
