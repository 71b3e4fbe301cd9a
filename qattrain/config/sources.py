"""Where settings come from: flags override `--set`, `--set` overrides the file, the file overrides the defaults."""

import contextlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qattrain.config import COMMAND_LINE, ExperimentConfig, parse_config
from qattrain.config.chain import PRESETS, is_chain
from qattrain.errors import ConfigError, reason, shortened
from qattrain.files import read_bounded

MOST_CONFIG_BYTES = 2**18
MOST_DEPTH = 16  # tables and lists in each other; settings need four
MOST_DOTS = 100  # outside of numbers in a line: reading a key a.b.c... takes the square of its parts
_TOO_DEEP = f"it is nested more than {MOST_DEPTH} deep"
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.])")


def read_config_file(path: Path) -> dict[str, Any]:
    """Nested values of a TOML file, or the `config` part of a run's `config.json` less its name. Raises ConfigError."""
    data = read_bounded(path, MOST_CONFIG_BYTES, ConfigError, f"the config file {path}", "give an existing TOML file")
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = data.decode()
        values = json.loads(text) if kind == "JSON" else _toml(text)
        if kind == "JSON" and isinstance(values, dict) and "config" in values:
            values = values["config"]
            if isinstance(values, dict):
                values["name"] = None  # a run of that name exists
        _check_bounds(values)
    except RecursionError:
        raise ConfigError(f"{path} is not valid {kind}: {_TOO_DEEP}") from None
    except ValueError as error:  # JSONDecodeError, TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{path} is not valid {kind}: {shortened(reason(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a table of settings")
    return values


def _toml(text: str) -> dict[str, Any]:
    """The values of a TOML document. Raises ValueError, RecursionError."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MOST_DOTS and _NUMBER.sub("", line).count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots")
    return tomllib.loads(text)


def _check_bounds(values: Any) -> None:
    """Raises ValueError if values are nested too deep, or if a whole number has more than 64 bits."""
    level = [values]
    for _ in range(MOST_DEPTH):
        level = [one for each in level if isinstance(each, dict | list) for one in _inside(each)]
        if not level:
            return
        if any(isinstance(one, int) and one.bit_length() > 64 for one in level):
            raise ValueError("a whole number has more than 19 digits")
    raise ValueError(_TOO_DEEP)


def _inside(values: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return values.values() if isinstance(values, dict) else values


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """`train.lr=0.1` -> (["train", "lr"], 0.1). The value is TOML, in whose lists words need no quotes, or else text.

    Raises ConfigError if there is no `=`, an empty key, or a list that cannot be read.
    """
    key, sign, value = text.partition("=")
    if not sign or not all(key.strip().split(".")):
        raise ConfigError(f"--set {shortened(repr(text))}: expected KEY=VALUE, for example --set train.lr=0.1")
    if key.count(".") >= MOST_DEPTH:
        raise ConfigError(f"--set {shortened(repr(text))}: {_TOO_DEEP}; give one setting, such as train.lr=0.1")
    return key.strip().split("."), _parse_value(value, f"--set {shortened(repr(text))}")


def parse_values(text: str, name: str) -> list[Any]:
    """`1,2,4` -> [1, 2, 4]; each value is TOML, or else a plain string; or all of it is a list, for values with commas
    of their own. Raises ConfigError if one is empty, or if it is a chain that is not in a list.
    """
    source = f"--{name.replace('_', '-')} {shortened(repr(text))}"
    if text.lstrip().startswith("["):
        values: list[Any] = _parse_value(text, source)
        return values
    if name == "model" and text not in PRESETS and is_chain(text):
        shown = shortened(text)
        raise ConfigError(f"--model {shown!r}: chains have commas; give them as a list: --model \"['{shown}']\"")
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{source}: a value is missing; give them as in 1,2,4")
    return [_parse_value(part, source) for part in parts]


# Of a list: quoted text, or a word such as clipped, 0.05, CIFAR-10, folder:a/b.
_QUOTED_OR_WORD = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')|([^\s,\[\]{}="']+)""")


def _parse_value(text: str, source: str) -> Any:
    """The text as TOML; a list also with words that are not quoted; anything else as it is. Raises ConfigError."""
    try:
        return _read_value(text)
    except tomllib.TOMLDecodeError:
        if not text.lstrip().startswith("["):
            return text
    except (ValueError, RecursionError) as error:  # what no setting can be
        raise ConfigError(f"{source}: {_why(error)}") from None
    try:
        values = _read_value(_QUOTED_OR_WORD.sub(_quoted, text))
        assert isinstance(values, list), values
        return values
    except RecursionError:
        raise ConfigError(f"{source}: {_TOO_DEEP}") from None
    except ValueError:
        raise ConfigError(
            f"{source}: not a valid list; separate its values with commas, and quote text with commas or spaces of its "
            "own: [A,B] or ['conv 8 3x3, fc', 'lenet']"
        ) from None


def _read_value(text: str) -> Any:
    """One value of TOML. Raises ValueError, as TOMLDecodeError if it is none, RecursionError."""
    value = _toml(f"value = {text}")["value"]
    _check_bounds([value])
    return value


def _why(error: Exception) -> str:
    """Why a value cannot be read."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return "a whole number has more than 19 digits" if "digits" in str(error) else shortened(reason(error))


def _quoted(match: re.Match[str]) -> str:
    """The match as TOML: a word in quotes, unless it is a value without them, such as 4 or true."""
    if match[1]:
        return match[0]
    with contextlib.suppress(ValueError):
        tomllib.loads(f"value = {match[0]}")
        return match[0]
    return json.dumps(match[0], ensure_ascii=False)


def parse_layer_bits(text: str) -> dict[str, int]:
    """`conv1=8,act2=4` -> {"conv1": 8, "act2": 4}. Raises ConfigError if a part is not LAYER=BITS."""
    result: dict[str, int] = {}
    source = f"--layer-bits {shortened(repr(text))}"
    for part in text.split(","):
        layer, _, bits = (piece.strip() for piece in part.partition("="))
        if not layer or not bits.isdecimal() or len(bits) > 9:
            raise ConfigError(f"{source}: '{shortened(part)}' is not LAYER=BITS, for example conv1=8,act2=4")
        if layer in result:
            raise ConfigError(f"{source}: layer '{shortened(layer)}' is given twice; name each layer once")
        result[layer] = int(bits)
    return result


def merge(base: dict[str, Any], path: list[str], value: Any, source: str) -> None:
    """Set `base[path[0]][path[1]]... = value` in place. Raises ConfigError if part of the path is a value."""
    for depth, part in enumerate(path[:-1]):
        base = base.setdefault(part, {})
        if not isinstance(base, dict):
            raise ConfigError(f"{source}: '{'.'.join(path[: depth + 1])}' is a value, not a table of settings")
    base[path[-1]] = value


def collect_settings(file: Path | None, assignments: list[str], flags: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested values from all sources: flags over `--set` over file. `flags` maps a path, ("train", "lr"), to a value.

    Raises ConfigError for an unreadable file and for a malformed assignment.
    """
    values = read_config_file(file) if file else {}
    for text in assignments:
        path, value = parse_assignment(text)
        merge(values, path, value, f"--set {shortened(text)}")
    for flag_path, value in flags.items():
        merge(values, list(flag_path), value, f"{'.'.join(flag_path)} = {shortened(repr(value))}")
    return values


def build_config(file: Path | None, assignments: list[str], flags: Mapping[tuple[str, ...], Any]) -> ExperimentConfig:
    """One valid config from its sources and, below them, the defaults. Raises ConfigError."""
    return parse_config(collect_settings(file, assignments, flags), str(file) if file else COMMAND_LINE)


def assigned_settings(
    file: Path | None, assignments: list[str], flags: Mapping[tuple[str, ...], Any]
) -> dict[tuple[str, ...], Any]:
    """Only what the sources set, without defaults: path -> value, validated. Raises ConfigError."""
    values = collect_settings(file, assignments, flags)
    known = parse_config(values, str(file) if file else COMMAND_LINE).model_dump(mode="json")
    return {path: lookup(known, path) for path, _ in leaves(values)}


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting of a dumped configuration with its path, in order."""
    for key, value in values.items():
        if isinstance(value, dict) and key != "layer_bits":
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def lookup(values: dict[str, Any], path: Iterable[str]) -> Any:
    """The setting at `path` of a dumped configuration; None within a section that is not set."""
    found: Any = values
    for part in path:
        found = None if found is None else found[part]
    return found
