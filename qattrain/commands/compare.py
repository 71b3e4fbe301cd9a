"""`qattrain compare`: methods side by side on the same test images."""

from dataclasses import asdict
from typing import Annotated

import typer

from qattrain.commands import options as opt


@opt.takes_settings
def compare(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD [vs METHOD]...", help="fp32, ptq, qat, or checkpoints and runs; 'vs' separates them."
        ),
    ],
    settings: opt.Settings,
    config: opt.ConfigFile = None,
    set_: opt.Set = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Compare training methods, checkpoints or runs on the same test images.

    fp32 and qat are trained from scratch with the same settings, ptq is made from that fp32; finished runs with the
    same configuration are reused. Differences and p-values are against the first.

    \b
    Examples:
      qattrain compare fp32 vs qat
      qattrain compare fp32 vs ptq vs qat --bits 3 --epochs 5
      qattrain compare lenet-w4a4-lsq-mnist-s0 vs other/last.pt
    """
    from qattrain.config.sources import build_config
    from qattrain.report.console import Console, p_value, percent

    console = Console(json)
    experiment_config = build_config(config, set_ or [], settings)
    # A quantizer asked for goes for both; left out, each method has its own default.
    asked = experiment_config.quant.quantizer if "quantizer" in experiment_config.quant.model_fields_set else "affine"

    from qattrain.experiments.comparison import Comparer, write_comparison
    from qattrain.report.display import training_display
    from qattrain.report.drawing import comparison_figure

    comparer = Comparer(
        experiment_config,
        asked,
        opt.data_folder(data_dir),
        runs_dir,
        console.text,
        lambda: training_display(console),
    )
    comparison = comparer.run(methods)
    if comparison.notice:
        console.notice(comparison.notice)
    document = {"baseline": comparison.rows[0].method, "rows": [asdict(row) for row in comparison.rows]}
    extra = {"dataset": comparison.dataset, "test_images": comparison.test_images, "notice": comparison.notice}
    folder = write_comparison(comparison, document | extra, comparison_figure(comparison), runs_dir)
    console.result(document)
    rows = [
        [
            row.method,
            f"{row.bits}/{row.act_bits}",
            percent(row.accuracy),
            f"{100 * row.accuracy_ci95[0]:.2f} to {100 * row.accuracy_ci95[1]:.2f}",
            "" if index == 0 else f"{100 * row.delta:+.2f}",
            "" if index == 0 else p_value(row.mcnemar_p),
            f"{row.loss:.4f}",
            f"{row.weight_bytes:,}",
            "-" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        ]
        for index, row in enumerate(comparison.rows)
    ]
    console.text(f"{comparison.test_images:,} test images of {comparison.dataset}; differences are to {rows[0][0]}")
    columns = ["method", "W/A bits", "test accuracy", "95 % interval", "difference", "McNemar p", "loss"]
    console.table([*columns, "weight bytes", "images/s"], rows)
    console.text(f"saved in {folder}: compare.json, compare.png")
