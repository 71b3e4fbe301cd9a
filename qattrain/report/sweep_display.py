"""A sweep as it happens, one live table on a terminal, a line a cell elsewhere; and its results. No torch in here."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qattrain.report.console import Console, age, counted, percent
from qattrain.sweeps.coordinator import Status


class PlainSweepDisplay:
    """A line for every cell that ends."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def update(self, status: Status, ended: tuple[str, float | str] | None) -> None:
        """`ended`: name, and accuracy or error line, of a cell that just ended."""
        if ended is None:
            return
        name, outcome = ended
        what = f"test accuracy {percent(outcome)}" if isinstance(outcome, float) else f"failed: {outcome}"
        number = status.finished + len(status.failed)
        self.console.text(f"[{number} of {status.total}] {name}: {what}{_left(status)}")

    def close(self) -> None: ...


class LiveSweepDisplay(PlainSweepDisplay):
    """The same above a table of what is running and a line of how far the sweep is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.since: dict[str, float] = {}
        self.live = Live(console=console.rich, refresh_per_second=4, transient=True)
        self.live.start()

    def update(self, status: Status, ended: tuple[str, float | str] | None) -> None:
        super().update(status, ended)
        self.since = {name: self.since.get(name, time.monotonic()) for name in status.running}
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("running", "done", "", "time"):
            table.add_column(column)
        for name, share in status.running.items():
            bar = ProgressBar(total=1, completed=share, width=20)
            table.add_row(Text(name), f"{100 * share:.0f} %", bar, age(time.monotonic() - self.since[name]))
        self.live.update(Group(table, Text(describe_status(status) + _left(status))))

    def close(self) -> None:
        self.live.stop()


def describe_status(status: Status) -> str:
    """`3 of 18 cells done, 2 running, 1 failed; best 98.89 %: lenet-...`."""
    parts = [f"{status.finished} of {counted(status.total, 'cell')} done", f"{len(status.running)} running"]
    parts += [f"{len(status.failed)} failed"] if status.failed else []
    parts += [f"{status.elsewhere} with another sweep"] if status.elsewhere else []
    best = f"; best {percent(status.best[1])}: {status.best[0]}" if status.best else ""
    return ", ".join(parts) + best


def _left(status: Status) -> str:
    return f"; about {age(status.seconds_left)} left" if status.seconds_left else ""


@contextmanager
def sweep_display(console: Console) -> Iterator[PlainSweepDisplay]:
    """The display that suits where the text goes; closed whatever happens."""
    display = LiveSweepDisplay(console) if console.is_terminal else PlainSweepDisplay(console)
    try:
        yield display
    finally:
        display.close()


def show_results(console: Console, document: dict[str, Any]) -> None:
    """The table of groups."""
    groups = document["groups"]
    settings = list(groups[0]["settings"]) if groups else []
    rows = [
        [
            group["method"],
            f"{group['bits']}/{group['act_bits']}",
            group["quantizer"],
            group["model"],
            *("-" if value is None else str(value) for value in group["settings"].values()),
            percent(group["accuracy_mean"]),
            "-" if group["accuracy_std"] is None else f"{100 * group['accuracy_std']:.2f}",
            str(group["n"]),
            f"{group['loss_mean']:.4f}",
            f"{group['weight_bytes']:,}",
            "-" if group["images_per_second"] is None else f"{group['images_per_second']:,.0f}",
        ]
        for group in groups
    ]
    columns = ["method", "W/A bits", "quantizer", "model", *settings, "test accuracy", "std", "seeds", "loss"]
    if rows:
        console.table([*columns, "weight bytes", "images/s"], rows, left=("quantizer", "model"))
