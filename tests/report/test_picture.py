"""Pictures as text, and as files, which are written completely or not at all."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from qattrain.errors import ReportError
from qattrain.report.drawing import BARS, bars, check_writable, png, svg, write_pictures


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4], label="a")
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
