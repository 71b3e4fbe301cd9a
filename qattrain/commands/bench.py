"""`qattrain bench`: speed on this machine, next to others'."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from qattrain.commands import options as opt


def bench(
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Measurements per contender. [default: 7; with --quick 3]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and repeats, so rougher numbers.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Only these contenders, comma-separated; * matches anything, as in 'lsq-*'."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of training. [default: torch's choice]")
    ] = None,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Measure speed on this machine, next to PyTorch and others.

    Training, and inference: ours, plain PyTorch, Brevitas and ONNX Runtime. All contenders take turns, round after
    round; the first round is discarded, and medians are shown. No dataset is needed. Takes about four minutes on two
    cores.

    \b
    Examples:
      qattrain bench
      qattrain bench --quick
      qattrain bench --only 'plain,float,lsq-*' --json
    """
    from qattrain.report.console import Console, Table

    console = Console(json)
    with console.busy("loading torch"):
        from qattrain.benchmark.inference import INFERENCE
        from qattrain.benchmark.rounds import FULL, QUICK, run_benchmark
        from qattrain.benchmark.training import TRAINING

    effort = QUICK if quick else FULL
    if repeats is not None:
        effort = replace(effort, repeats=repeats)
    names = [name.strip() for name in only.split(",")] if only is not None else []
    result = run_benchmark({"training": TRAINING, "inference": INFERENCE}, effort, names, threads, console.status)
    console.result(result)
    for group, title in (("training", "training"), ("inference", "inference, one thread, one call per batch")):
        if rows := result[group]:
            console.text(title)
            console.table(Table.of(title, [_cells(row) for row in rows], keys=2, prose=("what it is",)))
    machine, busy = result["environment"], result["other_processes_cores"]
    console.text(
        f"medians of {result['repeats']}; {machine['cpu']}, {machine['cpu_cores']} cores, "
        f"{result['threads']['training']} threads in training; our training in {result['precision']}; "
        f"torch {machine['versions']['torch']}"
    )
    if busy["median"] is None:
        console.text("this system does not say how busy other processes were")
    elif result["busy"]:
        console.notice(
            f"Other processes used {busy['median']:.1f} cores meanwhile (median of the rounds): the speeds are too "
            "low and the ratios are doubtful."
        )
    else:
        worst = f", in the worst one {busy['worst']:.1f}" if busy["worst"] > busy["allowed"] else ""
        console.text(
            f"in most rounds the machine was otherwise idle: other processes used {busy['median']:.2f} cores{worst}"
        )


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A contender at one batch size: column -> text."""
    from qattrain.report.console import UNKNOWN, number

    what = row["what"] + (f" ({row['detail']})" if row["detail"] else "")
    return {
        "contender": row["name"],
        "batch": str(row["batch"]),
        "images/s": number(row["images_per_second"], ",.0f"),
        "lowest to highest": f"{min(row['repeats']):,.0f} to {max(row['repeats']):,.0f}" if row["repeats"] else UNKNOWN,
        **{f"x {name}": number(ratio, ".2f") for name, ratio in row["ratios"].items()},
        "what it is": row["missing"] or what,
    }
