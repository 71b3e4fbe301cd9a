"""The JSON files of this program: the one way to write them and to read them.

A file holds one object: its own fields and, behind them, `format_version` and `digest`, the SHA-256 of all the others
as compact JSON. So a reader notices every altered value, but not a file that somebody only laid out anew. A line of a
`.jsonl` file is such an object, too; its digest also covers its number and that of all lines, because a file that lost
its last lines would otherwise look like a shorter one. Files of versions that wrote neither field are read as they are.

What a file may be is bounded before it is parsed: its bytes, its values, its depth, the digits of its numbers. A
missing file is None; every other file that is not what it should be is a RecordError, one line that names the remedy.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.errors import RecordError, reason
from qattrain.files import read_bounded, write_atomically

VERSION, DIGEST = "format_version", "digest"
UNSEALED = 0  # the version of files that have no such field
LARGEST_INTEGER = 1 << 63
MOST_VALUES = 3_000_000  # of a file: each takes about a hundred bytes of memory

Record = dict[str, Any]
# What a value must be: a type; a function that says whether it fits; None for null; a tuple of alternatives; [shape] of
# a list; {name: shape} of an object, where `name?` may be missing and others may be added; {"*": shape} of an object
# with any names.
Shape = Any


def fraction(value: Any) -> bool:
    """A number from 0 to 1, such as an accuracy."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def count(value: Any) -> bool:
    """A whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class Kind:
    """A kind of file. fields: the shape of its object, or of each line's. remedy: what to do about a damaged one.

    most_bytes: of a file. version: that this program writes; it reads that and all before.
    """

    fields: dict[str, Shape]
    remedy: Callable[[Path], str]
    most_bytes: int = 1 << 20
    version: int = 1
    indent: int | None = None


def encoded(kind: Kind, content: Record) -> bytes:
    """The bytes of a file. Raises RecordError if a number in it is not finite."""
    return (json.dumps(_sealed(kind, content, ""), indent=kind.indent) + "\n").encode()


def encoded_lines(kind: Kind, contents: list[Record]) -> bytes:
    """The bytes of a file with one object per line. Raises RecordError if a number in it is not finite."""
    places = [_place(number, len(contents)) for number in range(len(contents))]
    return "".join(
        json.dumps(_sealed(kind, one, place)) + "\n" for one, place in zip(contents, places, strict=True)
    ).encode()


def write(path: Path, kind: Kind, content: Record) -> None:
    """Write a file, whole or not at all. Raises TrainingError, and RecordError if a number in it is not finite."""
    write_atomically(path, encoded(kind, content))


def write_lines(path: Path, kind: Kind, contents: list[Record]) -> None:
    """Write a file with one object per line, as `write` does."""
    write_atomically(path, encoded_lines(kind, contents))


def read(path: Path, kind: Kind) -> Record | None:
    """The fields of a file; None if there is none. Raises RecordError if it cannot be read, trusted or understood."""
    found = read_versioned(path, kind)
    return None if found is None else found[0]


def read_versioned(path: Path, kind: Kind) -> tuple[Record, int] | None:
    """As `read`, with the format's version; UNSEALED for a file of an older program."""
    text = _text(path, kind)
    return None if text is None else _opened(_parsed(text, path, kind), "", path, kind)


def read_lines(path: Path, kind: Kind) -> list[Record] | None:
    """The fields of every line of a file; None if there is none. Raises RecordError as `read` does."""
    text = _text(path, kind)
    if text is None:
        return None
    lines = text.removesuffix("\n").split("\n") if text else []
    found = [
        _opened(_parsed(line, path, kind, number + 1), _place(number, len(lines)), path, kind)
        for number, line in enumerate(lines)
    ]
    if len({version == UNSEALED for _, version in found}) > 1:  # all lines are written at once
        raise damaged(path, kind, "lines without a digest stand among others")
    return [content for content, _ in found]


def damaged(path: Path, kind: Kind, why: str) -> RecordError:
    """The error for a file that is not what this program wrote."""
    return RecordError(f"{path} is damaged: {why}; {kind.remedy(path)}")


def _place(number: int, lines: int) -> str:
    return f"{number + 1} of {lines}"


def _sealed(kind: Kind, content: Record, place: str) -> Record:
    try:
        versioned = content | {VERSION: kind.version}
        return versioned | {DIGEST: _digest(versioned, place)}
    except ValueError as error:
        raise RecordError(f"a result cannot be written: {reason(error)}; look at the numbers of the run") from None


def _digest(content: Record, place: str) -> str:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False) + place
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path, kind: Kind) -> str | None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        pass  # reading says why
    data = read_bounded(path, kind.most_bytes, RecordError, str(path), kind.remedy(path))
    if sum(data.count(sign) for sign in (b",", b"[", b"{", b"\n")) > MOST_VALUES:
        raise damaged(path, kind, f"it has more than {MOST_VALUES:,} values")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, kind, f"byte {error.start} is not text") from None


def _parsed(text: str, path: Path, kind: Kind, line: int | None = None) -> Any:
    try:
        return json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except json.JSONDecodeError as error:
        where = f"line {line or error.lineno}, column {error.colno}"
        raise damaged(path, kind, f"{where}: {error.msg[0].lower()}{error.msg[1:]}") from None
    except ValueError as error:
        raise damaged(path, kind, str(error)) from None
    except RecursionError:
        raise damaged(path, kind, "its values are nested too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_INTEGER <= (value := int(digits)) < LARGEST_INTEGER:
        raise ValueError(f"the number {digits[:20]}... has {len(digits):,} digits; allowed: 64 bits")
    return value


def _number(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return value


def _opened(content: Any, place: str, path: Path, kind: Kind) -> tuple[Record, int]:
    """The fields, without the two of the seal, and the version. Raises RecordError."""
    if not isinstance(content, dict):
        raise damaged(path, kind, f"it holds a {type(content).__name__}, not an object")
    version: Any = content.get(VERSION, UNSEALED)
    digest = content.pop(DIGEST, None)
    if VERSION not in content and digest is None:
        pass
    elif digest != _digest(content, place):
        raise damaged(path, kind, "its digest does not match")
    elif not count(version) or version == UNSEALED:
        raise damaged(path, kind, f"its {VERSION} is {version!r}")
    elif version > kind.version:
        raise RecordError(
            f"{path} has format version {version}; this qattrain reads up to {kind.version}; use the one that wrote it"
        )
    content.pop(VERSION, None)
    if (where := _misfit(content, kind.fields)) is not None:
        raise damaged(path, kind, f"its {where!r} is missing or not what qattrain writes")
    return content, version


def _misfit(value: Any, shape: Shape, name: str = "") -> str | None:
    """The name of the first value that does not have its shape; None if all have."""
    if isinstance(shape, tuple):
        found = [_misfit(value, one, name) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return name
        return next((bad for n, one in enumerate(value) if (bad := _misfit(one, shape[0], f"{name}[{n}]"))), None)
    if isinstance(shape, dict):
        return _misfit_of_fields(value, shape, name)
    if shape in (int, float):
        fits = isinstance(value, int | shape) and not isinstance(value, bool)
    elif isinstance(shape, type):
        fits = isinstance(value, shape)
    else:
        fits = value is None if shape is None else shape(value)
    return None if fits else name


def _misfit_of_fields(value: Any, shape: dict[str, Shape], name: str) -> str | None:
    if not isinstance(value, dict):
        return name or "content"
    if shape == {"*": object}:  # anything
        return None
    shapes = dict.fromkeys(value, shape["*"]) if "*" in shape else shape
    for key, inner in shapes.items():
        field = key if "*" in shape else key.removesuffix("?")
        path = f"{name}.{field}" if name else field
        if field not in value:
            if field == key:
                return path
        elif (bad := _misfit(value[field], inner, path)) is not None:
            return bad
    return None
