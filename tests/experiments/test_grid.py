"""The grid: what is written is what is run, one list a setting, and mistakes show before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from qattrain.config.sources import build_config
from qattrain.errors import ConfigError
from qattrain.experiments.grid import Grid, Point, expand, read_grid

BITS, SEED, PTQ = ("quant", "bits"), ("seed",), ("ptq", "bits")


def values(grid: Grid, *keys: str) -> list[tuple[Any, ...]]:
    """Of every point: its method, and what it has for `keys`."""
    found = []
    for point in expand(grid):
        row: list[Any] = [] if point.quant is None else [point.quant["bits"]]
        for key in keys:
            value: Any = point.config
            for part in key.split("."):
                value = value[part]
            row.append(value)
        found.append(tuple(row))
    return found


def test_the_grid_is_the_product_of_its_axes_in_the_order_given() -> None:
    grid = read_grid(None, ["train.lr=[0.1,0.2]"], {BITS: [4, 2]})
    assert values(grid, "train.lr", "quant.bits") == [(0.1, 4), (0.1, 2), (0.2, 4), (0.2, 2)]
    assert [point.label for point in expand(grid)][1] == "train.lr=0.1 quant.bits=2"
    assert grid.axes == ["train.lr", "quant.bits"]


def test_flags_win_over_set_over_the_file_with_one_value_or_several(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text("[train]\nepochs = 3\n[sweep]\nseed = [0, 1]\nquant.bits = [2, 4]\ntrain.lr = [0.1, 0.2]\n")
    keys = ("seed", "quant.bits", "train.lr", "train.epochs")
    assert len(values(read_grid(file, [], {}), *keys)) == 8
    grid = read_grid(file, ["seed=7", "train.epochs=[1,2]", "quant.bits=1"], {BITS: [8], ("train", "lr"): [0.3]})
    assert values(grid, *keys) == [(7, 8, 0.3, 1), (7, 8, 0.3, 2)]
    assert grid.axes == ["train.epochs"]


def test_several_tables_are_several_grids(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        '[[sweep]]\nquant.bits = [2, 4]\n[[sweep]]\nquant.quantizer = ["ternary"]\n"quant.bits" = [2]\nseed = [0, 5]\n'
    )
    expected = [("lsq", 2, 0), ("lsq", 4, 0), ("ternary", 2, 0), ("ternary", 2, 5)]
    grid = read_grid(file, [], {})
    assert values(grid, "quant.quantizer", "quant.bits", "seed") == expected
    assert set(grid.axes) == {"quant.bits", "quant.quantizer", "seed"}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("model.widths=[8,16,32]", [[8, 16, 32]]),
        ("model.widths=[[8,16,32],[4,8,16]]", [[8, 16, 32], [4, 8, 16]]),
    ],
)
def test_a_list_that_is_itself_a_value_is_one_value(assignment: str, expected: list[Any]) -> None:
    assert values(read_grid(None, [assignment], {SEED: [0]}), "model.widths") == [(widths,) for widths in expected]


def test_tables_as_values_vary_too() -> None:
    grid = read_grid(None, ["quant.layer_bits=[{conv1=8},{fc2=8}]"], {BITS: [2]})
    assert values(grid, "quant.layer_bits") == [({"conv1": 8},), ({"fc2": 8},)]


def test_ptq_bits_are_points_of_their_own_made_of_the_float_run_with_the_same_settings() -> None:
    grid = read_grid(None, [], {BITS: [2], PTQ: [8, 4], SEED: [0, 1], ("train", "epochs"): [3]})
    assert values(grid, "quant.bits", "seed") == [(2, 0), (2, 1), (8, 32, 0), (8, 32, 1), (4, 32, 0), (4, 32, 1)]
    point = expand(grid)[2]
    assert point.quant is not None
    assert (point.quant["quantizer"], point.quant["act_bits"], point.config["train"]["epochs"]) == ("affine", None, 3)
    both = read_grid(None, ["ptq.calibration=mse"], {PTQ: [4], ("quant", "quantizer"): ["lsq", "pow2"], BITS: [2]})
    quantized = [point for point in expand(both) if point.quant]
    assert [point.quant["quantizer"] for point in quantized if point.quant] == ["lsq", "pow2"]
    assert quantized[0].ptq == {"calibration": "mse", "images": 1024, "source_epochs": 0}


def test_without_bits_beside_it_ptq_trains_only_the_float_run() -> None:
    assert values(read_grid(None, ["ptq.bits=8"], {SEED: [0, 1]})) == [(8,), (8,)]


def test_the_same_cells_asked_for_differently_are_the_same_sweep(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('name = "mine"\n[train]\nthreads = 3\n[sweep]\nquant.bits = [2, 4]\n')
    one, other = read_grid(file, [], {}), read_grid(None, ["quant.bits=[2,4]"], {("train", "threads"): 1})
    assert one.asked() == other.asked()
    assert (one.name, one.threads, other.name, other.threads) == ("mine", 3, None, 1)
    assert one.asked() != read_grid(file, ["train.lr=0.1"], {}).asked()


MISTAKES: list[tuple[str, list[str], dict[Any, Any], tuple[str, ...]]] = [
    ("", [], {}, ("empty", "--bits 1,2,4")),
    ("[train]\nepochs = 3\n", ["train.lr=0.1"], {}, ("empty",)),
    ("", ["train.lr=[]"], {}, ("train.lr", "empty")),
    ("", [], {BITS: [4, 2, 4]}, ("quant.bits", "4 twice", "duplicate")),
    ("", [], {BITS: [4], ("ptq", "bits"): [2, 2]}, ("ptq.bits", "2 twice")),
    ("[sweep]\nquant.bits = 4\n", [], {}, ("sweep.quant.bits = 4", "lists")),
    ("sweep = 3\n", [], {}, ("sweep = 3", "lists")),
    ("[sweep]\nquant.bitz = [4]\n", [], {}, ("quant.bitz", "act_bits")),
    ("", ["nosuch=[1,2]"], {}, ("nosuch", "model")),
    ("", [], {BITS: [1, 9]}, ("quant.bits = 9", "1 to 8")),
    ("", ["train.lr=[0.1,-1]"], {}, ("train.lr = -1", "greater than 0")),
    ("", ["train.lr=0.1", "train.lr.x=[1]"], {}, ("train.lr", "a value, not a table")),
    ("", [], {PTQ: [9]}, ("bits = 9", "1 to 8")),
    ("", ["ptq.nosuch=1"], {PTQ: [8]}, ("nosuch", "calibration")),
    ("[ptq]\nimages = 5\n", [], {BITS: [2]}, ("ptq.bits", "--ptq")),
    ("", ["train.threads=[1,2]"], {}, ("threads", "--threads")),
    ("", ["name=a/b"], {BITS: [2]}, ("name", "slashes")),
]


@pytest.mark.parametrize(("text", "assignments", "flags", "said"), MISTAKES)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, text: str, assignments: list[str], flags: dict[Any, Any], said: tuple[str, ...]
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)

    def understand() -> tuple[str | None, list[Point]]:
        grid = read_grid(file, assignments, flags)
        return grid.name, expand(grid)

    with pytest.raises(ConfigError) as caught:
        understand()
    assert [part for part in said if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == 1


def test_the_record_of_a_run_is_a_grids_start(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": build_config(None, ["quant.bits=3"], {}).model_dump(mode="json")}))
    assert values(read_grid(file, ["seed=[5,6]"], {}), "seed", "quant.bits") == [(5, 3), (6, 3)]
    assert values(read_grid(file, [], {BITS: [32], PTQ: [8]}), "seed") == [(0,), (8, 0)]


def test_the_example_in_configs_is_the_grid_it_says() -> None:
    example = Path(__file__).parents[2] / "configs" / "sweep-bits.toml"
    points = expand(read_grid(example, [], {}))
    assert len(points) == 18
