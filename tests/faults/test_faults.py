"""A few faults of every kind at the writes of the commands that write most; `run.py` beside this has all of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "run.py"
# Enough to strike every kind of point at least once: before and within a write, before a flush and a rename.
QUICK = {"train": 5, "resume": 3, "packed": 4, "sweep": 2}
FAULTS = ("killed", "full", "removed", "second")
MOST_SECONDS = 400.0  # of a machine that is busy with other things


@pytest.fixture(scope="session")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By story and fault, from one process: loading torch takes longer than all faults."""
    found: dict[str, Any] = {}
    file = tmp_path_factory.mktemp("faults") / "counts.json"
    asked = [f"{story}:{most}" for story, most in QUICK.items()]
    command = [sys.executable, str(SCRIPT), "--stories", ",".join(asked), "--faults", ",".join(FAULTS)]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=MOST_SECONDS, check=False
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    found.update(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("story", QUICK)
def test_after_a_fault_the_next_start_gives_what_an_undisturbed_run_gives(
    story: str, fault: str, counts: dict[str, Any]
) -> None:
    count = counts[story][fault]
    assert count["failures"] == []
    assert count["injections"] >= QUICK[story] // 2


def test_a_command_that_is_killed_without_care_is_found_out(tmp_path: Path) -> None:
    """The harness sees what it looks for: a file that is written in place, and one that is left behind."""
    sys.path.insert(0, str(SCRIPT.parents[1]))
    try:
        from faults import stories
    finally:
        sys.path.pop(0)
    (tmp_path / "config.json").write_text('{"config": ')
    (tmp_path / ".config.json.abcdefgh.tmp").write_text("x")
    assert stories.damaged(tmp_path) == [
        "config.json: damaged: JSONDecodeError: Expecting value: line 1 column 12 (char 11)"
    ]
    assert set(stories.contents(tmp_path)) == {"config.json", ".config.json.abcdefgh.tmp"}
