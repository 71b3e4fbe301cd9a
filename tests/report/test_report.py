"""`qattrain report`: the content of the page for every kind of source, and what is refused."""

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes

from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.report import sources
from qattrain.report.drawing import Series, chart_figure, draw_lines
from qattrain.report.inline import draw
from qattrain.report.page import TEMPLATES

EVIL_TEXT = "_&lt;script&gt;alert(&#39;x&#39;)&amp;&lt;$x^$ 漢"
RUN_FIELDS = "name checkpoint method dataset total correct accuracy accuracy_ci95 loss delta mcnemar_p weight_bytes"


class Elements(HTMLParser):
    """Every start tag with its attributes, in order, and the text of the table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def report(tmp_path: Path, main: Callable[..., Any], networks: Any) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs `report` on its arguments; returns the JSON and the page."""

    def run(*arguments: object) -> tuple[dict[str, Any], str]:
        out = tmp_path / "page.html"
        done = main("report", *arguments, "--out", out, "--runs-dir", networks.runs_dir, "--json")
        assert done.rc == 0, done
        result: dict[str, Any] = json.loads(done.stdout)
        html = out.read_text(encoding="utf-8")
        assert result["report"] == str(out)
        assert result["bytes"] == out.stat().st_size
        return result, html

    return run


def test_every_kind_of_network_is_reported_with_the_numbers_of_eval(
    report: Callable[..., Any], networks: Any, tmp_path: Path
) -> None:
    evil = next(path for path in networks.runs_dir.iterdir() if "script" in path.name)
    result, html = report("float", evil, networks.runs_dir / "ptq" / "last.pt", networks.packed.parent)
    rows = result["runs"]
    assert [" ".join(row) for row in rows] == [RUN_FIELDS] * 4
    assert [row["method"] for row in rows] == ["float", "QAT", "PTQ", "packed"]
    for row in rows:
        outcome = evaluate_checkpoint(Path(row["checkpoint"]), tmp_path)
        assert (row["correct"], row["total"]) == (outcome.evaluation.correct, 360)
        assert row["loss"] == outcome.evaluation.loss
        for value in (row["accuracy"], *row["accuracy_ci95"]):
            assert f"{100 * value:.2f}" in html
    assert rows[0]["delta"] == 0
    assert (rows[1]["correct"], rows[1]["weight_bytes"]) == (rows[3]["correct"], rows[3]["weight_bytes"])
    for words in ("Results", "Learning curves", "Layers", "Confusion matrix", "Hardest images", "Environment"):
        assert words in html
    assert "qattrain ptq the-float-run --bits 2 --act-bits 4" in re.sub(r"</?span>", "", html)
    assert "does not record its configuration" in html  # the packed file
    assert len(html) < 1_500_000  # of four networks


def test_the_page_is_well_made_and_everything_a_user_wrote_is_escaped(
    report: Callable[..., Any], make_sweep: Callable[..., Path], networks: Any
) -> None:
    evil = next(path for path in networks.runs_dir.iterdir() if "script" in path.name)
    _, html = report(evil, "ptq", make_sweep("<b>"))
    assert EVIL_TEXT in html
    assert f"broken: {EVIL_TEXT}" in html
    assert "Sweep &lt;b&gt;" in html
    page = Elements(html)
    assert not page.all("b", "foreignobject", "iframe", "object")
    # The only script is ours, and the browser is told to run no other.
    (script,) = re.findall(r"<script.*?</script>", html, re.DOTALL)
    code = TEMPLATES.joinpath("page.js").read_bytes()
    assert script == f"<script>{code.decode()}</script>"
    digest = base64.b64encode(hashlib.sha256(code).digest()).decode()
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                value = attributes[name] or ""
                assert value.startswith(("#", "data:")), value
                assert not value.startswith("#") or value[1:] in ids
        for name in re.findall(r"url\(#(.+?)\)", attributes.get("clip-path") or ""):
            assert name in ids
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    charts = page.all("svg")
    assert charts
    assert all(chart["role"] == "img" and chart["aria-labelledby"] for chart in charts)
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 and after > 1 for before, after in itertools.pairwise(levels))
    assert [tag for tag, _ in page.tags if tag in ("header", "nav", "main", "footer")] == [
        "header", "nav", "main", "footer"
    ]  # fmt: skip
    # Charts have no colours of their own: they follow the page, light or dark.
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--series-0)" in drawings
    assert not re.findall(r"#[0-9a-f]{6}", drawings)


def test_a_comparison_is_known_by_what_its_folder_holds(
    report: Callable[..., Any], main: Callable[..., Any], networks: Any, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(networks.runs_dir, moved)
    compared = main("compare", moved / "float", "vs", moved / "ptq", "--limit-test", 100, "--runs-dir", moved, "--json")
    rows = json.loads(compared.stdout)["rows"]
    (folder,) = moved.glob("compare-*")
    renamed = folder.rename(moved / "my comparison")
    expected = [(row["method"], row["accuracy"], row["delta"], row["mcnemar_p"]) for row in rows]
    result, html = report(renamed)
    found = [(row["name"], row["accuracy"], row["delta"], row["mcnemar_p"]) for row in result["runs"]]
    assert found == expected
    assert "Notice" not in html
    shutil.rmtree(moved / "ptq")
    (moved / "float").rename(moved / "ptq")
    shutil.copytree(networks.runs_dir / "float", moved / "float")
    _, html = report(renamed / "compare.json")
    assert "the run was replaced" in html


def test_networks_with_other_test_images_are_not_paired(report: Callable[..., Any], tiny: Callable[..., Any]) -> None:
    fewer = tiny({"train.epochs": 1, "data.limit_test": 100}).run_dir
    result, _ = report("float", fewer)
    assert result["runs"][1]["total"] == 100
    assert (result["runs"][1]["delta"], result["runs"][1]["mcnemar_p"]) == (None, None)


def test_a_sweep_shows_its_groups_its_failures_and_the_means_of_its_curves(
    report: Callable[..., Any], make_sweep: Callable[..., Path]
) -> None:
    result, html = report(make_sweep())
    assert result["runs"] == []
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    for text in ("75.00 %", "12.50", "failed", "40", "15"):  # the last two: test error in percent after each epoch
        assert text in cells, text
    assert "cells/s0/config.json" in html
    assert "lenet-nano" in html


def test_the_same_runs_give_the_same_page(report: Callable[..., Any]) -> None:
    assert report("float")[1] == report("float")[1]


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("nosuch", ("no checkpoint 'nosuch'", "float")),
        ("empty", ("empty", "last.pt", "compare.json", "sweep.json")),
        ("runs", ("runs holds none", "name one of its runs", "float")),
        ("stopped", ("stopped", "no last.pt")),
        ("unfinished", ("unfinished", "no metrics", "--resume")),
        ("note.txt", ("note.txt", "end mark")),
        ("broken.json", ("broken.json", "qattrain compare")),
        ("other.json", ("other.json", "'test_images'", "qattrain sweep")),
        ("list.json", ("list.json", "qattrain compare")),
        ("gone.json", ("nowhere/run", "compare again")),
        ("nothing.json", ("nothing.json", "rows")),
        ("x" * 5000, ("no checkpoint", "xxx")),
    ],
)
def test_what_cannot_be_reported_on_is_said_in_one_line(
    what: str, texts: tuple[str, ...], main: Callable[..., Any], networks: Any, tmp_path: Path, tiny: Any,
    silent_display: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("stopped").mkdir()
    Path("stopped/config.json").write_text("{}")
    Path("note.txt").write_text("not a network")
    Path("broken.json").write_text("{")
    Path("other.json").write_text("{}")
    Path("list.json").write_text("[]")
    row = {"method": "a", "run_dir": "nowhere/run", "accuracy": 1.0}
    Path("gone.json").write_text(json.dumps({"test_images": 360, "rows": [row]}))
    Path("nothing.json").write_text(
        json.dumps({"kind": "sweep", "groups": [], "rows": [], "notice": None, "reference": []})
    )
    if what == "runs":
        Path("runs").symlink_to(networks.runs_dir)
    if what == "unfinished":
        tiny({"name": "unfinished"}, runs_dir=tmp_path, display=silent_display(1))
    done = main("report", what, "--runs-dir", tmp_path / "none")
    if what in ("nosuch", "x" * 5000):
        done = main("report", what, "--runs-dir", networks.runs_dir)
    assert done.rc == 1, done
    for text in texts:
        assert text in done.error, done.error
    assert not Path("report.html").exists()


def test_a_report_of_nothing_is_wrong_usage(main: Callable[..., Any]) -> None:
    done = main("report")
    assert (done.rc, "RUN" in done.error) == (2, True)


def test_nothing_but_a_report_is_ever_replaced(
    main: Callable[..., Any], networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(out: Path) -> str:
        done = main("report", "float", "--runs-dir", networks.runs_dir, "--out", out)
        assert done.rc == 1, done
        line: str = done.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    assert "is a folder" in refused(tmp_path)
    assert "no folder" in refused(tmp_path / "none" / "page.html")
    precious = tmp_path / "precious.html"
    precious.write_text("<p>mine</p>")
    assert "is not a qattrain report" in refused(precious)
    assert precious.read_text() == "<p>mine</p>"

    out = tmp_path / "page.html"
    assert main("report", "float", "--runs-dir", networks.runs_dir, "--out", out).rc == 0
    before = out.read_bytes()
    assert main("report", "ptq", "--runs-dir", networks.runs_dir, "--out", out).rc == 0
    assert out.read_bytes() != before

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "replace_files", full)
    written = out.read_bytes()
    assert "No space left on device" in refused(out)
    assert out.read_bytes() == written


def test_a_chart_is_laid_out_whole_and_its_series_are_marked() -> None:
    def lines(axes: Axes) -> None:
        series = [Series("one $", [1, 2, 3], [0.5, 0.25, 1e-4]), Series("two", [1, 3], [8.0, 9.0])]
        draw_lines(axes, series, "epoch", "loss")

    drawing = draw(chart_figure(lines), "chart-7")
    svg = drawing.named("<title>", "a & b")
    root = ElementTree.fromstring(svg)
    assert root[0].text == "<title>"
    assert root[1].text == "a & b"
    assert not [element for element in root.iter() if (element.get("id") or "").startswith(("series", "toggle"))]
    marked = {element.get("data-series") for element in root.iter()} - {None}
    names = {element.get("data-toggle") for element in root.iter()} - {None}
    assert marked == names == {"0", "1"}
    chart = json.loads(root.attrib["data-chart"])
    assert chart["labels"] == ["epoch", "loss"]
    assert [one["name"] for one in chart["series"]] == ["one $", "two"]
    assert [point[2:] for point in chart["series"][0]["points"]] == [["1", "0.5"], ["2", "0.25"], ["3", "0.0001"]]
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    for one in chart["series"]:
        for x, y, *_ in one["points"]:
            assert left < x < left + width
            assert top < y < top + height
