"""`qattrain report`: one HTML page about runs, a comparison or a sweep."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.report.console import Console
    from qattrain.report.findings import Finding

DEFAULT_PAGE = Path("report.html")


def report(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs, checkpoints, packed files, sweeps' cells, or folders of comparisons and sweeps.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = DEFAULT_PAGE,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Write one HTML page about runs, a comparison or a sweep.

    Results, learning curves, layers, errors, settings. Every network is evaluated on its test images; differences are
    relative to the first one. The page is a single file and works offline.

    \b
    Examples:
      qattrain report lenet-w4a4-lsq-mnist-s0
      qattrain report lenet-w32a32-float-mnist-s0 lenet-w2a2-lsq-mnist-s0
      qattrain report runs/compare-0e5feca1d0
    """
    from qattrain.report.console import Console
    from qattrain.report.sources import check_target, find_sources, write_page

    console = Console(json)
    subjects, sweeps = find_sources(what, runs_dir)
    check_target(out)
    bar = _Bar(console, len(subjects))
    findings: list[Finding] = []
    with bar:
        if subjects:
            from qattrain.report.findings import investigate

            findings = investigate(subjects, opt.data_folder(data_dir), bar.step)
        from qattrain.report.contents import page_contents
        from qattrain.report.page import count_charts, render

        contents = page_contents(findings, sweeps, opt.train_flags())
        bar.draw(count_charts(contents[2]))
        again = ["qattrain", "report", *what, "--out", str(out), "--runs-dir", str(runs_dir)]
        page = render(*contents, shlex.join(again), bar.drawn)
    for note in dict.fromkeys(note for finding in findings for note in finding.notes):
        console.notice(note)
    write_page(out, page)
    console.result(
        {
            "report": str(out),
            "bytes": len(page),
            "runs": [
                {
                    "name": finding.name,
                    "checkpoint": str(finding.subject.path),
                    "method": finding.kind,
                    "dataset": finding.facts.dataset,
                    "total": finding.evaluation.total,
                    "correct": finding.evaluation.correct,
                    "accuracy": finding.evaluation.accuracy,
                    "accuracy_ci95": list(finding.evaluation.interval),
                    "loss": finding.evaluation.loss,
                    "delta": finding.delta,
                    "mcnemar_p": finding.mcnemar_p,
                    "weight_bytes": finding.weight_bytes,
                }
                for finding in findings
            ],
        }
    )
    console.text(f"wrote {out} ({len(page):,} bytes); open it in a browser")


class _Bar:
    """How far a report is: on a live console a bar that vanishes at the end, elsewhere a line for each step."""

    def __init__(self, console: "Console", networks: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=40), MofNCompleteColumn()
        self.console = console
        self.bar = Progress(*columns, console=console.progress, transient=True, disable=not console.is_live)
        self.task = self.bar.add_task("reading", total=networks or None)
        self.begun = 0

    def __enter__(self) -> None:
        self.bar.start()

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def step(self, line: str) -> None:
        """One more network is going to be evaluated."""
        from qattrain.files.escapes import visible

        if not self.console.is_live:
            self.console.status(line)
        self.bar.update(self.task, description=visible(line), completed=self.begun)
        self.begun += 1

    def draw(self, charts: int) -> None:
        """All networks are evaluated; so many charts are going to be drawn."""
        if not self.console.is_live:
            self.console.status(f"drawing {charts} charts")
        self.bar.reset(self.task, description="drawing", total=charts)

    def drawn(self) -> None:
        """One chart is drawn."""
        self.bar.advance(self.task)
