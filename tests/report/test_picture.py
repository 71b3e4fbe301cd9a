"""Pictures as text, and as files, which are written completely or not at all."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from qattrain.errors import ReportError
from qattrain.experiments.comparison import Comparison, Row
from qattrain.quant import QUANTIZERS
from qattrain.report.drawing import (
    BARS,
    COLORS,
    DARK,
    LOOKS,
    METHODS,
    Series,
    bars,
    chart_figure,
    check_writable,
    comparison_figure,
    comparison_finding,
    draw_lines,
    error_series,
    method_style,
    on_dark_paper,
    png,
    row_method,
    row_name,
    series_styles,
    svg,
    write_pictures,
)
from qattrain.report.labels import apart, label_lines, name_points
from qattrain.report.page import line_chart


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4], color="black", label="a")
    figure.legend()
    return figure


def test_svg_is_the_same_byte_for_byte_and_needs_no_font() -> None:
    assert svg(drawn()) == svg(drawn())
    assert b"<text" not in svg(drawn())
    assert b"<dc:date" not in svg(drawn())
    assert png(drawn()) == png(drawn())


def test_bars_show_the_highest_full_and_nothing_that_is_there_as_empty() -> None:
    assert bars(np.array([0, 1, 1000]), 8) == " " + BARS[1] + BARS[-1]
    assert bars(np.array([5] * 4), 8) == BARS[-1] * 4
    assert bars(np.zeros(0, np.int64), 8) == ""
    assert bars(np.zeros(3, np.int64), 8) == "   "
    assert bars(np.array([0, 10, 100, 1000]), 8, logarithmic=True) > bars(np.array([0, 10, 100, 1000]), 8)


def test_many_bins_are_added_up_and_none_is_lost() -> None:
    for count in (31, 32, 33, 96, 256):
        shown = bars(np.ones(count, np.int64), 32)
        assert len(shown) == min(count, 32)
        assert " " not in shown


def test_pictures_are_written_as_png_and_svg_into_a_folder_that_is_made(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "a" / "b", {"one": drawn(), "two": drawn()})
    assert sorted(paths) == sorted((tmp_path / "a" / "b").iterdir())
    assert {path.name for path in paths} == {"one.png", "one.svg", "two.png", "two.svg"}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_unwritable_folder_is_a_report_error_naming_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for attempt in (lambda: check_writable(tmp_path / name), lambda: write_pictures(tmp_path / name, {"x": drawn()})):
        with pytest.raises(ReportError, match="another folder"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def row(method: str, accuracy: float, delta: float, p: float, bits: int = 4, act_bits: int = 4) -> Row:
    return Row(method, "runs/x", bits, act_bits, accuracy, (accuracy, accuracy), delta, p, 0.1, 100, None)


FLOAT_ROW, QAT_ROW = row("fp32", 0.98, 0, 1, 32, 32), row("qat", 0.9794, -0.0006, 0.4)
TRAINED, ROUNDED = [{"epoch": 1, "test_accuracy": 0.9}, {"epoch": 2, "test_accuracy": 1.0}], [{"epoch": 0}]


def test_every_method_and_quantizer_has_one_look_and_those_in_one_picture_differ() -> None:
    methods = set(METHODS.values())
    assert {*methods, "packed", "others", *QUANTIZERS} == set(LOOKS)
    assert len({LOOKS[name] for name in (*methods, "packed", "others")}) == 5
    assert len({LOOKS[name] for name in QUANTIZERS}) == len(QUANTIZERS)
    assert LOOKS["QAT"] == LOOKS["lsq"]  # the usual quantizer
    for look in LOOKS.values():
        assert to_hex(look.color) in DARK
    alike = [method_style("QAT", variant) for variant in range(16)]
    assert {style["color"] for style in alike} == {LOOKS["QAT"].color}
    assert {style["marker"] for style in alike} == {LOOKS["QAT"].marker}
    assert all(one != other for one, other in itertools.combinations(alike, 2))


def test_a_method_looks_the_same_beside_any_others() -> None:
    first, _, second = series_styles(["QAT", "PTQ", "QAT"])
    assert first == series_styles(["QAT"])[0] == series_styles(["float", "QAT"])[1]
    assert (second["color"], second["marker"]) == (first["color"], first["marker"])
    assert second["linestyle"] != first["linestyle"]
    assert series_styles([None, "PTQ"])[1]["color"] == LOOKS["PTQ"].color


def test_a_logarithmic_axis_says_so_and_no_error_is_drawn_as_half_an_image_but_told_as_0() -> None:
    series = error_series("a", TRAINED, 200, "QAT")
    assert series.y == pytest.approx([10, 0])
    axes = Figure().subplots()
    draw_lines(axes, [series], "epoch", "test error (%)")
    assert axes.get_ylabel() == "test error (%), logarithmic"
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_ydata() == pytest.approx([10, 0.25])
    chart = line_chart("Test error", [series], ("epoch", "test error (%)"), "")
    assert chart.table is not None
    assert [cells[-1] for cells in chart.table.rows] == ["10", "0"]


def boxes(axes: Any) -> list[Any]:
    axes.figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in axes.texts]  # without the line to what it names


def overlapping(found: list[Any]) -> list[tuple[Any, Any]]:
    return [(one, other) for one, other in itertools.combinations(found, 2) if one.overlaps(other)]


@pytest.mark.parametrize("ends", [[5, 5, 5, 5], [1, 1.01, 90], [0.1], [100, 99.9, 99.8, 0.1, 0.11, 50]])
def test_names_beside_lines_do_not_overlap_and_have_their_colours(ends: list[float]) -> None:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    draw_lines(axes, [Series(f"line {n}", [1, 2, 3], [50, 20, end]) for n, end in enumerate(ends)], "epoch", "loss")
    assert label_lines(axes)
    found = boxes(axes)
    assert not overlapping(found)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width for box in found)
    assert [text.get_color() for text in axes.texts] == [bars[0].get_color() for bars in axes.containers]


@pytest.mark.parametrize("names", [["a name longer than the room there is"], [str(n) for n in range(7)]])
def test_too_many_or_too_long_names_stand_in_a_legend_that_has_room(names: list[str]) -> None:
    series = [Series(name, [1, 2], [3, 4]) for name in names]
    figure = chart_figure(lambda axes: draw_lines(axes, series, "epoch", "loss"))
    assert not figure.axes[0].texts
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 0.5 * 3.1 * figure.dpi


def test_places_are_moved_no_more_than_needed() -> None:
    assert apart([0.2, 0.5], 0.1) == [0.2, 0.5]
    assert apart([0.5, 0.5], 0.1) == pytest.approx([0.55, 0.45])
    assert apart([0.0, 1.0, 0.99], 0.1) == pytest.approx([0.0, 1.0, 0.9])
    crowded = apart([0.5] * 20, 0.1)
    assert all(before - after == pytest.approx(0.1) for before, after in itertools.pairwise(crowded))


def test_names_of_points_do_not_overlap() -> None:
    axes = Figure(figsize=(6, 4)).subplots()
    points = [(f"point {n}", x, y, "black") for n, (x, y) in enumerate(itertools.product((1, 1.1, 5, 9), (1, 1.1, 9)))]
    axes.plot([point[1] for point in points], [point[2] for point in points], "o")
    name_points(axes, points)
    assert len(boxes(axes)) == len(points)
    assert not overlapping(boxes(axes))


def test_dark_paper_changes_every_colour_and_nothing_else() -> None:
    light = svg(drawn())
    dark = on_dark_paper(light)
    assert dark == on_dark_paper(light)
    assert b"#ffffff" in light
    assert b"#ffffff" not in dark
    assert DARK["#000000"].encode() in dark
    figure = Figure()
    figure.subplots().plot([1, 2], color="#123456")
    with pytest.raises(KeyError, match="#123456"):  # a published picture uses known colours only
        on_dark_paper(svg(figure))


@pytest.mark.parametrize("paper", ["light", "dark"])
def test_text_in_the_colour_of_a_series_can_be_read(paper: str) -> None:
    inks = COLORS if paper == "light" else [DARK[color] for color in COLORS]
    for ink in inks:
        light, dark = sorted((luminance(ink), luminance("#ffffff" if paper == "light" else DARK["#ffffff"])))[::-1]
        assert (light + 0.05) / (dark + 0.05) >= 4.5, ink


def luminance(color: str) -> float:
    """Relative luminance, 0 to 1 (WCAG)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([FLOAT_ROW, QAT_ROW], "4-bit QAT is 0.06 points below float, which may be chance (p = 0.4)"),
        ([FLOAT_ROW, row("ptq", 0.5, -0.48, 0, 2, 8)], "2/8-bit PTQ is 48.00 points below float (p < 1e-99)"),
        ([QAT_ROW, row("fp32", 0.98, 0.0006, 0.03, 32, 32)], "float is 0.06 points above 4-bit QAT (p = 0.03)"),
        ([FLOAT_ROW, row("my run", 0.98, 0.0, 1)], "my run is as accurate as float (p = 1)"),
    ],
)
def test_the_title_of_a_comparison_is_what_it_found(rows: list[Row], sentence: str) -> None:
    comparison = Comparison("digits", None, 360, rows, [TRAINED] * len(rows), "key")
    assert comparison_finding(comparison) == sentence
    assert comparison_figure(comparison).startswith(b"\x89PNG")


def test_a_checkpoint_looks_like_the_method_that_made_it() -> None:
    assert row_method(row("some run", 1, 0, 1), TRAINED) == "QAT"
    assert row_method(row("some run", 1, 0, 1), ROUNDED) == "PTQ"
    assert row_method(row("some run", 1, 0, 1, 32, 32), TRAINED) == "float"
    assert [row_method(row(method, 1, 0, 1), []) for method in METHODS] == ["float", "PTQ", "QAT"]
    assert [row_name(one) for one in (FLOAT_ROW, QAT_ROW)] == ["float", "4-bit QAT"]
