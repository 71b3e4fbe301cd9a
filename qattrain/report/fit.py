"""What a search found: lines while it runs, its front as a picture, and the section of a report's page about it.

Nothing here imports torch.
"""

import time
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qattrain.experiments.folder import pareto_front
from qattrain.experiments.search_folder import Progress
from qattrain.experiments.sweep import Status
from qattrain.report.console import UNKNOWN, Table, counted, number, percent
from qattrain.report.display import SweepWords, time_left
from qattrain.report.drawing import LOOKS, accuracy_axis, chart_figure, drawn_error, finding, heading, picture_files
from qattrain.report.page import Block, Chart, Charts, Commands, Facts, Section, Text
from qattrain.report.sources import Sweep
from qattrain.report.tables import network_label
from qattrain.runs import folder as runs

Document = dict[str, Any]  # of `fit.json`, as `qattrain.experiments.kinds` describes it
COSTS = {"weight_bytes": "weights (bytes)", "macs": "multiply-accumulates (MACs)"}
UNITS = {
    "weight_bytes": "bytes of weights",
    "total_bytes": "bytes in all",
    "macs": "MACs",
    "flash_bytes": "bytes of flash",
    "milliseconds": "ms",
}
MOST_ROWS = 12  # of the table on a terminal


def fit_words(progress: Progress) -> SweepWords:
    """What a display says of a search."""
    return SweepWords(partial(ended_line, progress), partial(status_line, progress))


def ended_line(progress: Progress, status: Status, name: str, outcome: float | str) -> str:
    """`[3 of 12] lenet-...: 98.12 % of the held-out images, loss 0.0613`, for a cell that just ended."""
    until = progress.cells[name].until
    if isinstance(outcome, str):
        what = f"failed: {outcome}"
    elif until is None:
        what = f"test accuracy {percent(outcome)}"
    else:
        record = runs.read_metrics(progress.folder / name)[until - 1]
        what = f"{percent(record['val_accuracy'])} of the held-out images, loss {record['val_loss']:.4f}"
    return f"[{status.finished + len(status.failed)} of {status.total}] {name}: {what}"


def status_line(progress: Progress, status: Status) -> str:
    """`batch 2, 4 candidates to 3 epochs: 1 done, 2 running; best loss so far 0.0613; about 20 min left`."""
    done = status.finished + len(status.failed)
    best = f"; best loss so far {progress.best:.4f}" if progress.best is not None else ""
    left = max(0.0, progress.ends_at - time.monotonic()) if progress.ends_at is not None else status.seconds_left
    return f"{progress.stage}: {done} done, {len(status.running)} running{best}{time_left(left)}"


def bits_words(row: dict[str, Any]) -> str:
    """`4/8, conv1 2`: bits of weights and of activations, and the layers that have others."""
    others = "".join(f", {layer} {bits}" for layer, bits in row["layer_bits"].items())
    return f"{row['bits']}/{row['act_bits']}{others}"


def budget_words(document: Document) -> str:
    """`3,200 bytes of weights and 60,000 MACs`."""
    budget = document["budget"]
    parts = [f"{budget[name]:,} {unit}" for name, unit in UNITS.items() if budget[name] is not None]
    where = f" on {budget['core']}" if budget["core"] else ""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) + where


def found_sentence(document: Document) -> str:
    """What the search found, in a sentence."""
    winner = winner_of(document)
    size = f"{winner['weight_bytes']:,} bytes of weights and {winner['macs']:,} MACs"
    if document["accuracy_mean"] is None:
        return f"The best so far within {budget_words(document)}: {percent(winner['accuracy'])} of the held-out images"
    runs_said = f"mean of {counted(len(document['finals']), 'seed')}"
    return f"{percent(document['accuracy_mean'])} of the test images ({runs_said}) with {size}"


def winner_of(document: Document) -> dict[str, Any]:
    """The row of the candidate that won, or is the best so far."""
    return next(row for row in document["rows"] if row["run_dir"] == document["winner"])


def front(document: Document, cost: str) -> list[dict[str, Any]]:
    """The candidates, trained to the end, that no other beats in both that cost and accuracy; cheapest first."""
    return pareto_front([row for row in document["rows"] if row["status"] == "complete"], cost, "accuracy")


def draw_front(axes: Axes, document: Document, cost: str) -> None:
    """Accuracy on the held-out images against a cost: every candidate, the front of those trained to the end."""
    style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    for status, label, look in (
        ("passed over", "passed over", {"markerfacecolor": "white", "color": LOOKS["others"].color}),
        ("complete", "trained to the end", {"color": LOOKS["QAT"].color}),
    ):
        rows = [row for row in document["rows"] if row["status"] == status]
        axes.plot([row[cost] for row in rows], [_error(row) for row in rows], label=label, **style | look)
    best = front(document, cost)
    axes.plot([row[cost] for row in best], [_error(row) for row in best], color="black", lw=1, drawstyle="steps-post")
    winner = winner_of(document)
    star: dict[str, Any] = {"linestyle": "", "marker": "*", "markersize": 14, "color": LOOKS["PTQ"].color}
    axes.plot([winner[cost]], [_error(winner)], label="smallest loss", **star)
    limit = document["budget"][cost]
    if limit is not None:
        axes.axvline(limit, color="black", ls=":", lw=1.2)
    errors = [_error(row) for row in document["rows"] if row["accuracy"] is not None]
    axes.set(xlabel=COSTS[cost], xlim=(0, None))
    accuracy_axis(axes, "held-out", min(1.3 * max(errors), 1.0), min(errors) / 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _error(row: dict[str, Any]) -> float:
    return drawn_error(row["accuracy"])


def front_pictures(document: Document) -> dict[str, bytes]:
    """File name -> content of front.png and front.svg."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for axes, cost in zip(figure.subplots(1, 2), COSTS, strict=True):
        draw_front(axes, document, cost)
    figure.axes[0].legend(fontsize=9)
    stand_in = " (stand-in for MNIST)" if document["notice"] else ""
    held_out = f"{document['held_out']:,} held-out images of {document['dataset']}{stand_in}"
    finding(figure, found_sentence(document), 105)
    about = f"{held_out}; dotted: the budget; black line: the front of those trained to the end"
    figure.supxlabel(heading(about, 125), fontsize=9)
    return picture_files({"front": figure})


def best_rows(document: Document, most: int | None = None) -> list[dict[str, Any]]:
    """The candidates that did not fail: those trained longest first, then by loss."""
    rows = [row for row in document["rows"] if row["loss"] is not None and row["status"] != "failed"]
    return sorted(rows, key=lambda row: (-row["epochs"], row["loss"]))[:most]


def over_budget(document: Document) -> str | None:
    """What to say if the winner, trained by the full recipe, breaks the budget on the core; None if it does not."""
    budget, parts = document["budget"], []
    for row in document["finals"]:
        names = [name for name in ("flash_bytes", "milliseconds") if None not in (row[name], budget[name])]
        over = [f"{row[name]:,.6g} {UNITS[name]}" for name in names if row[name] > budget[name]]
        parts += [f"seed {row['seed']} takes {' and '.join(over)}"] if over else []
    remedy = "use another seed" if len(parts) < len(document["finals"]) else "search again with a smaller budget"
    said = (
        f"Trained by the full recipe, the winner breaks the budget on {budget['core']}: {'; '.join(parts)}; {remedy}."
    )
    return said if parts else None


def trial_table(document: Document, most: int | None = None, folded: bool = False) -> Table:
    """The first of `best_rows`, or all. folded: hidden on a page until it is opened."""
    rows = best_rows(document)
    device = document["budget"]["core"] is not None
    cells = [
        {
            "candidate": network_label(row["model"]),
            "W/A bits": bits_words(row),
            "bytes": f"{row['weight_bytes']:,}",
            "MACs": f"{row['macs']:,}",
            **({"flash": number(row["flash_bytes"], ","), "ms": number(row["milliseconds"], ".1f")} if device else {}),
            "epochs": str(row["epochs"]),
            "held-out loss": number(row["loss"], ".4f"),
            "held-out accuracy": percent(row["accuracy"]),
        }
        for row in rows[:most]
    ]
    title = "Candidates, those trained longest first" if most is None else f"The best {len(cells)} of {len(rows)}"
    return Table.of(title, cells, ("W/A bits",), folded=folded)


def final_table(document: Document) -> Table:
    """The winner's trainings."""
    rows = [
        {
            "seed": str(row["seed"]),
            "test accuracy": percent(row["accuracy"]),
            "test loss": f"{row['loss']:.4f}",
            **({"flash": number(row["flash_bytes"], ",")} if row["flash_bytes"] is not None else {}),
            **({"ms": number(row["milliseconds"], ".1f")} if row["milliseconds"] is not None else {}),
        }
        for row in document["finals"]
    ]
    return Table.of(f"The winner, {counted(document['epochs'], 'epoch')} on each seed", rows)


def _chart(document: Document, cost: str, caption: str) -> Chart:
    figure = chart_figure(partial(draw_front, document=document, cost=cost), 0.4)
    best = "; ".join(f"{row[cost]:,}: {percent(row['accuracy'])}" for row in front(document, cost))
    return Chart(figure, f"Accuracy against {COSTS[cost]}", caption, f"The front: {best}.")


def fit_section(fit: Sweep, ident: str) -> Section:
    """The section of a page about a search."""
    document, winner = fit.document, winner_of(fit.document)
    rows = document["rows"]
    statuses = [row["status"] for row in rows]
    facts = [("candidates", str(len(rows)), "")]
    facts += [(status, str(statuses.count(status)), "") for status in ("complete", "passed over", "failed")]
    blocks: list[Block] = [Text(document["notice"], notice=True)] if document["notice"] else []
    blocks += [Text(f"Within {budget_words(document)}. {found_sentence(document)}."), Facts(facts)]
    blocks.append(Text(f"The best: {winner['model']}; bits of weights/activations {bits_words(winner)}."))
    if document["finals"]:
        blocks.append(final_table(document))
        config = fit.folder / document["finals"][0]["run_dir"] / runs.CONFIG_FILE
        blocks.append(Commands("To train the winner again:", [["qattrain", "train", "--config", str(config)]]))
    caption = "On held-out training images. Dotted: the budget. Line: the front of those trained to the end."
    layers = {network_label(row["model"]): row["model"] for row in best_rows(document)}
    named = [{"candidate": name, "layers": line} for name, line in layers.items()]
    blocks += [Charts([_chart(document, cost, caption) for cost in COSTS]), trial_table(document, folded=True)]
    blocks.append(Table.of("Layers of the candidates", named, ("layers",), folded=True))
    errors = [f"{row['run_dir']}: {row['error'] or UNKNOWN}" for row in rows if row["status"] == "failed"]
    blocks += [Text(line) for line in errors]
    return Section(ident, f"Search {document['name']}", blocks)
