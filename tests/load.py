"""The tool under load: memory over 200 epochs, 8 trainings at once in one folder, 1,000 pictures in one call.

    python tests/load.py

Everything is tiny but the number. It prints a line each and fails if memory grows by more than MOST_GROWTH_BYTES, if a
run is lost or damaged, or if an answer differs from that of the picture alone.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

MOST_GROWTH_BYTES = 5_000_000
PROCESSES, PICTURES, EPOCHS = 8, 1000, 200
TINY = ("--dataset", "digits", "--limit-train", "48", "--limit-test", "30", "--batch-size", "24", "--threads", "1")
TINY += ("--model", "conv 2 5x5 stride 3, pool 2, fc", "--bits", "4")


class Memory:
    """A display that notes the memory in use after every epoch."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_start(self, *_args: object) -> None: ...

    def on_step(self, *_args: object) -> None: ...

    def on_warning(self, _text: str) -> None: ...

    def on_epoch(self, _record: dict[str, Any], _model: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.bytes.append(pages * resource.getpagesize())


def memory(folder: Path) -> tuple[int, int]:
    """In use after epoch 5 and after the last."""
    from qattrain.config.sources import build_config
    from qattrain.training import run as experiment

    values = ["data.dataset=digits", "data.limit_train=48", "data.limit_test=30", "train.batch_size=24", "quant.bits=4"]
    values += [f"train.epochs={EPOCHS}", "train.threads=1", "model.name='conv 2 5x5 stride 3, pool 2, fc'"]
    shown = Memory()
    experiment.train(build_config(None, values, {}), folder, folder / "runs", shown)
    return shown.bytes[4], shown.bytes[-1]


def qattrain(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": sys.path[1]}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "qattrain", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=1200)
    assert process.returncode == 0, stderr[-1000:]
    found: dict[str, Any] = json.loads(stdout)
    return found


def together(folder: Path) -> int:
    """Eight trainings at once, without names; how many runs there are, all whole and equal but for the name."""
    processes = [qattrain(folder, "train", *TINY, "--epochs", "3", "--json") for _ in range(PROCESSES)]
    results = [finished(process) for process in processes]
    listed = finished(qattrain(folder, "runs", "--json"))["runs"]
    assert len({result["run_dir"] for result in results}) == len(listed) == PROCESSES, listed
    assert len({result["test_accuracy"] for result in results}) == 1, results
    assert not [run for run in listed if run.get("damaged")], listed
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(run["name"] for run in listed)
    return len(listed)


def pictures(folder: Path) -> tuple[int, float]:
    """How many pictures were classified in one call, each as alone; seconds."""
    from PIL import Image

    paths = []
    for number in range(PICTURES):
        ink = np.random.default_rng(number).integers(0, 256, (28, 28)).astype(np.uint8)
        paths.append(f"{number}.png")
        Image.fromarray(ink).save(folder / paths[-1])
    run = finished(qattrain(folder, "runs", "--json"))["runs"][0]["name"]
    started = time.monotonic()
    found = finished(qattrain(folder, "predict", run, *paths, "--json"))["images"]
    seconds = time.monotonic() - started
    assert [entry["path"] for entry in found] == paths
    for number in (0, PICTURES // 2, PICTURES - 1):
        [alone] = finished(qattrain(folder, "predict", run, paths[number], "--json"))["images"]
        assert alone == found[number]
    return len(found), seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        runs = together(folder)
        sys.stdout.write(f"{PROCESSES} processes in one folder: {runs} runs, all whole and equal\n")
        count, seconds = pictures(folder)
        sys.stdout.write(f"predict: {count:,} pictures in {seconds:.1f} s, as each alone\n")
        early, late = memory(folder / "memory")
        sys.stdout.write(f"memory: {early:,} bytes after epoch 5, {late:,} after epoch {EPOCHS}\n")
        assert late - early <= MOST_GROWTH_BYTES, late - early


if __name__ == "__main__":
    main()
