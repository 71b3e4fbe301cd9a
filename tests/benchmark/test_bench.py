"""`qattrain bench`: rounds, medians, ratios, what is missing, and how busy the machine was."""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from qattrain.benchmark import rounds
from qattrain.benchmark.inference import INFERENCE
from qattrain.benchmark.rounds import DISCARDED_ROUNDS, Contender, Ready, Workload, measure, synthetic_images
from qattrain.benchmark.training import TRAINING
from qattrain.errors import ConfigError

ROW_FIELDS = "name what batch detail repeats images_per_second ratios missing"
FIELDS = (
    "training inference environment precision threads train_images predicted_images repeats discarded_rounds "
    "other_processes_cores busy seconds"
)
GROUPS = {"training": TRAINING, "inference": INFERENCE}
TINY = rounds.Effort(repeats=1, train_images=64, predicted_images=4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "QUICK", TINY)
    monkeypatch.setattr(rounds, "LISTENING_SECONDS", 0.0)


def unfolded(text: str) -> str:
    """Without the spaces, line ends and borders that tables and panels put between words."""
    return re.sub(r"[\s│]", "", text)


def contender(name: str, speeds: Iterator[float], asked: list[str], batch: int = 1) -> Contender:
    def ask() -> float:
        asked.append(name)
        return next(speeds)

    return Contender(name, "", (batch,), lambda _workload: {batch: Ready(ask)})


def test_contenders_take_turns_the_first_round_is_discarded_and_ratios_are_of_medians() -> None:
    asked: list[str] = []
    counted: list[int] = []
    slow = contender("slow", iter([1e9, 1.0, 2.0, 9.0]), asked)
    fast = contender("fast", iter([1e9, 8.0, 4.0, 6.0]), asked, batch=2)
    data = synthetic_images(1)
    rows = measure(
        [slow, fast], Workload(data, data, DISCARDED_ROUNDS + 3, "fp32", ExitStack()), ["slow"], counted.append
    )
    assert asked == ["slow", "fast"] * 4
    assert counted == [0, 1, 2, 3]
    assert [row.repeats for row in rows] == [[1.0, 2.0, 9.0], [8.0, 4.0, 6.0]]
    assert [row.images_per_second for row in rows] == [2.0, 6.0]
    assert [row.ratios for row in rows] == [{"slow": 1.0}, {"slow": 3.0}]


def test_json_has_every_field_and_its_medians_follow(main: Callable[..., Any]) -> None:
    done = main("bench", "--only", "plain,lsq-w4a4-eager,torch-fp32", "--quick", "--repeats", "2", "--json")
    assert done.rc == 0, done
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert list(found) == FIELDS.split()
    assert [row["name"] for row in found["training"]] == ["plain", "lsq-w4a4-eager"]
    assert [(row["name"], row["batch"]) for row in found["inference"]] == [("torch-fp32", 1), ("torch-fp32", 1000)]
    for row in found["training"] + found["inference"]:
        assert list(row) == ROW_FIELDS.split()
        assert len(row["repeats"]) == found["repeats"] == 2
        assert row["images_per_second"] == statistics.median(row["repeats"]) > 0
    plain, own = found["training"]
    assert own["ratios"] == {"plain": own["images_per_second"] / plain["images_per_second"], "float": None}
    assert found["precision"] in ("fp32", "bf16")
    assert found["environment"]["cpu_cores"] >= 1
    assert torch.__version__.startswith(found["environment"]["versions"]["torch"].partition("+")[0])


def test_the_table_says_what_each_contender_is_and_threads_are_as_before(main: Callable[..., Any]) -> None:
    threads = torch.get_num_threads()
    done = main("bench", "--quick", "--only", "plain,c-packed", "--threads", "2")
    assert done.rc == 0, done
    for expected in (
        "images/s",
        "x plain",
        "x ort-int8",
        "plain PyTorch",
        "layout packed",
        "2 threads",
        "medians of 1",
    ):
        assert expected in done.stdout
    assert torch.get_num_threads() == threads


def test_an_unknown_name_is_refused_with_those_there_are(main: Callable[..., Any]) -> None:
    done = main("bench", "--only", "plain,nosuch")
    assert done.rc == 2
    assert "'nosuch'" in done.error
    assert all(contender.name in done.error for contender in (*TRAINING, *INFERENCE))
    with pytest.raises(ConfigError, match="nosuch"):
        rounds.choose(GROUPS, ["nosuch*"])


def test_names_may_be_patterns() -> None:
    chosen = rounds.choose(GROUPS, ["c-*", "binary-w1a1"])
    assert {group: [c.name for c in table] for group, table in chosen.items()} == {
        "training": ["binary-w1a1"],
        "inference": ["c-packed", "c-int8"],
    }


def test_without_the_extras_their_rows_say_what_to_install(
    main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("brevitas", "brevitas.nn", "onnx", "onnxruntime", "onnxruntime.quantization"):
        monkeypatch.setitem(sys.modules, package, None)
    done = main("bench", "--quick", "--only", "brevitas*,ort-*,onnx,torch-fp32", "--json")
    assert done.rc == 0, done
    found = json.loads(done.stdout)
    for row in found["training"] + found["inference"]:
        if row["name"] == "torch-fp32":
            assert row["images_per_second"] > 0
            assert row["ratios"] == {"ort-fp32": None, "ort-int8": None}
        else:
            extra = "bench" if row["name"].startswith("brevitas") else "onnx"
            assert f"pip install 'qattrain[{extra}]'" in row["missing"]
            assert row["images_per_second"] is None
    assert "pipinstall'qattrain[bench]'" in unfolded(done.stderr)


@pytest.mark.parametrize(("cores", "expected"), [(1.5, True), (0.01, False), (None, None)])
def test_a_busy_machine_is_said_to_be_busy(
    main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cores: float | None, expected: bool | None
) -> None:
    monkeypatch.setattr(rounds.BusyMeter, "others_cores", lambda _self: cores)
    done = main("bench", "--quick", "--only", "plain", "--json")
    found = json.loads(done.stdout)
    assert found["busy"] is expected
    assert found["other_processes_cores"]["median"] == cores
    assert ("Otherprocessesused1.5cores" in unfolded(done.stderr)) is (expected is True)
    assert ("otherprocessesuse1.5cores:stopthem" in unfolded(done.stderr)) is (expected is True)


def test_the_meter_counts_processors_at_work_for_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    clock = iter([10.0, 20.0, 30.0])
    own = iter([(1.0, 0.0, 0.0, 0.0, 0.0), (4.0, 2.0, 0.0, 0.0, 0.0), (4.0, 2.0, 0.0, 0.0, 0.0)])
    monkeypatch.setattr(rounds, "STAT", stat)
    monkeypatch.setattr(rounds.os, "sysconf", lambda _name: 100)
    monkeypatch.setattr(rounds.os, "times", lambda: next(own))
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: next(clock))
    stat.write_text("cpu 1000 0 500 9000 70 0 0 0 0 0\ncpu0 1\n")
    meter = rounds.BusyMeter()
    stat.write_text("cpu 1700 100 700 9900 80 0 0 0 0 0\ncpu0 1\n")  # 10 s more of work, 5 of them our own
    assert meter.others_cores() == pytest.approx(0.5)
    stat.unlink()
    assert meter.others_cores() is None
