"""JSON files: what was altered is noticed, what is missing is told from what is damaged, and no file is too much."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qattrain.errors import RecordError
from qattrain.experiments.kinds import FAILURE_KIND, PLAN_KIND, RESULT_KIND, SWEEP_KIND
from qattrain.files import records
from qattrain.files.records import Kind
from qattrain.runs.folder import COMPARISON_KIND, CONFIG_KIND, METRICS_KIND

FLIPS, TRUNCATIONS = 40, 10  # of every file; 400 and 50 were tried once

ROW = {
    "run_dir": "cells/a", "method": "qat", "bits": 4, "act_bits": 4, "quantizer": "lsq", "model": "lenet",
    "dataset": "digits", "seed": 0, "epochs": 2, "accuracy": 0.9375, "loss": 0.25, "weight_bytes": 312.5,
    "images_per_second": 1e4, "status": "finished", "error": None, "warnings": ["déjà vu"], "settings": {"x": 0.1},
}  # fmt: skip
GROUP = {key: ROW[key] for key in ("method", "bits", "act_bits", "quantizer", "model", "dataset", "epochs", "settings")}
GROUP |= {"n": 1, "accuracy_mean": 0.9375, "accuracy_std": None, "loss_mean": 0.25, "weight_bytes": 312.5}
CONFIG = {"name": None, "seed": 0, "data": {"dataset": "digits"}, "train": {"lr": 0.05, "threads": 1}}
EXAMPLES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "config": (CONFIG_KIND, {"config": CONFIG, "environment": {"python": "3.11.2", "packages": {"torch": "2.10"}}}),
    "comparison": (COMPARISON_KIND, {"test_images": 9, "rows": [{"method": "qat", "run_dir": "a", "accuracy": 0.5}]}),
    "plan": (
        PLAN_KIND,
        {"asked": "{}", "axes": ["seed"], "version": "1", "cells": [{"name": "a", "config": CONFIG, "notice": None}]},
    ),
    "result": (
        RESULT_KIND,
        {"epochs": 2, "accuracy": 1, "loss": 1e-3, "train_loss": None, "weight_bytes": 9.5, "images_per_second": 7.25},
    ),
    "failure": (FAILURE_KIND, {"error": "the loss became nan"}),
    "sweep": (
        SWEEP_KIND,
        {"notice": None, "rows": [ROW], "groups": [GROUP | {"images_per_second": None}], "reference": []},
    ),
}
HISTORY = [
    {"epoch": n, "train_loss": 0.5 / n, "test_loss": 0.25, "test_accuracy": 1 - 0.1 / n, "warnings": ["a", "b"]}
    for n in (1, 2, 3)
]


def damage(data: bytes, flips: int, truncations: int) -> Iterator[bytes]:
    """The data with one bit flipped, and cut off."""
    chosen = random.Random(len(data))
    for _ in range(flips):
        changed = bytearray(data)
        changed[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        yield bytes(changed)
    for _ in range(truncations):
        yield data[: chosen.randrange(len(data))]


def noticed(path: Path, data: bytes, read: Callable[[], Any], flips: int, truncations: int) -> int:
    """How many of the alterations raise a RecordError of one line; all others must leave what is read as it was."""
    whole, count, unchanged = read(), 0, 0
    for changed in damage(data, flips, truncations):
        path.write_bytes(changed)
        try:
            assert repr(read()) == repr(whole), changed
        except RecordError as error:
            lines = str(error).splitlines()
            count += len(lines) == 1 and str(path) in lines[0]
        else:
            unchanged += 1
    assert count + unchanged == flips + truncations
    return count


def remedy(path: Path) -> str:
    return f"do without {path.name}"


SMALL = Kind({"a": int}, remedy, most_bytes=300_000)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_altered_bit_of_a_record_is_noticed_or_changes_nothing(tmp_path: Path, name: str) -> None:
    kind, content = EXAMPLES[name]
    path = tmp_path / "file.json"
    records.write(path, kind, content)
    assert records.read_versioned(path, kind) == (content, 1)
    assert list(json.loads(path.read_text())) == [*content, "format_version", "digest"]
    count = noticed(path, path.read_bytes(), lambda: records.read(path, kind), FLIPS, TRUNCATIONS)
    assert count >= 0.8 * (FLIPS + TRUNCATIONS)  # spaces that become tabs, and the last line's end, change nothing


def test_every_altered_bit_and_missing_line_of_a_file_of_lines_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records.write_lines(path, METRICS_KIND, HISTORY)
    assert records.read_lines(path, METRICS_KIND) == HISTORY
    data, lines = path.read_bytes(), path.read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [sorted([*HISTORY[0], "format_version", "digest"])] * 3

    def read() -> Any:
        return records.read_lines(path, METRICS_KIND)

    assert noticed(path, data, read, FLIPS, TRUNCATIONS) >= 0.8 * (FLIPS + TRUNCATIONS)
    old = json.dumps(HISTORY[0])
    for changed in (lines[:2], lines[1:], [lines[1], lines[0], lines[2]], [*lines, lines[2]], [old, *lines[1:]], [""]):
        path.write_text("".join(f"{line}\n" for line in changed))
        with pytest.raises(RecordError, match="is damaged"):
            read()


@pytest.mark.parametrize("name", EXAMPLES)
def test_files_of_older_versions_are_read_and_those_of_newer_ones_say_so(tmp_path: Path, name: str) -> None:
    kind, content = EXAMPLES[name]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    assert records.read_versioned(path, kind) == (content, records.UNSEALED)
    records.write(path, replace(kind, version=2), content)
    with pytest.raises(RecordError, match=r"file\.json has format version 2; this qattrain reads up to 1; use the one"):
        records.read(path, kind)
    path.write_text(json.dumps(dict(list(content.items())[1:]) | {"extra": 1}))
    with pytest.raises(RecordError, match=r"is damaged: its .* is missing or not what qattrain writes; "):
        records.read(path, kind)


def test_lines_of_older_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in HISTORY))
    assert records.read_lines(path, METRICS_KIND) == HISTORY
    path.write_text("")
    assert records.read_lines(path, METRICS_KIND) == []


def test_a_file_laid_out_anew_is_the_same(tmp_path: Path) -> None:
    kind, content = EXAMPLES["config"]
    path = tmp_path / "file.json"
    records.write(path, kind, content)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, ensure_ascii=False) + "\r\n\r\n")
    assert records.read(path, kind) == content


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "line 1, column 1: expecting value"),
    "half": (b'{"a": 1', "expecting ',' delimiter"),
    "a list": (b"[1]", "it holds a list, not an object"),
    "no text": (b'{"a": "\xff"}', "byte 7 is not text"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "nested within": (b'{"a": 1, "b": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001, "nested too deeply"),
    "5,000 digits": (b'{"a": ' + b"9" * 5_000 + b"}", "has 5,000 digits; allowed: 64 bits"),
    "20 digits": (b'{"a": 10000000000000000000}', "allowed: 64 bits"),
    "not finite": (b'{"a": 1e999}', "not finite"),
    "not a number": (b'{"a": NaN}', "not finite"),
    "another type": (b'{"a": 1.0}', "its 'a' is missing or not what qattrain writes"),
    "a switch": (b'{"a": true}', "its 'a' is missing"),
    "no digest": (b'{"a": 1, "format_version": 1}', "its digest does not match"),
    "no version": (b'{"a": 1, "digest": "x"}', "its digest does not match"),
    "a digest of another kind": (b'{"a": 1, "format_version": 1, "digest": [3]}', "its digest does not match"),
    "large": (b" " * 300_001, "more than 300,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_record_is_one_line_with_the_remedy(tmp_path: Path, name: str) -> None:
    data, why = BAD[name]
    path = tmp_path / "file.json"
    path.write_bytes(data)
    for read in (records.read, records.read_lines):
        if read is records.read or (data and name != "half"):
            with pytest.raises(RecordError) as caught:
                read(path, SMALL)
            assert why in str(caught.value)
            assert str(caught.value).endswith("; do without file.json")


def test_too_many_values_are_refused_before_they_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_VALUES", 1000)
    monkeypatch.setattr(json, "loads", None)
    (tmp_path / "file").write_text('{"a": 1, "b": [' + "[]," * 1000 + "1]}")
    with pytest.raises(RecordError, match="more than 1,000 values"):
        records.read(tmp_path / "file", SMALL)


def test_missing_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "none" / "below", tmp_path / "file" / "below"):
        assert records.read(path, SMALL) is None
        assert records.read_lines(path, SMALL) is None
    with pytest.raises(RecordError, match=r"^cannot read .*folder.*irectory.*; do without folder$"):
        records.read(tmp_path / "folder", SMALL)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be written"):
        records.write(tmp_path / "file", SMALL, {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_shapes() -> None:
    kind = Kind({"a?": [(int, None)], "b": {"*": float}, "c?": str, "d?": records.fraction}, remedy)
    good = {"a": [1, None], "b": {"x": 1, "y": 0.5}, "d": 1, "more": 3}
    bad = [
        {"b": {"x": "1"}},
        {"b": []},
        {"a": [1.5], "b": {}},
        {"a": 1, "b": {}},
        {"b": {}, "c": None},
        {"b": {}, "d": 2},
    ]
    path = Path("x")
    assert records._opened(dict(good), "", path, kind)[0] == good
    for content, name in zip(bad, ("b.x", "b", "a[0]", "a", "c", "d"), strict=True):
        with pytest.raises(RecordError) as caught:
            records._opened(dict(content), "", path, kind)
        assert f"its '{name}' is missing" in str(caught.value)
