"""A coverage-guided fuzzer of every reader: atheris, which is installed for this alone (`pip install atheris`).

    python tests/fuzz.py chain --minutes 10
    python tests/fuzz.py --list

It starts from the few valid inputs of `fuzz_targets.py` and keeps those that reach new lines of qattrain; the
libraries' own C and Rust are left alone. JSON is changed as a tree half of the time. A finding is written to the folder
given with --findings, with its traceback, and the fuzzer goes on; the exit code is the number of different findings.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]
with atheris.instrument_imports(include=["qattrain"]):
    import fuzz_records
    from fuzz_targets import TARGETS, Target, mutated, tried

    import qattrain.data.npz
    import qattrain.data.pictures
    import qattrain.evaluation.networks
    import qattrain.experiments.folder
    import qattrain.experiments.grid
    import qattrain.integer.lowering
    import qattrain.report.sources
    import qattrain.training.run  # noqa: F401

TARGETS |= fuzz_records.RECORDS

MOST_INPUT_BYTES = 20_000


class Fuzzer:
    """Counts executions and findings."""

    def __init__(self, name: str, target: Target, folder: Path, findings: Path, until: float) -> None:
        self.name, self.target, self.folder, self.findings, self.until = name, target, folder, findings, until
        self.executions = 0
        self.found: dict[str, str] = {}
        self.out = os.fdopen(os.dup(1), "w")

    def one(self, data: bytes) -> None:
        if time.monotonic() > self.until:
            self.end()
        self.executions += 1
        try:
            found = tried(self.target, data, self.folder)
            where = found and found.split()[0]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            last = [f for f in traceback.extract_tb(error.__traceback__) if "qattrain" in f.filename][-1:]
            found = traceback.format_exc()
            where = f"{type(error).__name__} {last[0].filename}:{last[0].lineno}" if last else found[-200:]
        if found and where not in self.found:
            assert where is not None, found
            self.found[where] = found
            self.findings.mkdir(parents=True, exist_ok=True)
            path = self.findings / f"{self.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
            path.with_suffix(".input").write_bytes(data)
            path.with_suffix(".txt").write_text(found)
            print(f"{self.name}: {where}", file=self.out, flush=True)

    def change(self, data: bytes, most: int, seed: int) -> bytes:
        with contextlib.suppress(Exception):  # too deep to be changed as a tree, say
            return mutated(data, seed)[:most] if self.target.json and seed % 2 else bytes(atheris.Mutate(data, most))
        return data[:most]

    def end(self) -> None:
        print(f"{self.name}: {self.executions:,} executions, {len(self.found)} findings", file=self.out, flush=True)
        os._exit(min(len(self.found), 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--list", action="store_true", help="name the targets")
    asked = parser.parse_args()
    if asked.list or asked.target is None:
        sys.stdout.write("\n".join([*TARGETS, ""]))
        return
    target = TARGETS[asked.target]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        corpus, folder = Path(name) / "corpus", Path(name) / "files"
        corpus.mkdir(), folder.mkdir()
        for number, seed in enumerate(target.seeds()):
            (corpus / str(number)).write_bytes(seed)
            assert tried(target, seed, folder) is None, seed
        fuzzer = Fuzzer(asked.target, target, folder, asked.findings.absolute(), time.monotonic() + 60 * asked.minutes)
        options = [
            f"-max_len={MOST_INPUT_BYTES}",
            "-timeout=3000",
            "-rss_limit_mb=4000",
            "-verbosity=0-close_fd_mask=3",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], fuzzer.one, custom_mutator=fuzzer.change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
