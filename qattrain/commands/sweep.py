"""`qattrain sweep`: a grid of runs, on this machine or on a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.experiments.folder import Plan, SweepFolder
    from qattrain.experiments.sweep import Crew
    from qattrain.report.console import Console


@opt.takes_axes
def sweep(
    settings: opt.Settings,
    context: typer.Context,
    ptq: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="Comma-separated bits: also quantize the float run of each point after training."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep's folder. [default: a hash of the settings]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="TOML file with a [sweep] table: lists of values by key."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; KEY=[A,B] for several values. Repeatable."),
    ] = None,
    workers: opt.Workers = None,
    scheduler: opt.Scheduler = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Other people's results to plot, CSV or TOML: name, weight_bytes, accuracy."),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; make the tables and pictures of what is finished.")
    ] = False,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Train every combination of values, each as a run. Run the same command again to resume.

    Values are comma-separated: --bits 1,2,4 --seeds 0,1. Finished cells are kept, stopped ones are resumed, failed ones
    are tried again. --threads applies to each worker.

    \b
    Examples:
      qattrain sweep --bits 1,2,4,8,32 --seeds 0,1 --epochs 5
      qattrain sweep --bits 1,2,4 --ptq 8,4,2 --quantizer lsq,affine --workers 4
      qattrain sweep --config sweep.toml --set train.lr=[0.02,0.05] --name rates
      qattrain sweep --config sweep.toml --scheduler tcp://127.0.0.1:8786
      qattrain sweep --name rates --report-only
    """
    from qattrain.config.sources import parse_values
    from qattrain.errors import ConfigError, TrainingError
    from qattrain.experiments.folder import find_sweep, list_sweeps, read_reference
    from qattrain.experiments.grid import PTQ_BITS, read_grid
    from qattrain.experiments.sweep import run_sweep
    from qattrain.files import stopping
    from qattrain.report.console import Console

    console = Console(json)
    settings |= {("name",): name} if name is not None else {}
    settings |= {PTQ_BITS: parse_values(ptq, "ptq")} if ptq is not None else {}
    points = read_reference(reference) if reference is not None else []
    if report_only and name is not None:
        _report(console, find_sweep(name, None, runs_dir), points, redraw=True)
        return
    if report_only and not (settings or set_ or config):
        known = ", ".join(list_sweeps(runs_dir)[:8]) or "none yet"
        raise ConfigError(f"--report-only: of which sweep? Give its --name; sweeps in {runs_dir}: {known}")
    grid = read_grid(config, set_ or [], settings)
    folder = find_sweep(grid.name, grid.asked(), runs_dir)
    if report_only:
        _report(console, folder, points, redraw=True)
        return

    def hire() -> "Crew":
        return opt.hired(folder, context, scheduler, workers, grid.threads, data_dir)

    from qattrain.report.display import sweep_display

    try:
        with sweep_display(console) as display:
            plan = run_sweep(grid, folder, runs_dir, hire, display.update, console.status)
    except (stopping.Stopped, KeyboardInterrupt) as error:
        number = getattr(error, "number", stopping.SIGNALS[0])
        if folder.read_plan() is not None:
            _report(console, folder, points)
        console.text(f"{stopping.stopped_words(number)} and saved; run the same command again to resume")
        raise typer.Exit(stopping.exit_code(number)) from None
    document = _report(console, folder, points, plan=plan)
    failed = [row for row in document["rows"] if row["status"] == "failed"]
    if failed:
        first = f"{failed[0]['run_dir']}: {failed[0]['error']}"
        raise TrainingError(
            f"{len(failed)} of {document['cells']} cells failed; run the same command again to retry them; {first}"
        )


def _report(
    console: "Console",
    folder: "SweepFolder",
    reference: list[dict[str, Any]],
    redraw: bool = False,
    plan: "Plan | None" = None,
) -> dict[str, Any]:
    """Write the tables and pictures of what is finished, and show them. plan: if it was read. Raises ConfigError."""
    from qattrain.errors import ConfigError, did_you_mean
    from qattrain.experiments.folder import PICTURES, is_written, list_sweeps, sweep_document, write_results
    from qattrain.report.display import show_results

    plan = plan or folder.read_plan()
    if plan is None:
        known = list_sweeps(folder.path.parent)
        hint, names = did_you_mean(folder.path.name, known), ", ".join(known[:8]) or "none yet"
        raise ConfigError(f"{folder.path} holds no sweep of this version; {hint}sweeps there: {names}; see --name")
    document = sweep_document(plan, folder, reference)
    drawn = PICTURES if document["groups"] else ()
    if redraw or not is_written(folder, document, drawn):
        pictures = {}
        if drawn:
            from qattrain.report.sweeps import sweep_pictures

            pictures = sweep_pictures(document)
        write_results(folder, document, pictures)
    if document["notice"]:
        console.notice(document["notice"])
    console.result(document)
    show_results(console, document)
    warned = [row for row in document["rows"] if row["warnings"]]
    if warned:
        first = f"{warned[0]['run_dir']}: {' '.join(warned[0]['warnings'])}"
        console.notice(f"{len(warned)} of {document['cells']} cells ended with a warning (see sweep.json). {first}")
    files = ", ".join(("sweep.json", "sweep.csv", *drawn))
    console.text(f"{document['finished']} of {document['cells']} cells finished; saved in {folder.path}: {files}")
    return document
