"""`qattrain compare`: methods side by side on the same test images."""

from dataclasses import asdict
from typing import Annotated

import typer

from qattrain.commands import options as opt


@opt.takes_settings
def compare(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="METHOD [vs METHOD]...", help="fp32, ptq, qat or any CKPT, separated by 'vs'."),
    ],
    settings: opt.Settings,
    config: opt.ConfigFile = None,
    set_: opt.Set = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Compare methods or runs on the same test images.

    fp32 and qat are trained from scratch with the same settings; ptq is made from the fp32 run. Finished runs with the
    same configuration are reused. Differences and p-values are relative to the first method.

    \b
    Examples:
      qattrain compare fp32 vs qat
      qattrain compare fp32 vs ptq vs qat --bits 3 --epochs 5
      qattrain compare lenet-w4a4-lsq-mnist-s0 vs other/last.pt
    """
    from qattrain.config.sources import build_config
    from qattrain.report.console import Console, Table, number

    console = Console(json)
    experiment_config = build_config(config, set_ or [], settings)
    # --quantizer applies to both methods; without it, each has its own default.
    asked = experiment_config.quant.quantizer if "quantizer" in experiment_config.quant.model_fields_set else "affine"

    with console.busy("loading torch"):
        from qattrain.experiments.comparison import Comparer, write_comparison
        from qattrain.report.display import training_display
        from qattrain.report.drawing import comparison_figure
        from qattrain.report.tables import result_row

    comparer = Comparer(
        experiment_config, asked, opt.data_folder(data_dir), runs_dir, console.status, lambda: training_display(console)
    )
    comparison = comparer.run(methods)
    console.notice(comparison.notice)
    document = {"baseline": comparison.rows[0].method, "rows": [asdict(row) for row in comparison.rows]}
    extra = {"dataset": comparison.dataset, "test_images": comparison.test_images, "notice": comparison.notice}
    folder = write_comparison(comparison, document | extra, comparison_figure(comparison), runs_dir)
    console.result(document)
    rows = [
        {
            "method": row.method,
            "W/A bits": f"{row.bits}/{row.act_bits}",
            **result_row(
                row.accuracy,
                row.accuracy_ci95,
                (row.delta, row.mcnemar_p) if index > 0 else None,
                row.loss,
                row.weight_bytes,
            ),
            "images/s": number(row.images_per_second, ",.0f"),
        }
        for index, row in enumerate(comparison.rows)
    ]
    first = comparison.rows[0].method
    console.text(f"{comparison.test_images:,} test images of {comparison.dataset}; differences are relative to {first}")
    console.table(Table.of("", rows, keys=2, strong=("test accuracy",)))
    console.text(f"saved in {folder}: compare.json, compare.png", dim=str(folder))
