"""`qattrain train`: train a network, or resume a run."""

from contextlib import nullcontext
from typing import Annotated

import typer

from qattrain.commands import options as opt


@opt.takes_settings
def train(
    settings: opt.Settings,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder. [default: built from the settings]")
    ] = None,
    config: opt.ConfigFile = None,
    set_: opt.Set = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT", help="Start from this checkpoint's weights and, if its grids are the same, its scales."
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="CKPT", help="Also learn from this float checkpoint's outputs (distillation).")
    ] = None,
    stop_after: Annotated[int | None, typer.Option(min=1, help="Stop after epoch N; --resume continues.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a stopped or killed run exactly where it was.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write <run>/tensorboard; needs qattrain[tensorboard].")
    ] = False,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Train a network; evaluate and save it after every epoch.

    The network is a preset or a chain of layers: conv D KxK [stride S] [pad P] [groups G] [bn], dw KxK [stride S]
    [pad P] [bn], pool K, avgpool, fc D [bn], and a bare fc at the end.

    \b
    Examples:
      qattrain train --bits 4 --epochs 10
      qattrain train --bits 32                               the float baseline
      qattrain train --bits 2 --layer-bits conv1=8,act2=4    some layers differ
      qattrain train --model 'conv 8 5x5 stride 2 bn, dw 3x3 bn, avgpool, fc'
      qattrain train --bits 2 --teacher lenet-w32a32-float-mnist-s0
      qattrain train --quantizer pow2 --set quant.n=4        fixed point
      qattrain train --resume lenet-w4a4-lsq-mnist-s0        go on with it
      qattrain train --bits 4 --init lenet-w4a4-lsq-mnist-s0 --epochs 5 --lr 0.005
    """
    from qattrain.config.sources import assigned_settings, build_config
    from qattrain.files import stopping
    from qattrain.report.console import Console

    own = {("name",): name, ("train", "init"): init, ("distill", "teacher"): teacher}
    settings |= {path: value for path, value in own.items() if value is not None}
    console = Console(json)
    # Wrong values fail before torch is loaded, that is, at once.
    experiment_config = build_config(config, set_ or [], settings) if resume is None else None
    data = opt.data_folder(data_dir)

    from qattrain.report.display import tensorboard_display, training_display

    with (
        training_display(console) as shown,
        tensorboard_display(shown) if tensorboard else nullcontext(shown) as display,
    ):
        from qattrain.training import run as experiment  # takes seconds: the display says so

        if experiment_config is not None:
            result = experiment.train(experiment_config, data, runs_dir, display, stop_after, console.status)
        else:
            assert resume is not None
            asked = assigned_settings(config, set_ or [], settings)
            result = experiment.resume(resume, data, runs_dir, display, asked, stop_after)
    if not result.interrupted:
        console.result(result.summary())
    places = ["--data-dir", str(data_dir)] if data_dir else []
    places += ["--runs-dir", str(runs_dir)] if runs_dir != opt.DEFAULT_RUNS else []
    trained, settled = result.checkpoint, result.checkpoint.config
    if trained.finished:
        shown.farewell(result)
        if resume is not None and not shown.test_images and settled.ptq is None:  # nothing was trained
            further = experiment.further_command(result.run_dir, settled)
            console.command("to take it further as a new run", [*further, *places])
        return
    resume_line = ["qattrain", "train", "--resume", result.run_dir.name]
    resume_line += ["--tensorboard"] if tensorboard else []
    console.command(f"{stopping.stopped_words(result.signal)} and saved; to continue", [*resume_line, *places])
    if result.interrupted:
        raise typer.Exit(stopping.exit_code(result.signal or stopping.SIGNALS[0]))
