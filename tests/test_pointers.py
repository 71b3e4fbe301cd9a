"""Every pointer from text to code resolves: in README and its pages, docstrings, comments, and `explain`'s `look`.

A pointer is a dotted path, `qattrain.room.module.Symbol`; the path of a file or folder of this repository; the target
of a Markdown link; a module's file name, `module.py`; or, in backticks, `module.Symbol`, `Class.attribute`, `file.c`.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qattrain.config import ExperimentConfig

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qattrain"
README = ROOT / "README.md"
PAGES = [README, *sorted([*(ROOT / "configs").glob("*.md"), *(ROOT / "runs" / "published").glob("*.md")])]
SOURCES = sorted(path for kind in ("py", "c", "h", "j2", "jinja") for path in PACKAGE.rglob(f"*.{kind}"))
TOPICS = sorted(path for path in (PACKAGE / "explain").glob("*.py") if path.stem not in ("__init__", "lab"))

DOTTED = re.compile(r"(?<![\w./-])qattrain(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./-])(?:qattrain|tests|configs|runs/published)/[\w./-]*[<*{]?")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")
MODULE = re.compile(r"(?<![\w./`<>-])(\w+\.py)\b")
QUOTED = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:[(=\[][^`\n]*)?`")

WRITTEN = {"json", "jsonl", "csv", "png", "svg", "onnx", "safetensors", "pt", "toml", "html", "md", "txt"}
C_WRITTEN = {"model.c", "model.h", "main.c"}  # by the export to C
VARIABLES = {"net", "conv1"}  # somebody's network and its layer: `net.apply`, `conv1.bias`
LIBRARIES = {"nn", "F", "np"}  # as everybody calls them; others by their own names
SECTIONS = {name: field.default for name, field in ExperimentConfig.model_fields.items()}
SWEPT = {"ptq.bits"}  # stands in a sweep's table, but is no setting
UNKNOWN = object()  # there, but only instances have it


def modules_named(name: str) -> list[Path]:
    """Modules and rooms of the package with that name."""
    return [*PACKAGE.rglob(f"{name}.py"), *PACKAGE.rglob(f"{name}/__init__.py")]


def imported(path: Path) -> ModuleType:
    """The module of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def attribute(owner: Any, name: str) -> Any:
    """`owner.name`; UNKNOWN where only instances of the class `owner` have it.

    Raises AttributeError, also for what a module only imports: the pointer should name the place where it is defined.
    """
    if inspect.isclass(owner) and not hasattr(owner, name):
        annotated = any(name in vars(base).get("__annotations__", {}) for base in owner.__mro__)
        if annotated or re.search(rf"self\.{name}\b[^=\n]*=|register_\w+\(\"{name}\"", inspect.getsource(owner)):
            return UNKNOWN
    value = getattr(owner, name)
    is_plain_module = inspect.ismodule(owner) and not hasattr(owner, "__path__")
    if is_plain_module and callable(value) and getattr(value, "__module__", owner.__name__) != owner.__name__:
        raise AttributeError(name)
    return value


def resolves(owner: Any, names: list[str]) -> bool:
    """Whether `owner.a.b.c` is there, for names a, b, c."""
    for name in names:
        if owner is UNKNOWN:
            return True
        try:
            owner = attribute(owner, name)
        except AttributeError:
            try:
                owner = importlib.import_module(f"{owner.__name__}.{name}")
            except (ImportError, AttributeError):
                return False
    return True


@functools.cache
def classes_named(name: str) -> list[Any]:
    """Classes that the package defines under that name."""
    defining = [
        path for path in PACKAGE.rglob("*.py") if re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE)
    ]
    return [vars(imported(path))[name] for path in defining]


def quoted_resolves(text: str, path: Path) -> bool:
    """Whether `text`, dotted and in backticks in the file `path`, is a file, a setting, or a symbol that is there."""
    first, *rest = text.split(".")
    if rest[-1] in WRITTEN or text in C_WRITTEN or text in SWEPT or first in VARIABLES:
        return True
    if rest in (["py"], ["c"]):
        return any(PACKAGE.rglob(text))
    if len(rest) == 1 and rest[0] in getattr(type(SECTIONS.get(first)), "model_fields", {}):
        return True
    near = [found for found in modules_named(first) if found.parent == path.parent]
    owners = [imported(found) for found in near or modules_named(first)] + classes_named(first)
    if not owners:
        return first in LIBRARIES or importlib.util.find_spec(first) is not None
    return any(resolves(owner, rest) for owner in owners)


def stale(text: str, path: Path = README) -> Iterator[tuple[int, str]]:
    """Pointers in a text of the file `path` that resolve to nothing, each with its line from 0."""
    for match in DOTTED.finditer(text):
        if not resolves(importlib.import_module("qattrain"), match[0].split(".")[1:]):
            yield text.count("\n", 0, match.start()), match[0]
    for match in FILE.finditer(text):
        found = match[0].rpartition("/")[0] if match[0][-1] in "<*{" else match[0].rstrip("./-")
        if not (ROOT / found).exists():
            yield text.count("\n", 0, match.start()), match[0]
    for match in LINK.finditer(text) if path.suffix == ".md" else ():
        if not (path.parent / match[1]).exists():
            yield text.count("\n", 0, match.start()), match[1]
    for match in MODULE.finditer(text):
        if not any(PACKAGE.rglob(match[1])):
            yield text.count("\n", 0, match.start()), match[1]
    for match in QUOTED.finditer(text):
        if not match[1].startswith("qattrain.") and not quoted_resolves(match[1], path):
            yield text.count("\n", 0, match.start()), match[0]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """What a person reads in a file, with its first line from 1: a module's docstrings and comments, else all of it."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, source
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            yield statement.lineno, str(statement.value.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def look_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a topic's `look`, each with its line in the file."""
    lists = [
        keyword.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "look"
    ]
    assert lists, f"{path}: no look=[...]"
    return [
        (node.lineno, str(ast.literal_eval(node)))
        for found in lists
        for node in (found.elts if isinstance(found, ast.List) else [found])
    ]


def check(path: Path, read: Iterable[tuple[int, str]]) -> None:
    """Fails with the place of every stale pointer in these texts of the file."""
    place = path.relative_to(ROOT)
    found = {f"{place}:{first + line}: {pointer}": None for first, text in read for line, pointer in stale(text, path)}
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_pointer_in_the_pages_docstrings_and_comments_resolves(path: Path) -> None:
    check(path, texts(path))


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.stem)
def test_a_topic_says_where_to_look_by_dotted_paths_that_resolve(path: Path) -> None:
    lines = look_lines(path)
    check(path, lines)
    said = " ".join(text for _, text in lines)
    assert DOTTED.search(said), f"{path}: names no symbol"
    assert not re.search(r"qattrain/|, class |, def ", said), f"{path}: name a symbol by its dotted path"


@pytest.mark.parametrize(
    "text",
    [
        "see qattrain.quant.functional.NoSuch",
        "see `qattrain.quant.functional.Linear.forwards`",
        "see `qattrain.nosuch.thing`",
        "see qattrain/calibration.py, class Calibration",
        "`qattrain/nosuch/<name>.py`",
        "[a file](qattrain/quant/nosuch.py)",
        "`functional.NoSuch`",
        "`nosuch.results`",
        "`nosuch.py`",
        "`Quantizer.nosuch`",
        "`train.nosuch=1`",
        "`local.LSQQuantizer`",
        "nosuch.py does it",
    ],
)
def test_a_stale_pointer_is_found_with_its_line(text: str) -> None:
    assert {line for line, _ in stale(f"one line\n{text}\n")} == {1}


def test_what_resolves_and_what_is_no_pointer_is_left_alone() -> None:
    text = """qattrain.quant.functional.Linear.backward, `qattrain.config.ExperimentConfig.quant`, `Lab.train`,
    `functional.LearnedStep`, `kernels.py`, `native.c`, qattrain/quant/native.c, `qattrain/export/<name>.py`, configs/,
    [data](qattrain/data), `torch.save`, `nn.Linear`, `config.json`, `model.c`, `train.lr=0.1`, `Explanation.tables`,
    https://qattrain/nosuch, qattrain 2.5, e.g. `a`, quantizers.py"""
    assert list(stale(text)) == []
    assert len(list(itertools.chain(*(texts(path) for path in SOURCES)))) > 500
