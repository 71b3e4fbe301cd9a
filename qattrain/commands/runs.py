"""`qattrain runs`: a list of the runs."""

from dataclasses import asdict

from qattrain.commands import options as opt


def runs(
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """List the runs, newest first.

    \b
    Example:
      qattrain runs --runs-dir runs
    """
    from qattrain.experiments.folder import list_sweeps
    from qattrain.report.console import UNKNOWN, Console, Table, age, percent
    from qattrain.runs.folder import list_runs

    console, found, sweeps = Console(json), list_runs(runs_dir), list_sweeps(runs_dir)
    console.result({"runs_dir": str(runs_dir), "runs": [asdict(run) for run in found], "sweeps": sweeps})
    for name in sweeps:
        cells = ["qattrain", "runs", "--runs-dir", str(runs_dir / name / "cells")]
        console.command(f"sweep {name}; list its runs with", cells)
    if not found and sweeps:
        return
    if not found:
        console.command(
            f"no runs in {runs_dir}; train one with", ["qattrain", "train", "--bits", "4", "--epochs", "10"]
        )
        return
    rows = [
        {
            "name": run.name,
            "test accuracy": percent(run.accuracy),
            "epochs": UNKNOWN if run.method == "ptq" else f"{run.epochs} of {run.epochs_asked}",
            "W/A bits": f"{run.bits}/{run.act_bits}",
            "method": run.method,
            "quantizer": UNKNOWN if run.method == "float" else run.quantizer,
            "dataset": run.dataset,
            "age": age(run.age_seconds),
        }
        for run in found
    ]
    console.table(Table.of("", rows, left=("dataset", "method", "quantizer"), strong=("test accuracy",)))
