"""Networks that are chains, and images of any shape, in tables, headers, pictures and on the page."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from qattrain.config import ModelConfig, model_label
from qattrain.report.drawing import SHADES, heading, picture
from qattrain.report.sweeps import draw_bits, sweep_pictures
from qattrain.report.tables import chain_lines, group_table, network_label

LINE = "conv 4 3x3 stride 2 bn, dw 3x3 bn, conv 6 1x1, avgpool, fc"


def test_a_chain_has_a_short_label_and_a_preset_keeps_its_name() -> None:
    label = model_label(ModelConfig(name=LINE))
    assert (
        label
        == f"chain-{hashlib.sha256(LINE.encode()).hexdigest()[:8]}"
        == network_label(LINE)
        == model_label(ModelConfig(name=f"  {LINE} "))
    )
    other = model_label(ModelConfig(name=LINE, widths=(4, 7)))
    assert other == model_label(ModelConfig(name=LINE.replace("conv 6", "conv 7"))) != label
    assert model_label(ModelConfig(name="lenet-nano")) == network_label("lenet-nano") == "lenet-nano"
    assert chain_lines(["lenet", LINE, LINE]) == [f"{label}: {LINE}"]


def test_training_inspecting_and_reporting_a_chain_name_it_and_its_line(
    main: Callable[..., Any], tmp_path: Path
) -> None:
    settings = ("--dataset", "digits", "--limit-train", 100, "--epochs", 1, "--threads", 1, "--model", LINE)
    done = main("train", *settings, "--name", "small", "--runs-dir", tmp_path)
    assert done.rc == 0, done
    assert f"small: {network_label(LINE)}, 156 weights, 4-bit" in done.stderr  # gains are no weights
    assert f"\n{network_label(LINE)}: {LINE}\n" in done.stderr
    done = main("inspect", "small", "--runs-dir", tmp_path, "--json")
    assert json.loads(done.stdout)["totals"]["weights"] == 156
    out = tmp_path / "page.html"
    assert main("report", "small", "--runs-dir", tmp_path, "--out", out).rc == 0
    html = out.read_text()
    for text in (
        f"<strong>{network_label(LINE)}</strong>",
        f"<p>small is {network_label(LINE)}: {LINE}</p>",
        "MACs",
        f"&#39;{LINE}&#39;",
    ):
        assert text in html, text


def test_a_sweep_over_chains_labels_its_lines_and_rows(make_sweep: Callable[..., Path]) -> None:
    document = json.loads((make_sweep() / "sweep.json").read_text())
    document["groups"] = [document["groups"][0] | {"model": name} for name in (LINE, "lenet-nano")]
    rows = group_table(document["groups"]).rows
    assert [row[3] for row in rows] == [network_label(LINE), "lenet-nano"]
    assert all(name.endswith((".png", ".svg")) for name in sweep_pictures(document))
    axes = Figure().subplots()
    draw_bits(axes, document)
    assert network_label(LINE) in axes.get_legend_handles_labels()[1][0]


def test_a_title_is_wrapped_and_no_formula() -> None:
    lines = heading(f"Weights: {LINE}, {LINE}, $x^$\nsecond").split("\n")
    assert lines[-1] == "second"
    assert max(map(len, lines)) <= 92
    assert r"\$x^\$" in " ".join(lines)


@pytest.mark.parametrize(
    ("shape", "columns", "rows"),
    [((28, 28), 28, 14), ((7, 5), 5, 4), ((1, 1), 1, 1), ((96, 81), 41, 24), ((3, 200), 67, 1)],
)
def test_pictures_of_any_size_fit_into_80_columns(shape: tuple[int, int], columns: int, rows: int) -> None:
    for pixels in (np.full(shape, 255, np.uint8), np.full((*shape, 3), 255, np.uint8)):
        lines = picture(pixels).split("\n")
        assert (len(lines), {len(line) for line in lines}) == (rows, {columns})
        assert set("".join(lines)) == {SHADES[-1]}
        assert set(picture(pixels * 0).replace("\n", "")) == {SHADES[0]}


def test_colours_are_as_bright_as_they_look_and_a_last_odd_row_counts() -> None:
    red, green, blue = (np.eye(3, dtype=np.uint8)[i].reshape(1, 1, 3) * 255 for i in range(3))
    assert [SHADES.index(picture(pixel)) for pixel in (red, green, blue)] == [2, 3, 1]
    assert picture(np.array([[0], [0], [255]], np.uint8)) == f"{SHADES[0]}\n{SHADES[-1]}"
