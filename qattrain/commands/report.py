"""`qattrain report`: one HTML page about runs, a comparison or a sweep."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from qattrain.commands import options as opt

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
    """Write one HTML page about runs, a comparison or a sweep: results, learning curves, layers, errors, settings.

    Every network is evaluated on its test images; differences are relative to the first one. The page is a single file
    and works offline.

    \b
    Examples:
      qattrain report lenet-w4a4-lsq-mnist-s0
      qattrain report lenet-w32a32-float-mnist-s0 lenet-w2a2-lsq-mnist-s0 --out two.html
      qattrain report runs/compare-0e5feca1d0
    """
    from qattrain.report.console import Console
    from qattrain.report.sources import find_sources

    console = Console(json)
    subjects, sweeps = find_sources(what, runs_dir)

    from qattrain.report.findings import investigate
    from qattrain.report.page import check_target, render, write_page
    from qattrain.report.sections import page_contents

    check_target(out)
    findings = investigate(subjects, opt.data_folder(data_dir), console.status)
    for note in dict.fromkeys(note for finding in findings for note in finding.notes):
        console.notice(note)
    again = ["qattrain", "report", *what, "--out", str(out), "--runs-dir", str(runs_dir)]
    page = render(*page_contents(findings, sweeps, opt.train_flags()), shlex.join(again))
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
