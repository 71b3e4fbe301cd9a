"""`qattrain runs`: what has been trained."""

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
    from qattrain.report.console import Console, age, percent
    from qattrain.runs import list_runs

    console, found = Console(json), list_runs(runs_dir)
    console.result({"runs_dir": str(runs_dir), "runs": [asdict(run) for run in found]})
    if not found:
        console.text(f"no runs in {runs_dir}; make one with:  qattrain train --bits 4 --epochs 10")
        return
    rows = [
        [
            run.name,
            run.dataset,
            run.method,
            f"{run.bits}/{run.act_bits}",
            "-" if run.method == "float" else run.quantizer,
            "-" if run.method == "ptq" else f"{run.epochs} of {run.epochs_asked}",
            "-" if run.accuracy is None else percent(run.accuracy),
            age(run.age_seconds),
        ]
        for run in found
    ]
    console.table(
        ["name", "dataset", "method", "W/A bits", "quantizer", "epochs", "test accuracy", "age"],
        rows,
        left=("dataset", "method", "quantizer"),
    )
