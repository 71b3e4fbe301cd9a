"""Faults at every point of every write, and what is left of the work afterwards.

    python tests/faults/run.py                  every story, every fault, every point (an hour)
    python tests/faults/run.py --stories train --faults killed --most 20
    python tests/faults/run.py --random 200     also kills whole commands at random times

Each injection runs the command in a process of its own, forked from this one, which has torch loaded: a tenth of a
second. Afterwards it asks: did the command end as it should (no traceback, one line of error)? Is every file whole?
Does the next start give what an undisturbed run gives, bit for bit, and leave no file that the undisturbed has not?
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # what is tested is this checkout
    sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from faults import points as faults
from faults.points import Points
from faults.stories import STORIES, Story, contents, damaged

MOST_SECONDS = 300.0  # of a machine that is busy with other things
FAULTS: dict[str, faults.Fault] = {
    "killed": faults.killed,
    "full": faults.full,
    "full_once": faults.full_once,
    "read_only": faults.read_only,
    "removed": faults.removed,
    "interrupted": faults.interrupted,
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, negative for a signal; None: it did not.

    points: those it reached; modules: what it had loaded; both empty if it was killed.
    """

    code: int | None
    stdout: str
    stderr: str
    points: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def complaint(self, *codes: int) -> str | None:
        """What is wrong with the way it ended; None if nothing is. codes: besides 0, 1 and 2."""
        if self.code is None:
            return f"not finished after {MOST_SECONDS:g} s: {self.stderr[-300:]}"
        if "Traceback" in self.stderr or "Exception ignored" in self.stderr:
            return "traceback: " + " / ".join(self.stderr.splitlines()[-3:])
        if self.code not in (0, 1, 2, *codes):
            return f"exit code {self.code}: {self.stderr[-300:]}"
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        if self.code in (1, 2) and len(errors) != 1:
            return f"exit code {self.code} with {len(errors)} lines of error: {self.stderr[-300:]}"
        return None


# --- a command in a forked process ----------------------------------------------------------------------------------


def set_the_stage() -> None:
    """What all processes share, so that none takes seconds: digits read once, no worker processes, blank pictures."""
    import torch

    import qattrain.data
    from qattrain.experiments import sweep
    from qattrain.report import drawing

    torch.set_num_threads(1)
    digits = qattrain.data.DATASETS["digits"](Path())
    qattrain.data.DATASETS["digits"] = lambda _folder: digits
    sweep.LocalCrew = InlineCrew  # type: ignore[assignment,misc]
    drawing.saved = lambda _figure, kind, **_options: f"a picture, {kind}".encode()


class InlineCrew:
    """Runs the cells of a sweep in the sweep's own process, so that a fault strikes both."""

    def __init__(self, folder: Any, data_dir: Path, _workers: int | None, threads: int | None) -> None:
        self.folder, self.data_dir, self.threads = folder, data_dir, threads or 1
        self.owners: set[str] = {folder.owner}

    def settle(self, points: Any) -> Any:
        from qattrain.experiments import cells

        return cells.settle(points, self.threads, self.data_dir, cells.cached_load)

    def step(self, ledger: Any) -> None:
        import threading

        from qattrain.experiments import cells

        stop = threading.Event()

        def run(cell: Any, report: Any) -> None:
            cells.run_cell(cell, ledger.folder.cells, self.data_dir, cells.cached_load, stop, report)

        if not any(cells._attempt(ledger, cell, run) for cell in ledger.ready()):
            time.sleep(0.05)

    def close(self) -> None: ...


def fork(arguments: tuple[str, ...], folder: Path, story: Story, points: Points) -> int:
    """Run `qattrain ARGUMENTS` in `folder`, in a process of its own; what it writes goes to files beside the folder."""
    child = _forked()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        os.environ["MPLCONFIGDIR"] = str(folder.parent / "matplotlib")
        os.environ.update(story.environment)
        os.environ["PATH"] = f"{folder.parent}{os.pathsep}{os.environ['PATH']}"
        for number, name in enumerate(("stdout", "stderr"), 1):
            file = os.open(f"{folder}.{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: PTH123, SIM115
        sys.argv = ["qattrain", *arguments]
        points.install()
        from qattrain import cli

        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except BaseException:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        points.is_paused = True
        Path(f"{folder}.{os.getpid()}.points").write_text(json.dumps([points.names, list(sys.modules)]))
        os._exit(code)


def _forked() -> int:
    """A new process, as soon as a busy machine has room for one."""
    for _ in range(100):
        with suppress(BlockingIOError):
            return os.fork()
        time.sleep(0.2)
    return os.fork()


def collect(child: int, folder: Path) -> Ended:
    """Wait for the process, kill it if it takes too long, and read what it wrote."""
    deadline = time.monotonic() + MOST_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.003)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    stdout, stderr, names = (_taken(Path(f"{folder}.{child}.{name}")) for name in ("stdout", "stderr", "points"))
    return Ended(os.waitstatus_to_exitcode(status) if done else None, stdout, stderr, *json.loads(names or "[[], []]"))


def _taken(path: Path) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


# --- an injection ----------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A story, ready to be disturbed. base: what is there before it; expected: what is there after it."""

    name: str
    story: Story
    place: Path
    base: Path
    expected: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, arguments: tuple[str, ...], folder: Path, points: Points | None = None) -> Ended:
        return collect(fork(arguments, folder, self.story, points or Points(folder, self.story.target)), folder)

    def kept(self) -> list[str]:
        """What the base has of the folders and files that its stories write."""
        return [str(path.relative_to(self.base)) for path in (*self.base.iterdir(), *self.base.glob("runs/*"))]

    @contextmanager
    def scene(self) -> Iterator[Path]:
        """A copy of the base."""
        folder = Path(tempfile.mkdtemp(dir=self.place, prefix=f"{self.name}-"))
        try:
            shutil.copytree(self.base, folder, dirs_exist_ok=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def prepare(name: str, place: Path) -> Stage:
    """Make what the story needs, and run it undisturbed. Raises AssertionError if two such runs differ."""
    story = STORIES[name]
    stage = Stage(name, story, place, place / f"base-{name}")
    stage.base.mkdir()
    story.files(stage.base)
    for arguments in story.before:
        load(stage.run(arguments, stage.base))
    found = []
    for _ in range(2):  # the first compiles what is not in quick-cc's cache yet
        with stage.scene() as folder:
            started = time.monotonic()
            done = load(stage.run(story.command, folder))
            stage.seconds, stage.points = time.monotonic() - started, done.points
            found.append(contents(folder))
    assert found[0] == found[1], {key: (found[0].get(key), found[1].get(key)) for key in differing(*found)}
    stage.expected = found[0]
    return stage


def load(done: Ended) -> Ended:
    """Import what the command imported, so that the next process, a copy of this one, has it already."""
    assert done.code == 0, f"{done.code}: {done.stderr[-1500:]}"
    for name in [name for name in done.modules if name not in sys.modules]:
        with suppress(Exception):
            importlib.import_module(name)
    return done


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def injected(stage: Stage, fault: str, at: int) -> list[str]:
    """What went wrong after the fault at that point; [] if nothing did."""
    with stage.scene() as folder:
        rivals = Path(f"{folder}.rival")
        act = second(stage, folder, rivals) if fault == "second" else FAULTS[fault]
        done = stage.run(stage.story.command, folder, Points(folder, stage.story.target, at, act))
        found = []
        if fault == "killed":
            if done.code != -signal.SIGKILL:
                found.append(f"was to be killed, ended with {done.code}")
        else:
            found += _told("", done.complaint(130 if fault == "interrupted" else 0))
        if rivals.exists():
            found += _told("the second: ", rivals.read_text())
            rivals.unlink()
        if fault == "removed" and stage.story.target in stage.kept():  # nothing can bring that back
            return found + _told("the next start: ", stage.run(stage.story.command, folder).complaint())
        at_once = stage.story.compared_at_once if fault == "second" else None
        return found + aftermath(stage, folder, at_once)


def second(stage: Stage, folder: Path, told: Path) -> faults.Fault:
    """A second process that does the same, from start to end, while the first waits."""

    def act(points: Points, first: bool, _takes_space: bool) -> None:
        if first:
            points.names.append("a second process")
            done = stage.run(stage.story.rival or stage.story.command, folder)
            told.write_text(done.complaint() or "")

    return act


def aftermath(stage: Stage, folder: Path, compared: str | None = None) -> list[str]:
    """What is wrong with what is left, and with what the next start makes of it. compared: instead of the story's."""
    story = stage.story
    found = [f"half-written: {line}" for line in damaged(folder)]
    again = stage.run(story.command, folder)
    if again.code in (1, 2) and story.resume is not None and "exists" in again.stderr:
        again = stage.run(story.resume, folder)
    if again.code != 0:
        return [*found, f"the next start ended with {again.code}: {(again.complaint() or again.stderr)[-300:]}"]
    there = contents(folder)
    for name in differing(stage.expected, there):
        if story.spared and name.startswith(story.spared) and name not in there:
            continue
        if name.startswith(story.compared if compared is None else compared):
            what = "lost" if name not in there else "altered" if name in stage.expected else "left behind"
            found.append(f"{what}: {name}")
        elif name in there and (Path(name).name.startswith(".") or ".tmp" in name):
            found.append(f"left behind: {name}")
    return found


def _told(who: str, complaint: str | None) -> list[str]:
    return [f"{who}{complaint}"] if complaint else []


def killed_at_random(stage: Stage, seed: int) -> list[str]:
    """What went wrong after a kill at a random time."""
    with stage.scene() as folder:
        child = fork(stage.story.command, folder, stage.story, Points(folder, stage.story.target))
        time.sleep(random.Random(seed).uniform(0, stage.seconds))
        os.kill(child, signal.SIGKILL)
        collect(child, folder)
        return aftermath(stage, folder)


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """injections, and what went wrong: the fault, the point and the complaint."""

    injections: int = 0
    failures: list[str] = field(default_factory=list)


def chosen(points: int, most: int | None, offset: int) -> range:
    """Every point, or about `most` of them, evenly spaced."""
    step = 1 if most is None else max(1, -(-points // most))
    return range(offset % step, points, step)


def disturb(
    stage: Stage, names: list[str], most: int | None, told: Callable[[str], None] = lambda _line: None
) -> dict[str, Count]:
    """Every fault at every point, or at `most` of them; by fault."""
    counts = {}
    for offset, fault in enumerate(names):
        count = counts[fault] = Count()
        for at in chosen(len(stage.points), most, offset):
            count.injections += 1
            for line in injected(stage, fault, at):
                count.failures.append(f"{stage.name}, {fault} at {at} ({stage.points[at]}): {line}")
                told(count.failures[-1])
    return counts


QUICK_CC = """#!/bin/sh
# Compiles once, and copies what it compiled then.
key=$(printf '%s' "$*" | sed -E 's#[^ ]*/##g' | cksum | cut -d' ' -f1)
for word in "$@"; do
  case $word in *.o) [ -f "$word" ] && key=$key-$(cksum < "$word" | cut -d' ' -f1);; esac
  last=$word
done
[ -f "$0.$key" ] || { cc "$@" && cp "$last" "$0.$key.$$" && mv "$0.$key.$$" "$0.$key"; } || exit 1
cp "$0.$key" "$last"
"""


@contextmanager
def theatre() -> Iterator[Path]:
    """A folder for all stages, with a quick compiler."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        (Path(folder) / "quick-cc").write_text(QUICK_CC)
        for name in ("arm-none-eabi-gcc", "riscv64-unknown-elf-gcc", "gcc"):  # sizes in exported READMEs take seconds
            (Path(folder) / name).write_text("#!/bin/sh\nexit 1\n")
        for path in Path(folder).iterdir():
            path.chmod(0o755)
        yield Path(folder)


def main() -> None:
    def say(*lines: str) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", default=",".join(STORIES))
    parser.add_argument("--faults", default=",".join([*FAULTS, "second"]))
    parser.add_argument(
        "--most", type=int, help="points of each story and fault; all if left out; or NAME:N in --stories"
    )
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also N kills at random times")
    parser.add_argument("--json", type=Path, help="write the counts there")
    asked = parser.parse_args()
    set_the_stage()
    table: dict[str, dict[str, Any]] = {}
    with theatre() as place:
        wanted = dict(f"{story}:".split(":")[:2] for story in asked.stories.split(","))
        stages = [prepare(name, place) for name in wanted]
        for stage in stages:
            most = int(wanted[stage.name] or 0) or asked.most
            started = time.monotonic()
            counts = disturb(stage, [name for name in asked.faults.split(",") if name], most, say)
            if asked.random:
                count = counts["killed at random"] = Count()
                for seed in range(-(-asked.random // len(stages))):
                    count.injections += 1
                    count.failures += [
                        f"{stage.name}, killed at random {seed}: {x}" for x in killed_at_random(stage, seed)
                    ]
                say(*count.failures)
            table[stage.name] = {fault: vars(count) for fault, count in counts.items()}
            row = ", ".join(
                f"{fault} {count.injections} ({len(count.failures)} wrong)" for fault, count in counts.items()
            )
            say(f"{stage.name}: {len(stage.points)} points; {row}; {time.monotonic() - started:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1))
    every = [count for counts in table.values() for count in counts.values()]
    say(f"{sum(one['injections'] for one in every)} faults, {sum(len(one['failures']) for one in every)} wrong")


if __name__ == "__main__":
    main()
