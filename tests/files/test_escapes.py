"""Text that leaves the tool shows every character; cells of a CSV file are no formulas."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qattrain.experiments.folder import csv_text
from qattrain.files.escapes import csv_cell, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nerror: forged\r", r"a\nerror: forged\r"),
        ("\t\0\x7f\x85\x9b31m", r"\t\x00\x7f\x85\x9b31m"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("\u2028\udce9", r"\u2028\udce9"),
        ("Größe, 数字, 👍🏽, [bold]", "Größe, 数字, 👍🏽, [bold]"),
    ],
)
def test_what_does_not_show_becomes_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in shown)
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown
    assert visible(text, keep="\n").count("\n") == text.count("\n")


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert csv_cell(text) == "'" + visible(text)
    row = {"name": text, "accuracy": -0.5, "settings": {"train.lr": "-0.5", "model.name": text}}
    [read] = csv.DictReader(io.StringIO(csv_text([row])))
    assert read["name"] == read["model.name"] == "'" + visible(text)
    assert (read["accuracy"], read["train.lr"]) == ("-0.5", "-0.5")


@pytest.mark.parametrize("value", [-0.5, 3, None, True, "-0.5", "+1e3", "lenet", "1-2", ""])
def test_numbers_and_plain_text_stay(value: object) -> None:
    assert csv_cell(value) == value
