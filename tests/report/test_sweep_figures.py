"""Pictures of a sweep: any result can be drawn, the pictures are labelled, and they are reproducible."""

import random
from typing import Any

import pytest

from qattrain.experiments.folder import PICTURES
from qattrain.report.sweeps import sweep_pictures


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
