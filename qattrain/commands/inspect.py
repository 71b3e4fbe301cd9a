"""`qattrain inspect`: the grids of a checkpoint, layer by layer."""

from dataclasses import asdict

from qattrain.commands import options as opt


def inspect(
    checkpoint: opt.NetworkName,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Show shape, bits, scales, codes used and clipped share of every layer; of a packed file its integers.

    Activations are those of 1,000 test images, if the dataset is on disk.

    \b
    Example:
      qattrain inspect lenet-w4a4-lsq-mnist-s0
    """
    from qattrain.report.console import Console, percent

    console = Console(json)
    from qattrain.data import is_on_disk, load_dataset
    from qattrain.inspection import LayerReport, inspect_network
    from qattrain.networks import load_network
    from qattrain.runs import find_checkpoint

    path = find_checkpoint(checkpoint, runs_dir)
    network, folder = load_network(path), opt.data_folder(data_dir)
    name = network.facts.dataset
    images = load_dataset(name, folder).test.images if is_on_disk(name, folder) else None
    reports = inspect_network(network, images)
    if network.notice:
        console.notice(network.notice)
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
            "-" if report.accumulator_bound is None else f"{report.accumulator_bound:,}",
        ]

    console.text(f"{path}: {network.facts.name} on {name}")
    columns = ["layer", "of", "shape", "bits", "quantizer", "scale", "codes used", "clipped", "largest sum"]
    console.table(columns, [row(report) for report in reports], left=("of", "shape", "quantizer", "scale"))
    if images is None:
        console.text(f"activations were not observed: {name} is not in {folder}; name its folder with --data-dir")
