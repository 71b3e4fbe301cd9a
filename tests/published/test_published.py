"""What the README and its pages say is what was measured, what they show runs, and what they point to exists."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import publish
import published_results
import pytest
import recipes
import torch
from matplotlib.figure import Figure

from qattrain import export_model
from qattrain.benchmark.inference import INFERENCE
from qattrain.benchmark.training import TRAINING
from qattrain.config.sources import build_config
from qattrain.errors import ExportError
from qattrain.experiments.grid import expand, read_grid
from qattrain.export import EXPORTERS
from qattrain.export.base import NOISE_IMAGES
from qattrain.quant import QUANTIZERS
from qattrain.report.drawing import on_dark_paper, svg

PICTURE = (
    r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="(.*?)"><img src="(.*?)" alt="(.*?)"></picture>'
)
HELD_OUT = ("ablation", "teacher-split", recipes.LEFT_OUT)  # measured on training images that were held back


def test_the_tables_of_every_page_are_those_of_the_published_json() -> None:
    assert publish.rendered() == {path: path.read_text() for path in publish.PAGES}


def test_published_means_and_deviations_follow_from_every_seed() -> None:
    results = json.loads(recipes.RESULTS.read_text())
    assert list(results) == sorted(results) == sorted({*recipes.names(), recipes.LEFT_OUT})
    for name, result in results.items():
        for row in result["rows"]:
            where = (name, row["method"], row["bits"])
            if not recipes.is_single(name):
                assert len(row["seeds"]) == len(set(row["seeds"])) >= 3, where
                counted = row["test_accuracy"] if row["method"] == "fp32" else row["integer_accuracy"]
                if name in HELD_OUT:
                    counted = row["held_out_accuracy"]
                assert len(counted) == len(row["seeds"]), where
                assert row["mean"] == pytest.approx(statistics.mean(counted), abs=1e-12), where
                assert row["standard_deviation"] == pytest.approx(statistics.stdev(counted), abs=1e-12), where
            if row["method"] != "fp32":
                exported = None if name in recipes.COMPARISONS else 0
                assert row["c_differing_logits"] == [exported] * len(row["seeds"]), where
                assert all(0 <= accuracy <= 1 for accuracy in row["integer_accuracy"]), where


def test_check_tells_every_accuracy_that_is_not_the_published_one() -> None:
    row = {"method": "qat", "bits": 2, "act_bits": 3, "test_accuracy": [0.5, 0.6], "integer_accuracy": [0.5, 0.6]}
    mine = {"rows": [row, row | {"integer_accuracy": [0.5, 0.7]}]}
    assert recipes.differences({"rows": [row, row]}, {"rows": [row, row]}) == []
    assert recipes.differences(mine, {"rows": [row, row]}) == ["qat 2/3 integer_accuracy: [0.5, 0.7], not [0.5, 0.6]"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["w2a2"], ["teacher", "w2a2"]),
        (["widths"], ["widths"]),
        (["ablation", "kb11"], ["teacher-split", "teacher", "ablation", "kb11"]),
    ],
)
def test_a_teacher_is_trained_before_those_it_teaches_and_only_then(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], expected: list[str]
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(recipes.subprocess, "run", lambda line, **_: lines.append(line))
    recipes.train(asked)
    assert [line[-1] for line in lines] == expected


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_valid_grid_of_three_seeds_that_selects_nothing(name: str) -> None:
    path = recipes.RECIPES / f"{name}.toml"
    if recipes.is_single(name):
        points = [build_config(path, [], {}).model_dump(mode="json")]
    else:
        points = [point.config for point in expand(read_grid(path, [], {}))]
        assert {point["seed"] for point in points} >= {0, 1, 2}
    for point in points:
        assert point["train"]["threads"] == 1  # sums of floats depend on it
        assert point["data"]["val_split"] == (10_000 if name in HELD_OUT else 0)
        assert point["data"]["limit_train"] is point["data"]["limit_test"] is None


@pytest.mark.parametrize("name", published_results.SMALL)
def test_a_recipe_named_after_its_limits_keeps_them(name: str) -> None:
    (row,) = json.loads(recipes.RESULTS.read_text())[name]["rows"]
    limits = re.fullmatch(r"b(\d+)(?:-m(\d+))?", name)
    assert limits is not None
    assert row["weight_bytes"] <= int(limits[1])
    if limits[2]:
        assert published_results.macs(name, row) <= 1000 * int(limits[2])


def test_beside_a_rival_stands_the_most_accurate_network_within_its_bytes_and_known_multiply_accumulates() -> None:
    results = json.loads(recipes.RESULTS.read_text())
    rows = {name: results[name]["rows"][0] | {"mean": mean} for name, mean in (("kb03", 0.9), ("b3200-m60", 0.8))}
    bytes_alone = published_results.Rival(3_200, 0.5)
    assert published_results.beside(bytes_alone, rows) == "kb03"
    assert published_results.beside(bytes_alone._replace(macs=60_000), rows) == "b3200-m60"
    assert published_results.beside(bytes_alone._replace(weight_bytes=3_000), rows) == "b3200-m60"


def test_published_speeds_and_ratios_follow_from_every_repeat_of_every_contender() -> None:
    document = json.loads(publish.BENCH.read_text())
    for group, table in (("training", TRAINING), ("inference", INFERENCE)):
        rows = document[group]
        assert [(row["name"], row["batch"]) for row in rows] == [(c.name, batch) for c in table for batch in c.batches]
        for row in rows:
            assert len(row["repeats"]) == document["repeats"] >= 5, row["name"]
            assert row["images_per_second"] == pytest.approx(statistics.median(row["repeats"]), abs=1e-9)
            for name, ratio in row["ratios"].items():
                same_batch = [
                    r for r in rows if r["name"] == name and (group == "training" or r["batch"] == row["batch"])
                ]
                assert ratio == pytest.approx(row["images_per_second"] / same_batch[0]["images_per_second"], abs=1e-9)


def test_published_searches_had_as_many_candidates_and_their_winners_follow_from_these() -> None:
    documents = json.loads(publish.SEARCHES.read_text())
    first, whole = documents[0], [one for one in documents if one["sampler"] in ("random", "tpe")]
    pairs = [(one["seed"], one["sampler"], len(one["rows"])) for one in whole]
    assert pairs == [(seed, sampler, pairs[0][2]) for seed in (0, 1) for sampler in ("random", "tpe")]
    for document in documents:
        for key in ("budget", "epochs", "rungs", "environment", "families"):
            assert document[key] == first[key], key
        complete = [row for row in document["rows"] if row["status"] == "complete"]
        assert document["winner"] == min(complete, key=lambda row: row["loss"])["run_dir"]
        accuracies = [row["accuracy"] for row in document["finals"]]
        assert len(accuracies) == 3
        assert document["accuracy_mean"] == pytest.approx(statistics.mean(accuracies), abs=1e-12)
        assert document["accuracy_std"] == pytest.approx(statistics.stdev(accuracies), abs=1e-12)
        for name in ("weight_bytes", "macs"):
            assert max(row[name] for row in document["rows"]) <= document["budget"][name]


def test_published_pictures_are_small_and_the_pages_show_each_of_them_with_words() -> None:
    shown = {
        words: ((page.parent / path).resolve(), (page.parent / dark).resolve())
        for page in publish.PAGES
        for dark, path, words in re.findall(PICTURE, page.read_text())
    }
    assert sum(page.read_text().count("<picture>") for page in publish.PAGES) == len(shown)
    paths = sorted(path for pair in shown.values() for path in pair)
    assert paths == sorted([*publish.PUBLISHED.glob("*.svg"), *publish.PUBLISHED.glob("*.png")])
    photographed = [pair for pair in shown.values() if pair[0].suffix == ".png"]
    assert photographed == [(publish.PUBLISHED / "playground.png", publish.PUBLISHED / "playground-dark.png")]
    assert all(path.stat().st_size < 100_000 for path in photographed[0])
    drawn = [pair for pair in shown.values() if pair not in photographed]
    assert {light.stem for light, _ in drawn} == {*publish.PICTURES, *published_results.PICTURES}
    for light, dark in drawn:
        assert dark.read_bytes() == on_dark_paper(light.read_bytes())
        assert light.stat().st_size < 100_000
        assert b"<text" not in light.read_bytes()  # no font is needed
    assert all(len(words) > 40 for words in shown)


@pytest.mark.parametrize("name", published_results.PICTURES)
def test_a_published_picture_is_that_of_the_json_and_its_title_the_finding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = (publish.PUBLISHED / f"{name}.svg").read_text()
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path)
    publish.save(name, published_results.PICTURES[name](json.loads(recipes.RESULTS.read_text())))
    drawn = (tmp_path / f"{name}.svg").read_text()
    texts, expected = (words_of(picture) for picture in (drawn, published))
    assert len(texts) > 5
    assert texts == expected


def test_a_lean_picture_has_the_same_shapes_and_letters_to_hundredths_of_a_point() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4.123456], color="black", marker="o")
    whole = svg(figure)
    short = publish.lean(whole)
    assert len(short) < 0.8 * len(whole)
    assert publish.lean(short) == short
    for tag in (rb"<path\b", rb"<use\b", rb"<!-- .*? -->", rb"scale\(.*?\)"):
        assert re.findall(tag, short) == re.findall(tag, whole) != []
    outlines = [b" ".join(re.findall(rb' d="(.*?)"', drawing, flags=re.S)) for drawing in (whole, short)]
    numbers = [[float(number) for number in re.findall(rb"-?\d+\.?\d*", outline)] for outline in outlines]
    assert len(numbers[0]) > 100
    assert numbers[0] == pytest.approx(numbers[1], abs=0.01)
    referred = set(re.findall(rb'(?:href="|url\()#([^")]+)', short))
    assert referred == set(re.findall(rb' id="(.*?)"', short))


def words_of(picture: str) -> list[str]:
    """All texts but the numbers of the axes. Letters are outlines; matplotlib leaves the text in a comment."""
    return [text for text in re.findall("<!-- (.*?) -->", picture) if re.search("[a-z]", text)]


def test_the_readme_says_where_to_read_what_is_at_the_top_of_the_package() -> None:
    package = publish.ROOT / "qattrain"
    sources = {path for path in package.iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    described = re.findall(r"^\| \[[\w.]+\]\(qattrain/([\w.]+)\) \|", publish.README.read_text(), flags=re.M)
    assert sorted(described) == sorted(path.name for path in sources if not path.name.startswith("__"))


def test_the_readme_names_every_quantizer_with_its_summary() -> None:
    named = ", ".join(f"`{name}` ({quantizer.summary})" for name, quantizer in QUANTIZERS.items())
    assert f"Quantizers: {named}." in publish.README.read_text().splitlines()


def test_the_loop_of_the_readme_is_ten_lines_learns_and_ships_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", publish.README.read_text(), flags=re.S)
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    losses = names["losses"]
    assert isinstance(losses, list)
    assert losses[-1] < losses[0] / 2
    assert (tmp_path / "export" / "model.c").is_file()
    with pytest.raises(ExportError, match="networks of 1 channel; this one takes 3x14x14"):
        export_model(names["net"], "page", tmp_path / "page", images=names["x"])
    for to, exporter in EXPORTERS.items():
        for layout in (exporter.layouts or (None,)) if to != "page" else ():
            done = export_model(names["net"], to, tmp_path / f"{to}-{layout}", images=names["x"], layout=layout)
            assert done.verified_images == 1000 + NOISE_IMAGES
            assert done.mismatches is not None
            assert (done.mismatches.predictions, done.mismatches.logits) == (0, 0)
