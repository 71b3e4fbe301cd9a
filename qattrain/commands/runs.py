"""`qattrain runs`: a list of the runs."""

from dataclasses import asdict
from typing import Annotated

import typer

from qattrain.commands import options as opt

MOST_SHOWN = 50
MOST_EXPLAINED = 5


def runs(
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    all_: Annotated[bool, typer.Option("--all", help=f"Show all runs, not only the newest {MOST_SHOWN}.")] = False,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """List the runs, newest first. --json lists all of them.

    \b
    Example:
      qattrain runs --runs-dir runs
    """
    from qattrain.experiments.folder import SEARCH_FILE, list_sweeps
    from qattrain.report.console import UNKNOWN, Console, Table, age, percent
    from qattrain.runs.folder import newest_runs

    console, most = Console(json), None if all_ or json else MOST_SHOWN
    (found, total), sweeps = newest_runs(runs_dir, most), list_sweeps(runs_dir)
    searches, listed = list_sweeps(runs_dir, SEARCH_FILE), [asdict(run) for run in found]
    console.result({"runs_dir": str(runs_dir), "runs": listed, "sweeps": sweeps, "searches": searches, "total": total})
    for name in (*sweeps, *searches):
        cells = ["qattrain", "runs", "--runs-dir", str(runs_dir / name / "cells")]
        console.command(f"{'sweep' if name in sweeps else 'search'} {name}; list its runs with", cells)
    if not found and (sweeps or searches):
        return
    if not found:
        console.command(
            f"no runs in {runs_dir}; train one with", ["qattrain", "train", "--bits", "4", "--epochs", "10"]
        )
        return
    rows = [
        {
            "name": run.name,
            "test accuracy": "damaged" if run.damaged else percent(run.accuracy),
            "epochs": UNKNOWN if run.damaged or run.method == "ptq" else f"{run.epochs} of {run.epochs_asked}",
            "W/A bits": UNKNOWN if run.damaged else f"{run.bits}/{run.act_bits}",
            "method": run.method or UNKNOWN,
            "quantizer": UNKNOWN if run.method == "float" else run.quantizer or UNKNOWN,
            "dataset": run.dataset or UNKNOWN,
            "age": age(run.age_seconds),
        }
        for run in found
    ]
    console.table(Table.of("", rows, left=("dataset", "method", "quantizer"), strong=("test accuracy",)))
    damaged = [run.damaged for run in found if run.damaged]
    for line in damaged[:MOST_EXPLAINED]:
        console.text(line)
    if len(damaged) > MOST_EXPLAINED:
        console.text(f"{len(damaged) - MOST_EXPLAINED} more runs are damaged; --json says how")
    if total > len(found):
        console.text(f"the newest {len(found):,} of {total:,} runs; see all with --all")
