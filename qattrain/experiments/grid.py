"""The settings that vary, their values, and the points that result. No torch in here.

In a TOML file it is a `[sweep]` table, with the keys of the rest of the file and lists of values:

    [train]
    epochs = 5
    [sweep]
    seed = [0, 1, 2]
    quant.bits = [1, 2, 4, 8, 32]
    ptq.bits = [8, 4, 2]

Several `[[sweep]]` tables are several grids, one after the other. On the command line it is `--bits 1,2,4` or
`--set train.lr=[0.05,0.1]`: a list means several values, unless the list itself is a value of that key, as for
`model.widths`. Flags win over `--set`, `--set` over the file.

`ptq.bits` asks for post-training quantizations: each is made from the float run of the same point, which is added to
the sweep if the grid does not contain it. Without any `quant.bits`, nothing else is trained.
"""

import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import FLOAT_BITS, PtqConfig, QuantConfig, parse_config, validated
from qattrain.config.sources import merge, parse_assignment, read_config_file
from qattrain.errors import ConfigError

Key = tuple[str, ...]  # of a setting: ("quant", "bits")
Axes = dict[Key, list[Any]]

BITS, PTQ_BITS = ("quant", "bits"), ("ptq", "bits")
THREADS = ("train", "threads")
PTQ_QUANTIZER = "affine"  # the default of `qattrain ptq`, too
SHARED_QUANT = ("quantizer", "act_bits", "layer_bits")  # settings that also apply to the post-training quantization


@dataclass(frozen=True)
class Grid:
    """base: nested settings of every point. tables: each a product of axes; the grid is one after the other."""

    base: dict[str, Any]
    tables: list[Axes]

    @property
    def name(self) -> str | None:
        """The name for the sweep's folder, if given."""
        return parse_config({"name": self.base.get("name")}, "sweep").name

    @property
    def axes(self) -> list[str]:
        """Dotted names of all settings that vary, each once."""
        keys = dict.fromkeys(key for table in self.tables for key in table)
        taken = {key: {json.dumps(v) for table in self.tables for v in table.get(key, [None])} for key in keys}
        return [".".join(key) for key in keys if len(taken[key]) > 1]

    @property
    def threads(self) -> int | None:
        """Threads of each worker, if given."""
        return parse_config({"train": self.base.get("train", {})}, "sweep").train.threads

    def asked(self) -> str:
        """The grid as text, without its name and threads: two grids that ask for the same cells have the same text."""
        train = {key: value for key, value in self.base.get("train", {}).items() if key != "threads"}
        tables = [{".".join(key): values for key, values in table.items()} for table in self.tables]
        return json.dumps({"base": self.base | {"name": None, "train": train}, "tables": tables}, sort_keys=True)


@dataclass(frozen=True)
class Point:
    """One point. label: its values, for people. config: a valid run as plain values, with `auto` not yet settled.

    quant, ptq: for a post-training quantization, what to make from that (float) run; else None.
    """

    label: str
    config: dict[str, Any]
    quant: dict[str, Any] | None = None
    ptq: dict[str, Any] | None = None


def read_grid(file: Path | None, assignments: list[str], flags: Mapping[Key, Any]) -> Grid:
    """The grid from its sources. `flags` maps keys like ("quant", "bits") to a list of values or to one value.

    Raises ConfigError for an unreadable file, a malformed assignment, an axis without values or with a duplicate.
    """
    base = read_config_file(file) if file else {}
    if "ptq" in base and base["ptq"] is None:  # in a run's config.json
        del base["ptq"]
    found = base.pop("sweep", {})
    tables = [dict(_axes_of(table, ())) for table in (found if isinstance(found, list) else [found])] or [{}]
    for text in assignments:
        path, value = parse_assignment(text)
        _place(base, tables, tuple(path), value, f"--set {text}")
    for key, value in flags.items():
        _place(base, tables, key, value, f"{'.'.join(key)} = {value!r}")
    for table in tables:
        for key, values in table.items():
            if not values:
                raise ConfigError(f"{'.'.join(key)} has no values: the grid is empty; give at least one, as in 1,2,4")
            texts = [json.dumps(value, sort_keys=True) for value in values]
            twice = next((text for text in texts if texts.count(text) > 1), None)
            if twice is not None:
                raise ConfigError(f"{'.'.join(key)} has {twice} twice, a duplicate cell; give each value once")
    if not any(tables):
        raise ConfigError(
            "the grid is empty: give a setting its values, for example --bits 1,2,4 --seeds 0,1, or a [sweep] table "
            "in the --config file"
        )
    if any(THREADS in table for table in tables):
        raise ConfigError("train.threads has several values: all cells run with the same threads; give one --threads")
    if "ptq" in base and not any(PTQ_BITS in table for table in tables):
        raise ConfigError("'ptq' settings without ptq.bits: nothing is quantized; add --ptq 8,4 or leave them out")
    return Grid(base, tables)


def _axes_of(table: Any, path: Key) -> Iterator[tuple[Key, list[Any]]]:
    """(key, values) of every leaf of a `[sweep]` table."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield from _axes_of(value, (*path, *key.split(".")))
    elif isinstance(table, list) and path:
        yield path, table
    else:
        key = ".".join(("sweep", *path))
        raise ConfigError(f"{key} = {table!r}: a sweep's settings are lists of values, for example quant.bits = [2, 4]")


def _place(base: dict[str, Any], tables: list[Axes], key: Key, value: Any, source: str) -> None:
    """Set one value or several; this replaces any earlier values of the setting."""
    values = value if isinstance(value, list) and not _is_one_value(key, value) else None
    if values is None and key == PTQ_BITS:
        values = [value]
    for table in tables:
        table.pop(key, None)
        if values is not None:
            table[key] = values
    if values is None:
        merge(base, list(key), value, source)


def _is_one_value(key: Key, value: Any) -> bool:
    nested: dict[str, Any] = {}
    try:
        merge(nested, list(key), value, "")
        parse_config(nested, "")
    except ConfigError:
        return False
    return True


def expand(grid: Grid) -> list[Point]:
    """Every point of the grid, in the order given. Raises ConfigError for a key or a value that is not allowed."""
    return [point for table in grid.tables for point in _points(grid.base, table)]


def _points(base: dict[str, Any], table: Axes) -> Iterator[Point]:
    bits_asked = BITS in table or "bits" in base.get("quant", {})
    if bits_asked or PTQ_BITS not in table:
        for label, values in _product(base, {key: table[key] for key in table if key[0] != "ptq"}):
            values.pop("ptq", None)
            yield Point(label, _config(values, label))
    if PTQ_BITS in table:
        for label, values in _product(base, {key: table[key] for key in table if key != BITS}):
            yield _ptq_point(label, values)


def _product(base: dict[str, Any], axes: Axes) -> Iterator[tuple[str, dict[str, Any]]]:
    for combination in itertools.product(*axes.values()):
        values = copy.deepcopy(base)
        for key, value in zip(axes, combination, strict=True):
            merge(values, list(key), value, f"{'.'.join(key)} = {value!r}")
        pairs = [pair for pair in zip(axes, combination, strict=True) if len(axes[pair[0]]) > 1]
        yield " ".join(f"{'.'.join(key)}={_text(value)}" for key, value in pairs), values


def _ptq_point(label: str, values: dict[str, Any]) -> Point:
    ptq = values.pop("ptq")
    asked = values.pop("quant", {})
    quant = {"quantizer": PTQ_QUANTIZER} | {key: asked[key] for key in SHARED_QUANT if key in asked}
    source = _config(values | {"quant": {"bits": FLOAT_BITS, "act_bits": FLOAT_BITS}}, label)
    quant_config = validated(QuantConfig, quant | {"bits": ptq.pop("bits")}, f"sweep, {label}")
    ptq_config = validated(PtqConfig, ptq, f"sweep, {label}")
    return Point(label, source, quant_config.model_dump(mode="json"), ptq_config.model_dump(mode="json"))


def _config(values: dict[str, Any], label: str) -> dict[str, Any]:
    source = f"sweep, {label}" if label else "sweep"
    return parse_config(values | {"name": None}, source).model_dump(mode="json")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
