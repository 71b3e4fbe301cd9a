"""Tables that the terminal and the page both show: what one layer, result, epoch or group of a sweep is in text.

Each function turns one record into a row: column -> text. Nothing here imports torch or matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qattrain.config import chain_label
from qattrain.report.console import UNKNOWN, Table, number, p_value, percent, spread

if TYPE_CHECKING:
    from qattrain.evaluation.inspection import LayerReport

# The columns of a layer: its grid, how well it is used, what it costs, its sums. With the layer's name each group fits
# on a terminal of 80 columns.
LAYER_GRID = ("layer", "kind", "shape", "bits", "quantizer", "scale")
LAYER_USE = ("codes used", "entropy (bits)", "clipped", "SQNR (dB)")
LAYER_COST = ("output", "weights", "weight bytes", "total bytes", "MACs")
LAYER_SUMS = ("largest sum", "sum bits")
GROUP_KEYS = ("method", "W/A bits", "quantizer", "model", "dataset", "epochs")  # and a sweep's own settings
COST_NOTE = (
    "total bytes: packed weights, and per output channel a bias (4), a multiplier (4) and a shift (1); MACs: "
    "multiply-accumulates for one image"
)


def _layer_row(layer: "LayerReport") -> dict[str, str]:
    return {
        "layer": layer.layer,
        "kind": layer.kind,
        "shape": "x".join(map(str, layer.shape)) or UNKNOWN,
        "bits": str(layer.bits),
        "quantizer": layer.quantizer or "float",
        "scale": spread(layer.scale_min, layer.scale_max),
        "codes used": UNKNOWN if layer.codes_used is None else f"{layer.codes_used} of {layer.levels}",
        "entropy (bits)": number(layer.entropy_bits, ".2f"),
        "clipped": percent(layer.clipped_share),
        "SQNR (dB)": number(layer.sqnr_db, ".1f"),
        "output": UNKNOWN if layer.output_shape is None else "x".join(map(str, layer.output_shape)),
        "weights": number(layer.weights, ","),
        "weight bytes": number(layer.weight_bytes, ","),
        "total bytes": number(layer.total_bytes, ","),
        "MACs": number(layer.macs, ","),
        "largest sum": number(layer.accumulator_bound, ","),
        "sum bits": number(layer.accumulator_bits, "d"),
    }


def layer_table(
    layers: Iterable["LayerReport"],
    columns: Sequence[str],
    bars: Mapping[str, str] | None = None,
    totals: Mapping[str, int] | None = None,
) -> Table:
    """Some of the columns above, of every layer. bars: layer -> its histogram as text, for one more column.

    totals: of `Inspection.totals`, for a last row.
    """
    rows, title = [], "Every layer's grid and how well it is used"
    for layer in layers:
        cells = _layer_row(layer)
        row = {column: cells[column] for column in columns}
        rows.append(row if bars is None else row | {"histogram": bars.get(layer.layer, UNKNOWN)})
    if totals is not None:
        title = f"What every layer costs; {COST_NOTE}"
        sums = {"layer": "total", "MACs": f"{totals['macs']:,}"}
        sums |= {key: f"{totals[key.replace(' ', '_')]:,}" for key in ("weights", "weight bytes", "total bytes")}
        rows.append({column: sums.get(column, "") for column in rows[0]})
    left = ("kind", "shape", "quantizer", "scale", "output", "histogram")
    return Table.of(title, rows, left)


def network_label(name: str) -> str:
    """A network's name as short as a preset's: `chain-<8 hex digits>` for a chain."""
    return chain_label(name) if "," in name else name


def chain_lines(names: Iterable[str]) -> list[str]:
    """`chain-<8 hex digits>: conv 8 ...` for each of these networks that is a chain, once."""
    return [f"{network_label(name)}: {name}" for name in dict.fromkeys(names) if "," in name]


def result_row(
    accuracy: float,
    interval: tuple[float, float],
    against_first: tuple[float, float] | None,
    loss: float,
    weight_bytes: int,
) -> dict[str, str]:
    """How a network did, beside others. against_first: difference of the accuracies, and McNemar's p-value."""
    low, high = interval
    return {
        "test accuracy": percent(accuracy),
        "95 % interval": f"{100 * low:.2f} to {100 * high:.2f}",
        "difference": UNKNOWN if against_first is None else f"{100 * against_first[0]:+.2f}",
        "McNemar p": UNKNOWN if against_first is None else p_value(against_first[1]),
        "loss": f"{loss:.4f}",
        "weight bytes": f"{weight_bytes:,}",
    }


def epoch_row(record: Mapping[str, Any]) -> dict[str, str]:
    """An epoch's line of `metrics.jsonl`."""
    return {
        "epoch": str(record["epoch"]),
        "train loss": f"{record['train_loss']:.4f}",
        "test loss": f"{record['test_loss']:.4f}",
        "test accuracy": percent(record["test_accuracy"]),
        **({"val accuracy": percent(record["val_accuracy"])} if "val_accuracy" in record else {}),
        "learning rate": f"{record['learning_rate']:.3g}",
        "images/s": f"{record['images_per_second']:,.0f}",
        "time": f"{record['epoch_seconds']:.1f} s",
    }


def group_table(groups: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> Table:
    """The groups of a `sweep.json`, fewest bits first and float last: all seeds of the same settings together.

    without: columns to leave out.
    """
    rows, keys = [], [column for column in (*GROUP_KEYS, *groups[0]["settings"]) if column not in without]
    for group in sorted(groups, key=lambda group: int(group["bits"])):
        std = group["accuracy_std"]
        row = {
            "method": group["method"],
            "W/A bits": f"{group['bits']}/{group['act_bits']}",
            "quantizer": group["quantizer"],
            "model": network_label(group["model"]),
            "dataset": group["dataset"],
            "epochs": str(group["epochs"] or UNKNOWN),
            **{name: UNKNOWN if value is None else str(value) for name, value in group["settings"].items()},
            "test accuracy": percent(group["accuracy_mean"]),
            "std": UNKNOWN if std is None else f"{100 * std:.2f}",
            "seeds": str(group["n"]),
            "loss": f"{group['loss_mean']:.4f}",
            "weight bytes": f"{group['weight_bytes']:,}",
            "images/s": number(group["images_per_second"], ",.0f"),
        }
        rows.append({column: text for column, text in row.items() if column not in without})
    title = "All seeds of the same settings together: mean test accuracy, its standard deviation in points, mean loss"
    return Table.of(title, rows, ("quantizer", "model", "dataset"), keys=len(keys), strong=("test accuracy",))


def shared_line(shared: Mapping[str, str]) -> str:
    """`all: model lenet, dataset mnist`."""
    return f"all: {', '.join(f'{column} {value}' for column, value in shared.items())}"


def shared_columns(groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of the columns that say what a group is, those with one value in all groups, and that value."""
    table = group_table(groups)
    values = {
        column: {row[index] for row in table.rows} for index, column in enumerate(table.columns[2 : table.keys], 2)
    }
    return {column: found.pop() for column, found in values.items() if len(found) == 1}
