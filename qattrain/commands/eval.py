"""`qattrain eval`: accuracy of a checkpoint on the test images."""

from typing import Annotated

import typer

from qattrain.commands import options as opt


def evaluate(
    checkpoint: opt.NetworkName,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"What computes the logits: {opt.listed('evaluation/networks.py', 'ENGINES')}. "
            "[default: torch; packed: integer]"
        ),
    ] = None,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use only the first N test images.")] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Evaluate a network on all test images of its dataset.

    A quantized network is also run on integers only, and all differences are counted.

    \b
    Examples:
      qattrain eval runs/lenet-w4a4-lsq-mnist-s0/last.pt
      qattrain eval lenet-w4a4-lsq-mnist-s0 --engine integer
      qattrain eval lenet-w4a4-lsq-mnist-s0 --json
    """
    from qattrain.report.console import UNKNOWN, Console, Table, confidence, percent

    console = Console(json)
    from qattrain.runs.folder import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    with console.busy(f"evaluating {path}"):
        from qattrain.evaluation.checkpoints import evaluate_checkpoint
        from qattrain.evaluation.metrics import errors_by_class

        outcome = evaluate_checkpoint(path, opt.data_folder(data_dir), engine, limit_test, verify=True)
    result, facts, mismatches = outcome.evaluation, outcome.network.facts, outcome.mismatches
    by_class = errors_by_class(result.predictions, outcome.test.labels, len(facts.class_names))
    console.notice(outcome.network.notice)
    console.result(
        {
            "checkpoint": str(path),
            "dataset": facts.dataset,
            "engine": outcome.engine,
            "total": result.total,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "accuracy_ci95": list(result.interval),
            "loss": result.loss,
            "prediction_mismatches": mismatches.predictions if mismatches else None,
            "code_mismatches": mismatches.codes if mismatches else None,
            "logit_mismatches": mismatches.logits if mismatches else None,
            "classes": [
                {"class": name, "errors": errors, "images": images}
                for name, (errors, images) in zip(facts.class_names, by_class, strict=True)
            ],
        }
    )
    console.text(
        f"{path}: {result.correct:,} of {result.total:,} correct on {facts.dataset}: accuracy "
        f"{percent(result.accuracy)} ({confidence(result.interval)}), loss {result.loss:.4f}, engine {outcome.engine}",
        strong=percent(result.accuracy),
        dim=str(path),
    )
    if mismatches:
        codes = "" if mismatches.codes is None else f", {mismatches.codes} hidden codes"
        correct = int((mismatches.integer_predictions == outcome.test.labels).sum())
        console.text(
            f"the integer network: {correct:,} of {result.total:,} correct: accuracy "
            f"{percent(correct / result.total)}; engine {outcome.engine} differs from it in {mismatches.predictions} "
            f"predictions{codes}, and in the logits of {mismatches.logits} images"
        )
    rows = [
        [name, f"{errors:,}", f"{images:,}", percent(1 - errors / images) if images else UNKNOWN]
        for name, (errors, images) in zip(facts.class_names, by_class, strict=True)
    ]
    console.table(Table("", ["class", "errors", "images", "accuracy"], rows, strong=("accuracy",)))
