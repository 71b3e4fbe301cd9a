"""What the faults are done to: every command that writes, small enough to run in a tenth of a second.

A `Story` is a command in a folder that `prepare` made, what a person would do after a fault, and what must be there in
the end: the same as if nothing had happened.
"""

import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIGITS = ("--dataset", "digits", "--limit-train", "48", "--limit-test", "30", "--epochs", "2", "--batch-size", "24")
TINY = (*DIGITS, "--threads", "1", "--model", "conv 2 5x5 stride 3, pool 2, fc")
# No two runs have these in common, or need not.
TIMES = ("epoch_seconds", "images_per_second", "digest", "run_dir")


@dataclass(frozen=True)
class Story:
    """command: what is disturbed. before: commands that make what it needs. target: the folder, or file, it writes.

    resume: what a person runs after it was disturbed, if the command itself is refused because its run exists.
    rival: what a second process does at the same time; the command itself if it is left out. environment: of all these.
    files: makes those that are needed besides. compared: files whose names begin so must be the same in the end.
    compared_at_once: the same, where a second process makes runs of its own. spared: files whose names begin so are no
    result (saved answers, locks), so they may be missing in the end.
    """

    command: tuple[str, ...]
    target: str
    before: tuple[tuple[str, ...], ...] = ()
    resume: tuple[str, ...] | None = None
    rival: tuple[str, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    files: Callable[[Path], None] = lambda _folder: None
    compared: str = ""
    compared_at_once: str | None = None
    spared: str | None = None


FLOAT = ("train", *TINY, "--bits", "32", "--name", "f")
NET = ("train", *TINY, "--bits", "4", "--name", "net")
RESUME = ("train", "--resume", "r")
REPORT_ONLY = ("sweep", "--name", "s", "--report-only")  # a second sweep would wait for the cells of the first
SWEPT = (
    *DIGITS[:-4],
    "--epochs",
    "1",
    "--batch-size",
    "24",
    "--threads",
    "1",
    "--model",
    "['conv 2 5x5 stride 3, pool 2, fc']",
)


def exported(to: str, *options: str) -> Story:
    command = ("export", "net", "--to", to, "--out", "out", *options)
    return Story(command, "out", before=(NET,))


def pictures(folder: Path) -> None:
    """A dataset of two classes."""
    import numpy as np
    from PIL import Image

    for label in range(2):
        (folder / "pictures" / str(label)).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (28, 28)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / str(label) / f"{number}.png")


STORIES = {
    "train": Story(
        ("train", *TINY, "--bits", "4", "--set", "data.val_split=12", "--name", "r"),
        "runs/r",
        resume=RESUME,
        rival=RESUME,
    ),
    "resume": Story(RESUME, "runs/r", (("train", *TINY, "--bits", "4", "--name", "r", "--stop-after", "1"),)),
    "ptq": Story(("ptq", "f", "--bits", "4", "--name", "r"), "runs/r", (FLOAT,), resume=RESUME),
    "teacher": Story(
        ("train", *TINY, "--bits", "4", "--teacher", "f", "--name", "r"),
        "runs/r",
        (FLOAT,),
        resume=RESUME,
        spared="runs/f/answers/",
    ),
    "kernels": Story(
        ("train", *TINY, "--bits", "4", "--set", "train.compile=on", "--name", "r"),
        "cache",
        resume=RESUME,
        environment={"CC": "quick-cc"},
        compared="runs",
    ),
    "packed": exported("packed"),
    "onnx": exported("onnx", "--verify-images", "2"),
    "c": exported("c", "--no-verify"),
    "compare": Story(
        ("compare", "fp32", "vs", "ptq", "vs", "qat", *TINY, "--bits", "4"), "runs", compared_at_once="runs/compare-"
    ),
    "sweep": Story(
        ("sweep", *SWEPT, "--bits", "2,32", "--ptq", "4", "--name", "s"),
        "runs/s",
        rival=REPORT_ONLY,
        spared="runs/s/claims/",  # locks, empty
    ),
    "report": Story(("report", "net", "--out", "page.html"), "page.html", (NET,)),
    "inspect": Story(("inspect", "net", "--plots", "out"), "out", (NET,)),
    "pictures": Story(
        ("train", *TINY[6:], "--dataset", "folder:pictures", "--bits", "4", "--name", "r"),
        "cache",
        resume=RESUME,
        files=pictures,
        compared="runs",
    ),
}


# --- what is there ----------------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, str]:
    """A digest of the meaning of every file below `root`: without times, and of checkpoints without torch's framing."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            found[str(path.relative_to(root))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if not stat.S_ISREG(path.lstat().st_mode):
        return "no ordinary file"
    if path.parent.name == "claims":
        return "a claim"  # of a cell that is finished; it may still name who died holding it
    meaning: Any = path.read_bytes()
    try:
        if path.suffix == ".pt":
            meaning = _checkpoint(path)
        elif path.suffix == ".json":
            found = json.loads(meaning)
            meaning = _timeless(found["config"] if path.name == "config.json" else found)
        elif path.suffix == ".jsonl":
            meaning = [_timeless(json.loads(line)) for line in meaning.decode().splitlines()]
        elif path.suffix == ".csv":
            meaning = [_timeless(row) for row in csv.DictReader(io.StringIO(meaning.decode()))]
    except Exception as error:
        return f"damaged: {type(error).__name__}: {error}"
    return hashlib.sha256(meaning if isinstance(meaning, bytes) else repr(meaning).encode()).hexdigest()[:16]


def _checkpoint(path: Path) -> list[Any]:
    from qattrain.runs.checkpoint import load_checkpoint

    found = load_checkpoint(path)
    return [_timeless(part) for part in (found.config.model_dump(), found.model, found.history, found.trainer)]


def _timeless(value: Any) -> Any:
    if hasattr(value, "numpy"):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()]
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list | tuple) else value


def damaged(root: Path) -> list[str]:
    """Files that are not what their names say."""
    return [f"{name}: {digest}" for name, digest in contents(root).items() if digest.startswith("damaged")]
