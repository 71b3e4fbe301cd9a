"""`qattrain export`: the integer network as files, verified before they are written."""

from pathlib import Path
from typing import Annotated

import typer

from qattrain.commands import options as opt


def export(
    checkpoint: opt.NetworkName,
    to: Annotated[
        str, typer.Option(help=f"What to write: {opt.listed('export/__init__.py', 'EXPORTERS')}.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to. [default: <run>/export]")] = None,
    layout: Annotated[str | None, typer.Option(help="For c: packed (smallest) or int8 (fastest).")] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="NAME", help="For c: name of its symbols and files. [default: qattrain]")
    ] = None,
    board: Annotated[
        bool, typer.Option("--board", help="For c: add examples for boards, in folders of their own.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="For c: run it on microcontrollers' cores under QEMU, for README.md."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write even if the folder holds other files.")] = False,
    verify_images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Verify on the first N test images only. [default: all]")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write the files without verifying them.")] = False,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Write the integers as a packed file, ONNX, C or a page.

    The files are model.safetensors, model.onnx, model.html, or model.c, model.h, main.c and README.md. With
    --prefix NAME the C files are NAME.c and NAME.h, and their symbols begin with NAME_: two networks fit one program.
    Before anything is written, the files are run on all test images and on 256 noise images. If a single logit differs
    from the integer network's, nothing is written.

    \b
    Examples:
      qattrain export lenet-w4a4-lsq-mnist-s0 --to packed
      qattrain export lenet-w4a4-lsq-mnist-s0 --to onnx --out shipped
      qattrain export lenet-w4a4-lsq-mnist-s0 --to page
      qattrain export lenet-w4a4-lsq-mnist-s0 --to c --layout int8
      qattrain export lenet-w4a4-lsq-mnist-s0 --to c --prefix digits --out fw
      qattrain export lenet-w4a4-lsq-mnist-s0 --to c --board --measure
    """
    from qattrain.report.console import Console

    console = Console(json)
    from qattrain.errors import ConfigError
    from qattrain.runs.folder import find_checkpoint

    if no_verify and verify_images is not None:
        raise ConfigError(f"--verify-images {verify_images} with --no-verify: give only one of them")
    path = find_checkpoint(checkpoint, runs_dir)
    with console.busy(f"exporting {path}"):
        from qattrain.evaluation.checkpoints import export_network
        from qattrain.export.base import NOISE_IMAGES

        network, exported = export_network(
            path,
            to,
            opt.data_folder(data_dir),
            layout=layout,
            prefix=prefix,
            folder=out,
            force=force,
            verify=not no_verify,
            verify_images=verify_images,
            board=board,
            measure=measure,
        )
    console.notice(network.notice)
    console.notice(exported.notice)
    measured = exported.measurement
    for line in measured.notices if measured else ():
        console.status(f"not measured: {line}")
    console.result(
        {
            "files": [str(exported.folder / name) for name in exported.sizes],
            "bytes": exported.sizes,
            "verified_images": exported.verified_images,
            "logit_mismatches": 0 if exported.verified_images else None,
            **({"devices": measured.devices} if measured else {}),
        }
    )
    for name, size in exported.sizes.items():
        console.text(f"{exported.folder / name}: {size:,} bytes")
    if exported.verified_images:
        console.text(
            f"verified against the integer network: {exported.verified_images:,} images, "
            f"{NOISE_IMAGES} of them noise; 0 logits differ"
        )
    else:
        why = "--no-verify" if no_verify else "see above"
        console.text(f"NOT VERIFIED ({why}): the files were not compared with the integer network")
    for row in measured.devices if measured else ():
        console.text(
            f"{row['core']}: {row['instructions']:,.0f} instructions per image, {row['flash_bytes']:,} bytes of flash, "
            f"{row['ram_bytes']:,} of RAM, {row['stack_bytes']:,} of stack"
        )
