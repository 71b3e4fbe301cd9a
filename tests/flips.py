"""Flipped bits and truncations in every kind of file that the tool writes or reads back, and what comes of them.

    python tests/flips.py                             400 flips and 50 truncations of each kind
    python tests/flips.py --kinds last.pt --flips 20

A kind is a file and what it is used for. After each alteration, one of these is true:

    noticed     one clear error, or a line that says so
    made again  the file is not used, and what it is for is done anew, with the same result
    harmless    every output is the same; why, the kind says
    WRONG       another output without a word, or an exception that is no QattrainError
"""

import argparse
import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # what is tested is this checkout
    sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

import fuzz_records as records
import fuzz_targets as targets

from qattrain.errors import QattrainError

AGAIN = "made again"


@dataclass(frozen=True)
class Kind:
    """make: makes the file in a folder. use: what it is for; everything that comes of it, or AGAIN. harmless: why."""

    make: Callable[[Path], Path]
    use: Callable[[Path, Path], Any]  # of the file and the folder
    harmless: str = ""


def altered(data: bytes, chance: random.Random, cut: bool) -> bytes:
    """One bit flipped, or the end cut off."""
    if cut:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def outcome(kind: Kind, path: Path, folder: Path, expected: Any) -> str:
    """noticed, made again, harmless, or WRONG and why."""
    try:
        found = kind.use(path, folder)
    except QattrainError as error:
        return "noticed" if str(error).strip() else "WRONG: an error without words"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {error}"
    if isinstance(found, str) and found == AGAIN:
        return AGAIN
    if repr(found) != repr(expected):
        return (
            "noticed" if "damaged" in repr(found) else f"WRONG: {repr(found)[:300]} instead of {repr(expected)[:300]}"
        )
    return "harmless"


def alter(kind: Kind, flips: int, cuts: int, seed: int = 0) -> Counter[str]:
    """How many alterations had which outcome."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = kind.make(folder)
        data, chance = path.read_bytes(), random.Random(seed)
        expected = kind.use(path, folder)
        for number in range(flips + cuts):
            path.write_bytes(altered(data, chance, cut=number >= flips))
            counts[outcome(kind, path, folder, expected)] += 1
            path.write_bytes(data)
    return counts


# --- the kinds --------------------------------------------------------------------------------------------------------


def _written(name: str, data: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return make


def _logits(path: Path, _folder: Path) -> Any:
    """Of every network in the file, on noise; and everything else that the file says."""
    from qattrain.evaluation.networks import Trained, load_network

    network = load_network(path)
    noise = np.random.default_rng(0).integers(0, 256, (4, *network.input_shape)).astype(np.uint8)
    about = network.checkpoint.history if isinstance(network, Trained) else None
    return network.integers().run(noise).tolist(), network.facts, about


def _of_run(name: str) -> Kind:
    from qattrain.runs import folder as runs

    def use(_path: Path, folder: Path) -> Any:
        run_dir = folder / "runs" / "r"
        [summary] = runs.list_runs(folder / "runs")
        record = runs.read_record(run_dir) if name == "config.json" else runs.read_metrics(run_dir)
        return record, summary.damaged, summary.accuracy, summary.epochs

    return Kind(lambda folder: records._as_run(folder) / name, use, "spaces and line ends between the values of JSON")


def _of_sweep(name: str) -> Kind:
    from qattrain.experiments import folder as sweeps
    from qattrain.experiments.ledger import Ledger
    from qattrain.report.sources import find_sources

    def use(path: Path, folder: Path) -> Any:
        sweep = records._as_sweep(folder)
        if name == "sweep.json":
            return find_sources([str(path)], folder)
        plan = sweep.read_plan()
        assert plan is not None
        ledger = Ledger(sweep, plan.cells)
        return sweeps.sweep_document(plan, sweep, []), ledger.finished, ledger.damaged

    return Kind(
        lambda folder: records._as_sweep(folder).path / records._in_sweep(name),
        use,
        "spaces and line ends between the values of JSON",
    )


def _of_search(name: str) -> Kind:
    def use(path: Path, folder: Path) -> Any:
        read = records.read_search if name == "search.json" else records.read_fit
        return read(path.read_bytes(), folder)

    why = "spaces and line ends between the values of JSON"
    return Kind(lambda folder: records._as_search(folder).path / name, use, why)


def _compared(folder: Path) -> Path:
    records._as_run(folder)
    path = folder / "runs" / "compare-0" / "compare.json"
    path.parent.mkdir()
    path.write_bytes(records._contents()["compare.json"])
    return path


def _comparison(path: Path, folder: Path) -> Any:
    from qattrain.report.sources import find_sources

    return find_sources([str(path)], folder)


def _failure(folder: Path) -> Path:
    sweep = records._as_sweep(folder)
    name = records._plan().cells[0].name
    (sweep.cells / name / "result.json").unlink(missing_ok=True)
    sweep.set_failure(name, "it failed")
    return next(path for path in sweep.failures.rglob("*") if path.is_file())


def _failed(_path: Path, folder: Path) -> Any:
    from qattrain.experiments import folder as sweeps

    return sweeps.sweep_document(records._plan(), records._as_sweep(folder), [])["rows"]


def _answers(path: Path, folder: Path) -> Any:
    from qattrain.training.distillation import Teacher

    teacher = Teacher.__new__(Teacher)
    teacher.folder, teacher.classes = folder, 10
    found = teacher._read(0, 24)
    assert path.exists()
    return AGAIN if found is None else found.tolist()


def _sealed_answers() -> bytes:
    from qattrain.files.kept import sealed

    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(24, 10)).astype(np.float32))
    return sealed(buffer.getvalue())


def _library(folder: Path) -> Path:
    from qattrain.files.kept import write_own_sealed

    write_own_sealed(folder / "native.so", np.random.default_rng(0).bytes(20_000))
    return folder / "native.so"


def _loaded(path: Path, _folder: Path) -> Any:
    """Whether `shared_library` would load the file: else it compiles anew."""
    from qattrain.files.kept import read_own_sealed

    found = read_own_sealed(path, 2**24)
    return AGAIN if found is None else found


def _mnist(number: int) -> Kind:
    """A file of the real MNIST, from the folder where the tests find it."""
    from qattrain.data import mnist

    def make(folder: Path) -> Path:
        source = mnist.MNIST
        for pair in source.pairs(MNIST_DIR[0]):
            for path in pair:
                target = folder / path.relative_to(MNIST_DIR[0])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return [path for pair in source.pairs(folder) for path in pair][number]

    def use(_path: Path, folder: Path) -> Any:
        dataset = mnist.load_source(mnist.MNIST, folder)
        return [int(part.images.sum()) + int(part.labels.sum()) for part in (dataset.train, dataset.test)]

    return Kind(make, use)


MNIST_DIR: list[Path] = []  # set by who has it


def _npz(path: Path, _folder: Path) -> Any:
    """Which data a run would find; a run records their digest, and refuses others."""
    from qattrain.data.dataset import check_identity
    from qattrain.data.npz import load_npz

    found = load_npz(path, "npz:images")
    known = KNOWN.setdefault(path, (found.class_names, found.shape, found.digest))
    check_identity(found, "run", *known)
    return found.train.images.sum(), found.digest


KNOWN: dict[Path, Any] = {}


def _pictures(folder: Path) -> Path:
    from faults.stories import pictures

    pictures(folder)
    return folder / "pictures" / "0" / "0.png"


def _folder(path: Path, folder: Path) -> Any:
    import os

    from qattrain.data.dataset import check_identity
    from qattrain.data.folder import load_folder

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    found = load_folder(folder / "pictures", "folder:pictures", None, False)
    known = KNOWN.setdefault(path, (found.class_names, found.shape, found.digest))
    check_identity(found, "run", *known)
    return found.train.images.sum(), found.digest


def _kept(folder: Path) -> Path:
    """The decoded pictures in the cache."""
    _folder(_pictures(folder), folder)
    return next((folder / "cache").rglob("*.npz"))


KINDS: dict[str, Kind] = {
    "last.pt": Kind(_written("last.pt", targets.SEEDS.checkpoint), _logits),
    "best.pt": Kind(_written("best.pt", targets.SEEDS.checkpoint), _logits),
    "model.safetensors": Kind(_written("model.safetensors", targets.SEEDS.packed), _logits),
    "config.json": _of_run("config.json"),
    "metrics.jsonl": _of_run("metrics.jsonl"),
    "plan.json": _of_sweep("plan.json"),
    "result.json": _of_sweep("result.json"),
    "sweep.json": _of_sweep("sweep.json"),
    "search.json": _of_search("search.json"),
    "fit.json": _of_search("fit.json"),
    "failure": Kind(_failure, _failed, "spaces and line ends between the values of JSON"),
    "compare.json": Kind(
        _compared,
        _comparison,
        "spaces and line ends between the values of JSON",
    ),
    "teacher's answers": Kind(_written("epoch-1.npy", _sealed_answers), _answers),
    "compiled library": Kind(_library, _loaded),
    "npz images": Kind(_written("images.npz", targets._npz), _npz, "bytes of a zip file that no reader looks at"),
    "picture": Kind(_pictures, _folder, "the same pixels"),
    "decoded pictures": Kind(_kept, _folder, "made again from the pictures, or bytes that no reader looks at"),
}
MNIST_KINDS = {f"MNIST {n}": _mnist(n) for n in range(4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", help="comma-separated; all if left out")
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--mnist", type=Path, help="the folder that holds MNIST/raw; its files are tried, too")
    asked = parser.parse_args()
    kinds = dict(KINDS)
    if asked.mnist:
        MNIST_DIR.append(asked.mnist)
        kinds |= MNIST_KINDS
    names = asked.kinds.split(",") if asked.kinds else list(kinds)
    wrong = 0
    for name in names:
        counts = alter(kinds[name], asked.flips, asked.cuts)
        wrong += sum(n for text, n in counts.items() if text.startswith("WRONG"))
        harmless = f" ({kinds[name].harmless})" if counts["harmless"] else ""
        sys.stdout.write(f"{name}: {', '.join(f'{n} {text}' for text, n in counts.most_common())}{harmless}\n")
        sys.stdout.flush()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
