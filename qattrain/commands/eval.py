"""`qattrain eval`: accuracy of a checkpoint on the test images."""

from typing import Annotated

import typer

from qattrain.commands import options as opt


def evaluate(
    checkpoint: opt.CheckpointName,
    engine: Annotated[str, typer.Option(help="What computes the logits: torch or integer.")] = "torch",
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use only the first N test images.")] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Evaluate a checkpoint on all test images of its dataset.

    A quantized network is also run as integers, and what differs is counted.

    \b
    Examples:
      qattrain eval runs/lenet-w4a4-lsq-mnist-s0/last.pt
      qattrain eval lenet-w4a4-lsq-mnist-s0 --engine integer
      qattrain eval lenet-w4a4-lsq-mnist-s0 --json
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    from qattrain.engines import ENGINES
    from qattrain.errors import ConfigError
    from qattrain.evaluation import errors_by_class
    from qattrain.predicting import evaluate_checkpoint
    from qattrain.runs import find_checkpoint

    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine!r}: allowed: {', '.join(ENGINES)}")
    path = find_checkpoint(checkpoint, runs_dir)
    outcome = evaluate_checkpoint(path, opt.data_folder(data_dir), engine, limit_test, verify=True)
    result, low_high = outcome.evaluation, list(outcome.evaluation.interval)
    if outcome.checkpoint.notice:
        console.notice(outcome.checkpoint.notice)
    console.result(
        {
            "checkpoint": str(path),
            "dataset": outcome.checkpoint.config.data.dataset,
            "engine": engine,
            "total": result.total,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "accuracy_ci95": low_high,
            "loss": result.loss,
            "prediction_mismatches": outcome.mismatches.predictions if outcome.mismatches else None,
            "code_mismatches": outcome.mismatches.codes if outcome.mismatches else None,
            "logit_mismatches": outcome.mismatches.logits if outcome.mismatches else None,
        }
    )
    console.text(
        f"{path}: {result.correct:,} of {result.total:,} correct on {outcome.checkpoint.config.data.dataset}: accuracy "
        f"{percent(result.accuracy)} (95 % interval {percent(low_high[0])} to {percent(low_high[1])}), loss "
        f"{result.loss:.4f}, engine {engine}"
    )
    if outcome.mismatches:
        codes = "" if outcome.mismatches.codes is None else f", {outcome.mismatches.codes} hidden codes"
        console.text(
            f"against the integer network: {outcome.mismatches.predictions} predictions{codes}, "
            f"{outcome.mismatches.logits} images with another logit"
        )
    by_class = errors_by_class(result.predictions, outcome.labels, len(outcome.checkpoint.class_names))
    rows = [
        [name, str(errors), f"{images:,}", percent(1 - errors / images) if images else "-"]
        for name, (errors, images) in zip(outcome.checkpoint.class_names, by_class, strict=True)
    ]
    console.table(["class", "errors", "images", "accuracy"], rows)
