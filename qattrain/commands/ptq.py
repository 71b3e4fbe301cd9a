"""`qattrain ptq`: quantize a float checkpoint after training."""

from typing import Annotated

import typer

from qattrain.commands import options as opt


def ptq(
    checkpoint: opt.CheckpointName,
    bits: Annotated[int, typer.Option(help="Weight bits, 1 to 8.", show_default=False)],
    act_bits: Annotated[int | None, typer.Option(help="Activation bits, 1 to 8 or 32. [default: as --bits]")] = None,
    quantizer: Annotated[str, typer.Option(help=f"{opt.QUANTIZERS}.")] = "affine",
    calibration: Annotated[
        str, typer.Option(help=f"How ranges are found: {opt.listed('training/ptq.py', 'CALIBRATIONS')}.")
    ] = "minmax",
    calibration_images: Annotated[int, typer.Option(help="Training images to find activation ranges on.")] = 1024,
    name: Annotated[str | None, typer.Option(help="Name of the new run. [default: built from the settings]")] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Quantize a float network after training, as a new run.

    \b
    Examples:
      qattrain ptq lenet-w32a32-float-mnist-s0 --bits 8
      qattrain ptq float.pt --bits 4 --quantizer lsq --calibration mse
    """
    from qattrain.config import PtqConfig, QuantConfig, validated
    from qattrain.report.console import Console, percent

    console = Console(json)
    quant = validated(QuantConfig, {"quantizer": quantizer, "bits": bits, "act_bits": act_bits}, "ptq")
    settings = validated(PtqConfig, {"calibration": calibration, "images": calibration_images}, "ptq")

    from qattrain.runs.folder import find_checkpoint

    path, data = find_checkpoint(checkpoint, runs_dir), opt.data_folder(data_dir)
    with console.busy(f"quantizing {path}"):
        from qattrain.evaluation.networks import why_unusable
        from qattrain.training.ptq import quantize_after_training

        result, float_accuracy = quantize_after_training(path, quant, settings, name, data, runs_dir)
    console.notice(result.checkpoint.notice)
    for warning in result.checkpoint.warnings:
        console.notice(warning)
    console.result(result.summary())
    accuracy = result.checkpoint.history[-1]["test_accuracy"]
    console.text(
        f"{result.run_dir.name}: test accuracy {percent(accuracy)}, "
        f"{100 * (accuracy - float_accuracy):+.2f} points compared with the float network's {percent(float_accuracy)}",
        strong=percent(accuracy),
    )
    console.saved(result.run_dir, why_unusable(result.checkpoint))
