"""The headline of a report: true for every set of networks and sweeps, and what stands side by side."""

import contextlib
import dataclasses
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qattrain.data import ImageSet
from qattrain.evaluation.metrics import Evaluation
from qattrain.integer import ModelFacts
from qattrain.report.contents import headline, share, size
from qattrain.report.findings import Finding
from qattrain.report.page import Table
from qattrain.report.side_by_side import disagreement_blocks
from qattrain.report.sources import Subject, Sweep

IMAGES = 1000


def layer(name: str, kind: str, bits: int, weight_bytes: int = 0) -> Any:
    return SimpleNamespace(layer=name, kind=kind, bits=bits, weight_bytes=weight_bytes, quantizer="lsq")


def found(
    kind: str, errors: Sequence[int], bits: tuple[int, int] = (4, 4), name: str = "", *, averages: int = 0,
    exempt: int = 0, dataset: str = "mnist", images: int = IMAGES, first: bool = True,
) -> Finding:  # fmt: skip
    """A network that gets the images `errors` wrong, of 8000 weights, as a finding of a report."""
    labels = torch.zeros(images, dtype=torch.int64)
    predictions = labels.clone()
    predictions[list(errors)] = 1
    layers = [
        layer("conv1", "weight", exempt or bits[0]),
        layer("act1", "activation", bits[1]),
        layer("fc1", "weight", bits[0], 1000 * bits[0]),
        layer("fc2", "weight", bits[0]),
    ]
    layers += [layer("avg1", "activation", averages)] if averages else []
    nothing: Any = None
    logits = torch.nn.functional.one_hot(predictions, 10).double()
    return Finding(
        subject=Subject(name or kind, Path("last.pt")),
        kind=kind,
        facts=ModelFacts("lenet", dataset, tuple("0123456789"), None),
        test=ImageSet(torch.zeros(images, 1, 4, 4, dtype=torch.uint8), labels),
        evaluation=Evaluation(images, images - len(errors), 0.5, logits, predictions),
        inspection=SimpleNamespace(layers=layers),  # type: ignore[arg-type]
        wrong=[],
        delta=0.0 if first else None,
        mcnemar_p=nothing,
        config=nothing,
        environment={},
        history=[],
        notes=[],
    )


FLOAT = found("float", range(10), (32, 32))
QAT = found("QAT", range(50))


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([QAT], "4-bit QAT: 95.00 % of 1,000 mnist test images, 4 kB of weights"),
        ([FLOAT], "Float: 99.00 % of 1,000 mnist test images, 32 kB of weights"),
        ([found("QAT", (), images=1, dataset="folder:a/pets@8x8")], "4-bit QAT: 100.00 % of 1 pets test image, 4 kB"),
        ([FLOAT, QAT], "4-bit QAT: 95.00 %, 4.00 points below float, an eighth of the weight bytes"),
        ([QAT, FLOAT], "4-bit QAT: 95.00 %, 4.00 points below float, an eighth of the weight bytes"),
        ([FLOAT, found("QAT", range(11))], "0.10 points below float (within chance), an eighth"),
        ([FLOAT, found("QAT", range(10, 20))], "4-bit QAT: 99.00 %, as many images right as float, an eighth"),
        ([FLOAT, found("QAT", ())], "4-bit QAT: 100.00 %, 1.00 points above float, an eighth"),
        ([QAT, found("QAT", range(9), (8, 8))], "8-bit QAT: 99.10 %, 4.10 points above 4-bit QAT, twice the weight"),
        ([QAT, found("QAT", range(9), (4, 4), "b")], "b: 99.10 %, 4.10 points above QAT, as many weight bytes"),
        ([found("QAT", range(9), (3, 8)), QAT], "3/8-bit QAT, 1.33 times the weight bytes"),
        (
            [FLOAT, QAT, found("PTQ", range(500), (2, 2))],
            "4-bit QAT: 95.00 %, 4.00 points below float, an eighth of the weight bytes; 2-bit PTQ: 50.00 %",
        ),
        ([FLOAT, QAT, found("PTQ", range(500), (2, 2)), found("QAT", range(60), (1, 1))], "; the most accurate of 3"),
        # As accurate, and smaller: nothing says that it is the most accurate.
        ([FLOAT, QAT, found("QAT", range(50), (2, 2)), found("QAT", range(60), (1, 1))], "2-bit QAT: 95.00 %, 4.00"),
        ([FLOAT, QAT, found("QAT", range(50), (2, 2)), found("QAT", range(60), (1, 1))], "; none of 3 networks beside"),
        ([QAT, found("QAT", (), dataset="kmnist", first=False)], "2 networks on 2 datasets: test accuracy 95.00 % to"),
        ([QAT, found("QAT", range(5), images=100, first=False)], "2 networks on mnist: test accuracy 95.00 %"),
    ],
)  # fmt: skip
def test_the_headline_is_true_for_every_set_of_networks(findings: list[Finding], expected: str) -> None:
    assert expected in headline(findings, [])


@pytest.mark.parametrize(
    ("finding", "label", "bits"),
    [
        (found("QAT", (), averages=8), "4-bit QAT", "4 / 4 (avg1: 8)"),
        (found("QAT", (), (2, 4), exempt=8), "mostly 2/4-bit QAT", "2 / 4 (conv1: 8)"),
        (found("QAT", (), exempt=32), "mostly 4-bit QAT", "4 / 4 (conv1: 32)"),
        (found("float", (), (32, 32)), "float", "32 / 32"),
        (found("packed", (), (1, 2)), "1/2-bit packed", "1 / 2"),
    ],
)
def test_bits_are_named_with_the_layers_that_have_others(finding: Finding, label: str, bits: str) -> None:
    assert (finding.label, finding.bits) == (label, bits)


def test_sizes_and_shares_are_written_as_people_say_them() -> None:
    assert [size(count) for count in (1, 578, 1000, 215_250, 1_722_000, 2_000_000_000)] == [
        "1 byte", "578 bytes", "1 kB", "215 kB", "1.72 MB", "2,000 MB"
    ]  # fmt: skip
    parts = (1, 2, 4, 8, 16, 6, 32, 48)
    assert [share(part, 32).removesuffix(" the weight bytes") for part in parts] == [
        "1/32 of", "a sixteenth of", "an eighth of", "a quarter of", "half", "19 % of", "as many weight bytes",
        "1.5 times",
    ]  # fmt: skip


def group(method: str, bits: int, accuracy: float, **others: Any) -> dict[str, Any]:
    same = {"act_bits": bits, "quantizer": "lsq", "model": "lenet", "dataset": "mnist", "n": 3}
    return {"method": method, "bits": bits, "accuracy_mean": accuracy, "weight_bytes": 1000 * bits} | same | others


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], "Sweep s: no run has finished"),
        ([group("qat", 4, 0.9)], "4-bit QAT (lsq): 90.00 % of mnist, mean of 3 seeds, 4 kB of weights"),
        ([group("qat", 4, 0.9, n=1), group("qat", 8, 0.5)], "4-bit QAT (lsq): 90.00 % of mnist, the best of 2"),
        (
            [group("fp32", 32, 0.95), group("qat", 4, 0.948), group("qat", 2, 0.93)],
            "4-bit QAT (lsq): 94.80 % of mnist, mean of 3 seeds, an eighth of the weight bytes of float; the fewest "
            "weight bytes within half a point of the best of 3 settings (95.00 %)",
        ),
        ([group("fp32", 32, 0.95), group("ptq", 4, 0.5)], "Float: 95.00 % of mnist, mean of 3 seeds, the best of 2"),
        ([group("qat", 4, 0.9), group("qat", 4, 0.8, dataset="k")], "1 sweep on 2 datasets: test accuracy 80.00 % to"),
    ],
)  # fmt: skip
def test_the_headline_of_a_sweep_names_the_smallest_setting_that_is_nearly_the_best(
    groups: list[dict[str, Any]], expected: str
) -> None:
    assert expected in headline([], [Sweep(Path("runs/s"), {"groups": groups})])


def test_a_sweep_and_networks_together_are_only_counted() -> None:
    sweep = Sweep(Path("s"), {"groups": [group("qat", 4, 0.9)]})
    assert headline([QAT], [sweep]) == "1 sweep and 1 network on mnist: test accuracy 90.00 % to 95.00 %"


def test_images_with_different_answers_are_counted_and_some_of_every_kind_are_shown() -> None:
    table, tiles = disagreement_blocks([FLOAT, QAT, found("PTQ", range(40, 45), (2, 2))])
    assert isinstance(table, Table)
    # Float is wrong on 0 to 9, QAT on 0 to 49, PTQ on 40 to 44.
    assert "the 50 images with different answers, of 1,000" in table.title
    assert table.columns == ["images", "float", "4-bit QAT", "2-bit PTQ"]
    assert table.rows == [
        ["35", "right", "wrong", "right"], ["10", "wrong", "wrong", "right"], ["5", "right", "wrong", "wrong"]
    ]  # fmt: skip
    shown = [int(row[0]) for row in tiles.table.rows]  # type: ignore[union-attr]
    assert shown[:3] == [0, 10, 40]
    assert len(shown) == 24 == len(tiles.tiles)  # type: ignore[union-attr]
    assert tiles.tiles[0].lines == ["true 0", "float: 1", "4-bit QAT: 1", "2-bit PTQ: 0\u00a0✓"]  # type: ignore[union-attr]
    (same,) = disagreement_blocks([QAT, dataclasses.replace(QAT)])
    assert same.text == "They give the same answer on all 1,000 test images."  # type: ignore[union-attr]
    many = [found("QAT", range(number), name=f"n{number}") for number in range(5)]
    _, tiles = disagreement_blocks(many)
    assert tiles.tiles[0].lines == ["true 0", "1: 4 networks", "0\u00a0✓: 1 network"]  # type: ignore[union-attr]


def test_only_settings_that_differ_are_shown_and_the_others_are_folded(
    main: Callable[..., Any], networks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert main("report", "float", "ptq", "--runs-dir", networks.runs_dir, "--out", out).rc == 0
    html = out.read_text()
    shown, _, folded = html.partition('<section id="configuration"')[2].partition("<details>")
    folded = folded.partition("</section>")[0]
    for setting in ("model.name", "quant.bits", "train.epochs", "ptq.calibration"):
        assert f">{setting}</th>" in shown, setting
        assert f">{setting}</th>" not in folded, setting
    for setting in ("train.momentum", "seed"):
        assert f">{setting}</th>" in folded, setting
        assert f">{setting}</th>" not in shown, setting


def test_the_steps_are_told_on_stderr_and_a_bar_vanishes(
    main: Callable[..., Any], networks: Any, tmp_path: Path
) -> None:
    done = main("report", "float", "ptq", "--runs-dir", networks.runs_dir, "--out", tmp_path / "a.html", "--json")
    assert done.rc == 0
    assert json.loads(done.stdout)["report"].endswith("a.html")
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("evaluating ")] == ["evaluating float", "evaluating ptq"]
    assert any(line.startswith("drawing ") and line.endswith(" charts") for line in lines)


def test_a_terminal_shows_a_bar(networks: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "qattrain", "report", "float", "--runs-dir", str(networks.runs_dir), "--out", out]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the command has ended
            while chunk := os.read(ours, 4096):
                shown += chunk
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read().decode().startswith(f"wrote {out} ")
    assert process.returncode == 0
    for text in ("evaluating float", "drawing", "━", "/"):
        assert text in shown.decode(), shown
