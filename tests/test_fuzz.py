"""Every reader against a few hundred altered inputs; `fuzz.py` tries millions, guided by coverage."""

import json
import random
from pathlib import Path
from typing import Any

import flips
import fuzz_records
import fuzz_targets
import pytest
from fuzz_targets import TARGETS, Target, mutated, tried
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qattrain.errors import QattrainError

EVERY = TARGETS | fuzz_records.RECORDS
SLOW = {"checkpoint_fields": 15, "arrays": 20, "records": 25, "records_sealed": 25, "image": 30, "settings": 30}


def damaged(data: bytes, seed: int) -> bytes:
    """Bytes replaced, cut out, doubled or cut off, in one to four places."""
    chance, found = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(found) + 1), chance.choice((1, 1, 2, 8, 64))
        what = chance.randrange(4)
        if what == 0:
            found[place : place + length] = chance.randbytes(length)
        elif what == 1:
            del found[place : place + length]
        elif what == 2:
            found[place:place] = found[place : place + length]
        else:
            del found[place:]
    return bytes(found)


@pytest.mark.parametrize("name", EVERY)
def test_no_reader_fails_otherwise_than_by_an_error_of_ours(name: str, tmp_path: Path) -> None:
    target = EVERY[name]
    seeds = target.seeds()

    @settings(max_examples=SLOW.get(name, 60), suppress_health_check=list(HealthCheck), database=None)
    @given(seed=st.integers(0, 2**32), which=st.integers(0, len(seeds) - 1), as_tree=st.booleans())
    def check(seed: int, which: int, as_tree: bool) -> None:
        change = mutated if target.json and as_tree else damaged
        assert tried(target, change(seeds[which], seed), tmp_path) is None

    check()


@pytest.mark.parametrize("name", EVERY)
def test_every_valid_input_is_taken(name: str, tmp_path: Path) -> None:
    for seed in EVERY[name].seeds():
        assert tried(EVERY[name], seed, tmp_path) is None


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_data: bytes, _folder: Path) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        tried(Target(wrong, list), b"", tmp_path)
    monkeypatch.setattr(fuzz_targets, "MOST_SECONDS", -1.0)
    found = tried(Target(lambda _data, _folder: None, list), b"", tmp_path)
    assert found == "took 0.0 s"


@pytest.mark.parametrize("name", flips.KINDS)
def test_flipped_bits_and_truncations_never_change_an_output_silently(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "unset")  # put back after what the kind sets
    counts = flips.alter(flips.KINDS[name], flips=20, cuts=5, seed=1)
    assert not [text for text in counts if text.startswith("WRONG")]
    assert sum(counts.values()) == 25
    if name not in ("npz images", "decoded pictures", "picture"):
        assert counts["noticed"] + counts[flips.AGAIN] == 25


# --- what it found first: each ended in a traceback ------------------------------------------------------------------


def sealed_record(name: str) -> Any:
    """The JSON of a seed of `records_sealed`, to be altered."""
    return next(found for seed in EVERY["records_sealed"].seeds() if (found := json.loads(seed))["file"] == name)


def two_cells_of_one_name(record: Any) -> None:
    record["content"]["cells"] *= 2


def no_cells(record: Any) -> None:
    record["content"]["cells"] = []


def a_name_longer_than_a_folder_may_have(record: Any) -> None:
    record["content"]["cells"][0]["name"] = "9" * 400


def a_run_with_such_a_name(record: Any) -> None:
    record["content"]["rows"][0]["run_dir"] = "9" * 400


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("plan.json", two_cells_of_one_name, "two have one name"),
        ("plan.json", no_cells, "its cells are none"),
        ("plan.json", a_name_longer_than_a_folder_may_have, "too long"),
        ("compare.json", a_run_with_such_a_name, "is neither there"),
    ],
)
def test_a_sealed_record_of_nonsense_is_one_line(name: str, change: Any, text: str, tmp_path: Path) -> None:
    record = sealed_record(name)
    change(record)
    with pytest.raises(QattrainError, match=text):
        fuzz_records.read_sealed(json.dumps(record).encode(), tmp_path)


def test_answers_that_are_several_arrays_are_made_again(tmp_path: Path) -> None:
    assert fuzz_targets.read_answers(fuzz_targets._npz(), tmp_path) is None
