"""The house rules, read from the source: imports go one way, help comes at once, files stay short, libraries silent."""

import ast
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qattrain"
MAX_LINES = 450

# The rooms from the bottom up; each may import only rooms before its own, and its own modules.
ROOMS = (
    "__init__",
    "errors",
    "files",
    "config",
    "data",
    "quant",
    "layers",
    "integer",
    "runs",
    "export",
    "evaluation",
    "training",
    "experiments",
    "benchmark",
    "report",
    "explain",
    "commands",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, name in enumerate(ROOMS)}
# Read by commands that must not load torch: kept to what needs none.
ALLOWED = {
    "runs/folder": {"errors", "config", "files"},
    "files": {"errors", "files"},
    "config": {"errors", "config", "files"},
    "experiments/grid": {"errors", "config"},
    "experiments/folder": {"errors", "config", "files", "runs", "experiments", "__init__"},
    "experiments/kinds": {"files"},
}
HEAVY = ("torch", "torchvision", "numpy", "sklearn", "matplotlib", "tqdm", "qattrain.config")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The room, or the module at the top, that a file belongs to in ROOMS."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> Iterator[str]:
    """Units of qattrain that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "qattrain" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "qattrain":
                known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
                yield parts[1] if known else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = unit(path)
    if own == "__init__":  # the front door: what it names is loaded when it is asked for
        return
    assert own in RANK, f"{own} is no room: give it a place in ROOMS"
    inside_package = (PACKAGE / own).is_dir()
    for used in imported_units(path):
        if not (inside_package and used == own):
            assert RANK[used] < RANK[own], f"{path.name} ({own}) imports {used}"
    place = path.relative_to(PACKAGE).with_suffix("").as_posix()
    allowed = ALLOWED.get(place, ALLOWED.get(own))
    if allowed is not None:
        assert set(imported_units(path)) <= allowed


def test_every_level_is_checked_against_a_real_import() -> None:
    assert {"experiments", "report"} <= set(imported_units(PACKAGE / "commands" / "compare.py"))
    assert "runs" in set(imported_units(PACKAGE / "training" / "run.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long_and_no_library_prints_or_exits(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name != "print", f"{path}:{node.lineno}"
            if path.name not in ("cli.py", "__main__.py"):
                assert name not in ("sys.exit", "exit", "quit", "os._exit"), f"{path}:{node.lineno}"


def test_every_import_of_the_tool_is_a_declared_dependency() -> None:
    declared = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    distribution = {"sklearn": "scikit-learn", "PIL": "pillow"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"qattrain"}:
                assert f'"{distribution.get(top, top)}>=' in declared, f"{path}: {top}"


@pytest.mark.parametrize("arguments", ["", "--help", "train --help", "--version"])
def test_importing_the_command_line_and_asking_for_help_loads_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['qattrain', *{arguments.split()!r}]\n"
        "from qattrain import cli\n"
        "try:\n"
        f"    {'cli.main()' if arguments else 'pass'}\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write(' '.join(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_help_takes_at_most_a_quarter_of_the_time_of_importing_torch() -> None:
    commands = {"help": ["-m", "qattrain", "--help"], "torch": ["-c", "import torch"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _, (name, arguments) in itertools.product(range(5), commands.items()):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, timeout=120, check=True)
        seconds[name].append(time.perf_counter() - start)
    assert statistics.median(seconds["help"]) <= statistics.median(seconds["torch"]) / 4, seconds


def test_the_front_door_offers_its_names_and_loads_torch_only_when_one_is_asked_for() -> None:
    code = (
        "import sys, qattrain\n"
        "names = [name for name in dir(qattrain) if name in qattrain.__all__]\n"
        "assert sorted(names) == sorted(qattrain.__all__), names\n"
        "assert qattrain.__version__\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "try:\n"
        "    qattrain.nonsense\n"
        "except AttributeError as error:\n"
        "    assert \"no attribute 'nonsense'\" in str(error)\n"
        "else:\n"
        "    raise SystemExit('nonsense exists')\n"
        "from qattrain import *\n"
        "from qattrain import export_model, layers, lower\n"
        "assert 'torch' in sys.modules\n"
        "assert qattrain.QuantConv2d is layers.QuantConv2d is QuantConv2d\n"
        "assert (export_model.__module__, lower.__module__) == "
        "('qattrain.evaluation.checkpoints', 'qattrain.integer.lowering')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
