"""`qattrain playground`: one page to draw on, with networks side by side."""

from pathlib import Path
from typing import Annotated

import typer

from qattrain.commands import options as opt

DEFAULT_PAGE = Path("play.html")


def playground(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]",
            help="1 to 10 runs, checkpoints, packed files or sweeps' cells. [default: lenet-small at 1 to 8 bits]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = DEFAULT_PAGE,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that qattrain did not write.")] = False,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Write a page to draw digits on, and watch networks read them.

    Every network runs in the page, with its own integers, side by side with the others. The page is a single file and
    works offline. Before it is written, its script is run on all test images and on 256 noise images, in Node.js or a
    browser: if a single logit or hidden code differs from the integer network's, nothing is written. Without RUN it
    shows networks that come with qattrain, and is compared on drawings.

    \b
    Examples:
      qattrain playground --open
      qattrain playground lenet-w8a8-lsq-mnist-s0 lenet-w1a1-lsq-mnist-s0
      qattrain playground export/model.safetensors --out mine.html
    """
    from qattrain.report.console import Console, counted

    console = Console(json)
    from qattrain.export.page_export import NOT_EXECUTED, build_page, check_page, describe_bits, write_html

    check_page(out, force)
    with console.busy("reading networks"):
        if networks:
            from qattrain.evaluation.playground import check_count, read_networks
            from qattrain.runs.folder import find_checkpoint

            check_count(networks)
            paths = [find_checkpoint(name, runs_dir) for name in networks]
            found = read_networks(paths, opt.data_folder(data_dir))
            for notice in found.notices:
                console.notice(notice)
            entries, pictures, title = found.entries, found.pictures, found.title
            is_handwriting = found.is_handwriting
        else:
            from qattrain.export.page_shipped import TITLE, shipped_entries, shipped_pictures

            entries, pictures, title, is_handwriting = shipped_entries(), shipped_pictures(), TITLE, True
    from qattrain.export.javascript import find_machine

    with (
        console.busy(f"comparing {counted(len(entries), 'network')} with the page's script"),
        find_machine() as machine,
    ):
        content, verified = build_page(entries, pictures, title, is_handwriting, machine)
        executed_by = machine.name if machine else None
    write_html(out, content)
    if not executed_by:
        console.notice(NOT_EXECUTED)
    console.result(
        {
            "page": str(out),
            "bytes": len(content),
            "networks": [
                {"name": entry.label, "method": entry.method, **describe_bits(entry.model)} for entry in entries
            ],
            "executed_by": executed_by,
            "verified_images": verified,
            "mismatches": 0 if verified else None,
        }
    )
    console.text(f"wrote {out} ({len(content):,} bytes, {counted(len(entries), 'network')}); open it in a browser")
    if executed_by:
        console.text(
            f"verified in {executed_by}: {verified:,} images for each network; 0 logits and 0 hidden codes differ"
        )
    if open_browser:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            console.status(f"no browser could be started; open {out} in one")
