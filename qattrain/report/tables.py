"""Tables that the terminal and the page both show: what one layer, result, epoch or group of a sweep is in text.

Each function turns one record into a row: column -> text. Nothing here imports torch or matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qattrain.report.console import UNKNOWN, Table, number, p_value, percent, spread

if TYPE_CHECKING:
    from qattrain.evaluation.inspection import LayerReport

# The columns of a layer: its grid, how well it is used, what it costs. Each group fits on a terminal of 80 columns.
LAYER_GRID = ("layer", "kind", "shape", "bits", "quantizer", "scale")
LAYER_USE = ("codes used", "entropy (bits)", "clipped", "SQNR (dB)")
LAYER_COST = ("weight bytes", "largest sum", "sum bits")


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
        "weight bytes": number(layer.weight_bytes, ","),
        "largest sum": number(layer.accumulator_bound, ","),
        "sum bits": number(layer.accumulator_bits, "d"),
    }


def layer_table(
    layers: Iterable["LayerReport"], columns: Sequence[str], bars: Mapping[str, str] | None = None
) -> Table:
    """Some of the columns above, of every layer. bars: layer -> its histogram as text, for one more column."""
    rows = []
    for layer in layers:
        cells = _layer_row(layer)
        row = {column: cells[column] for column in columns}
        rows.append(row if bars is None else row | {"histogram": bars.get(layer.layer, UNKNOWN)})
    left = ("kind", "shape", "quantizer", "scale", "histogram")
    return Table.of("Every layer's grid and how well it is used", rows, left)


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
    """The groups of a `sweep.json`: all seeds of the same settings together. without: columns to leave out."""
    rows = []
    for group in groups:
        std = group["accuracy_std"]
        row = {
            "method": group["method"],
            "W/A bits": f"{group['bits']}/{group['act_bits']}",
            "quantizer": group["quantizer"],
            "model": group["model"],
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
    return Table.of(title, rows, ("quantizer", "model", "dataset"))
