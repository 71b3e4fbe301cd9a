"""Pictures of a sweep: any result can be drawn, the pictures are labelled, and they are reproducible."""

import random
from typing import Any

import pytest
from matplotlib.figure import Figure

from qattrain.experiments.folder import PICTURES
from qattrain.report.drawing import LOOKS
from qattrain.report.sweeps import bits_finding, bytes_finding, draw_bits, draw_bytes, sweep_pictures
from qattrain.report.tables import group_table


def group(method: str, bits: int, mean: float, **others: Any) -> dict[str, Any]:
    return {
        "method": method,
        "bits": bits,
        "act_bits": bits,
        "quantizer": "float" if method == "fp32" else "affine" if method == "ptq" else "lsq",
        "model": "lenet",
        "dataset": "mnist",
        "epochs": 0 if method == "ptq" else 10,
        "settings": {},
        "n": 2,
        "accuracy_mean": mean,
        "accuracy_std": 0.01,
        "weight_bytes": 53_000 * bits,
        **others,
    }


def draw(groups: list[dict[str, Any]], **others: Any) -> dict[str, bytes]:
    return sweep_pictures({"groups": groups, "reference": [], "notice": None} | others)


GROUPS = [group("fp32", 32, 0.995), group("qat", 2, 0.99), group("qat", 4, 0.994)]
GROUPS += [group("ptq", 8, 0.994), group("ptq", 2, 0.3)]


def test_they_say_what_they_show() -> None:
    reference = [{"name": "BitNetMCU", "weight_bytes": 3200, "accuracy": 0.9892}]
    pictures = draw(GROUPS, reference=reference, notice="digits stand in")
    assert set(pictures) == set(PICTURES)
    bits, sizes = pictures["accuracy-bits.svg"].decode(), pictures["accuracy-bytes.svg"].decode()
    for text in ("weight bits", "test accuracy (%)", "QAT lsq", "PTQ affine", "float: 99.50 %", "2 seeds"):
        assert text in bits
    for text in ("packed weights (bytes)", "test accuracy (%)", "Pareto front", "others", "BitNetMCU", "2 bits"):
        assert text in sizes
    assert "stand-in for MNIST" in bits
    for name in PICTURES:
        magic = b"\x89PNG\r\n\x1a\n" if name.endswith("png") else b"<?xml"
        assert pictures[name].startswith(magic)


def test_the_same_results_give_the_same_bytes_and_others_do_not() -> None:
    assert draw(GROUPS) == draw(GROUPS)
    assert all(draw(GROUPS)[name] != draw(GROUPS[:-1])[name] for name in PICTURES)


@pytest.mark.parametrize(
    "groups",
    [
        [group("fp32", 32, 0.5)],
        [group("qat", 1, 1.0, accuracy_std=None, n=1)],
        [group("qat", 4, 0.0)],
        [group("ptq", 4, 0.1), group("ptq", 4, 0.2, settings={"train.lr": 0.1})],
        [group("qat", 4, 0.9, act_bits=act, model=model) for act in (2, 8) for model in ("lenet", "lenet-nano")],
        [group("qat", 1 + n % 8, random.Random(n).random(), quantizer=f"q{n // 8}") for n in range(80)],
    ],
    ids=["float", "perfect", "nothing right", "settings", "activations and models", "many"],
)
def test_any_sweep_can_be_drawn(groups: list[dict[str, Any]]) -> None:
    assert all(len(picture) > 1000 for picture in draw(groups).values())


FLOAT = group("fp32", 32, 0.995, weight_bytes=1_722_000)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (GROUPS, "Within 1 point of float: QAT lsq down to 2 bits; PTQ affine down to 8 bits (30.00 % at 2)"),
        (
            [FLOAT, group("ptq", 8, 0.5), group("ptq", 4, 0.99)],
            "Within 1 point of float: PTQ affine at no width (99.00 % at 4)",
        ),
        ([FLOAT], "float has 99.50 %"),
        ([group("qat", 4, 0.9)], "Mean of QAT lsq: 90.00 % at 4 bits"),
        ([FLOAT, group("qat", 1, 0.9)], "Mean of QAT lsq: 90.00 % at 1 bit"),
        (
            [group("qat", bits, mean, quantizer=name) for name, bits, mean in
             (("lsq", 1, 0.8), ("affine", 1, 0.7), ("lsq", 8, 0.9), ("affine", 8, 0.95))],
            "Highest mean: 80.00 % at 1 bit (QAT lsq), 95.00 % at 8 bits (QAT affine)",
        ),
    ],
)  # fmt: skip
def test_the_title_of_the_bits_is_what_the_groups_say(groups: list[dict[str, Any]], sentence: str) -> None:
    assert bits_finding({"groups": groups}) == sentence


def test_the_title_of_the_bytes_names_the_smallest_network_near_the_best() -> None:
    expected = "Within 1 point of the best (99.50 %), the smallest is QAT lsq at 2 bits: 106,000 bytes, 99.00 %"
    assert bytes_finding({"groups": [FLOAT, *GROUPS[1:]]}) == expected
    assert bytes_finding({"groups": [FLOAT]}).endswith("the smallest is float: 1,722,000 bytes, 99.50 %")


def colors(groups: list[dict[str, Any]], draw: Any = draw_bits) -> dict[str, str]:
    axes = Figure().subplots()
    draw(axes, {"groups": groups, "reference": [{"name": "X", "weight_bytes": 9000, "accuracy": 0.9}]})
    handles, names = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    return {name: line.get_color() for name, line in zip(names, lines, strict=True)}


def test_a_method_has_its_colour_in_both_pictures_whatever_else_is_drawn() -> None:
    qat, ptq = LOOKS["QAT"].color, LOOKS["PTQ"].color
    found = colors(GROUPS)
    assert (found["QAT lsq"], found["PTQ affine"], found["float: 99.50 %"]) == (qat, ptq, LOOKS["float"].color)
    sizes = colors(GROUPS, draw_bytes)
    assert (sizes["QAT lsq"], sizes["PTQ affine"], sizes["others"]) == (qat, ptq, LOOKS["others"].color)
    assert colors(GROUPS[3:]) == {"PTQ affine": ptq}
    assert colors([group("qat", 4, 0.9, quantizer="pow2")]) == {"QAT pow2": qat}
    both = colors([group("qat", 4, 0.9, quantizer=name) for name in ("pow2", "lsq")])
    assert both == {"QAT pow2": LOOKS["pow2"].color, "QAT lsq": qat}


def test_other_peoples_results_are_named_and_have_no_error_bars() -> None:
    axes = Figure().subplots()
    draw_bytes(axes, {"groups": GROUPS[:1], "reference": [{"name": "$X", "weight_bytes": 9000, "accuracy": 0.9}]})
    assert r"\$X" in [text.get_text() for text in axes.texts]
    assert len(axes.containers) == 1  # the bars of the one group


def test_without_a_deviation_there_is_no_bar() -> None:
    axes = Figure().subplots()
    draw_bits(axes, {"groups": [group("qat", 4, 0.9, accuracy_std=None, n=1)], "reference": []})
    (drawn,) = axes.containers
    assert not drawn.has_yerr


def test_no_error_is_said_to_be_drawn_as_some() -> None:
    assert "no error drawn as 0.01 %" in draw([group("qat", 4, 1.0)])["accuracy-bits.svg"].decode()
    assert "no error drawn" not in draw(GROUPS)["accuracy-bits.svg"].decode()


def test_bits_ascend_in_tables_as_in_pictures_and_float_is_last() -> None:
    groups = [one | {"loss_mean": 0.1, "images_per_second": None} for one in GROUPS]
    assert [row[1] for row in group_table(groups).rows] == ["2/2", "2/2", "4/4", "8/8", "32/32"]
    axes = Figure().subplots()
    draw_bits(axes, {"groups": groups[::-1], "reference": []})
    assert axes.get_xlim()[0] < axes.get_xlim()[1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "4", "8"]
