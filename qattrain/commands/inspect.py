"""`qattrain inspect`: the grids of a checkpoint, layer by layer."""

from dataclasses import asdict

from qattrain.commands import options as opt


def inspect(
    checkpoint: opt.CheckpointName,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Show shape, bits, scales, codes used and clipped share of every layer.

    Activations are those of 1,000 test images, if the dataset is on disk.

    \b
    Example:
      qattrain inspect lenet-w4a4-lsq-mnist-s0
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    from qattrain.checkpoint import load_checkpoint, restore_model
    from qattrain.data import is_on_disk, load_dataset
    from qattrain.inspection import LayerReport, inspect_model
    from qattrain.runs import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    loaded = load_checkpoint(path)
    model, name, folder = restore_model(loaded, str(path)), loaded.config.data.dataset, opt.data_folder(data_dir)
    images = load_dataset(name, folder).test.images if is_on_disk(name, folder) else None
    reports = inspect_model(model, images)
    if loaded.notice:
        console.notice(loaded.notice)
    console.result({"checkpoint": str(path), "dataset": name, "layers": [asdict(report) for report in reports]})

    def row(report: LayerReport) -> list[str]:
        scales = "-"
        if report.scale_min is not None:
            same = report.scale_min == report.scale_max
            scales = f"{report.scale_min:.3g}" + ("" if same else f" .. {report.scale_max:.3g}")
        return [
            report.layer,
            report.kind,
            "x".join(map(str, report.shape)) or "-",
            str(report.bits),
            report.quantizer or "float",
            scales,
            "-" if report.codes_used is None else f"{report.codes_used} of {report.levels}",
            "-" if report.clipped_share is None else percent(report.clipped_share),
        ]

    console.text(f"{path}: {loaded.config.model.name} on {name}")
    columns = ["layer", "of", "shape", "bits", "quantizer", "scale", "codes used", "clipped"]
    console.table(columns, [row(report) for report in reports], left=("of", "shape", "quantizer", "scale"))
    if images is None:
        console.text(f"activations were not observed: {name} is not in {folder}; name its folder with --data-dir")
