"""`qattrain bench`: speed on this machine, next to others'."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.report.console import Console

DEFAULT_MHZ = 48.0


def bench(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT]...",
            help="With --device: checkpoints or packed files, run folders, runs' names, or sweeps' cells.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Measurements per contender. [default: 7; with --quick 3]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and repeats, so rougher numbers.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Only these contenders, comma-separated; * matches anything, as in 'lsq-*'."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of training. [default: torch's choice]")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help=f"Measure these networks on a core under QEMU: {opt.listed('export/c_devices.py', 'DEVICES')}."
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="With --device: packed (smallest) or int8 (fastest). [default: each]")
    ] = None,
    mhz: Annotated[
        float | None,
        typer.Option(min=0.001, max=100_000, help="With --device: clock of the stated milliseconds. [default: 48]"),
    ] = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Measure speed on this machine, next to PyTorch and others.

    Training, and inference: ours, plain PyTorch, Brevitas and ONNX Runtime. All contenders take turns, round after
    round; the first round is discarded, and medians are shown. No dataset is needed. Takes about four minutes on two
    cores.

    With --device it measures trained networks, exported to C, on a microcontroller's core: on 100 test images every
    logit is compared with the integer network's. QEMU counts instructions, not cycles: cycles are a range from the
    core's manual. Needs a cross-compiler and QEMU (Debian: gcc-arm-none-eabi and qemu-system-arm for the Arm cores,
    gcc-riscv64-unknown-elf and qemu-system-misc for rv32).

    \b
    Examples:
      qattrain bench
      qattrain bench --quick
      qattrain bench --only 'plain,float,lsq-*' --json
      qattrain bench --device cortex-m0 lenet-nano-w4a4-lsq-mnist-s0
    """
    from qattrain.errors import ConfigError
    from qattrain.report.console import Console, Table

    console = Console(json)
    of_devices = {"CKPT": checkpoints, "--layout": layout, "--mhz": mhz}
    of_speed = {"--repeats": repeats, "--quick": quick, "--only": only, "--threads": threads}
    for option, value in (of_devices if device is None else of_speed).items():
        if value:
            shown = " ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
            alone = "allowed only with --device; leave it out"
            rule = alone if device is None else "not allowed with --device; leave one of them out"
            raise ConfigError(f"{option}{'' if value is True else f' {shown}'}: {rule}")
    if device is not None:
        _bench_device(console, checkpoints or [], device, layout, mhz or DEFAULT_MHZ, data_dir, runs_dir)
        return
    with console.busy("loading torch"):
        from qattrain.benchmark.inference import INFERENCE
        from qattrain.benchmark.rounds import FULL, QUICK, run_benchmark
        from qattrain.benchmark.training import TRAINING

    effort = QUICK if quick else FULL
    if repeats is not None:
        effort = replace(effort, repeats=repeats)
    names = [name.strip() for name in only.split(",")] if only is not None else []
    result = run_benchmark({"training": TRAINING, "inference": INFERENCE}, effort, names, threads, console.status)
    console.result(result)
    for group, title in (("training", "training"), ("inference", "inference, one thread, one call per batch")):
        if rows := result[group]:
            console.text(title)
            console.table(Table.of(title, [_cells(row) for row in rows], keys=2, prose=("what it is",)))
    machine, busy = result["environment"], result["other_processes_cores"]
    console.text(
        f"medians of {result['repeats']}; {machine['cpu']}, {machine['cpu_cores']} cores, "
        f"{result['threads']['training']} threads in training; our training in {result['precision']}; "
        f"torch {machine['versions']['torch']}"
    )
    if busy["median"] is None:
        console.text("this system does not say how busy other processes were")
    elif result["busy"]:
        console.notice(
            f"Other processes used {busy['median']:.1f} cores meanwhile (median of the rounds): the speeds are too "
            "low and the ratios are doubtful."
        )
    else:
        worst = f", in the worst one {busy['worst']:.1f}" if busy["worst"] > busy["allowed"] else ""
        console.text(
            f"in most rounds the machine was otherwise idle: other processes used {busy['median']:.2f} cores{worst}"
        )


def _bench_device(
    console: "Console",
    checkpoints: list[str],
    device: str,
    layout: str | None,
    mhz: float,
    data_dir: Path | None,
    runs_dir: Path,
) -> None:
    from qattrain.errors import ConfigError, pick
    from qattrain.export.c_devices import DEVICES
    from qattrain.export.c_layers import LAYOUTS
    from qattrain.report.console import Table
    from qattrain.runs.folder import find_checkpoint

    pick(DEVICES, device, "--device")
    if layout is not None:
        pick(dict.fromkeys(LAYOUTS), layout, "--layout")
    if not checkpoints:
        raise ConfigError(f"--device {device}: no network; name one or more checkpoints, or packed files")
    paths = [find_checkpoint(checkpoint, runs_dir) for checkpoint in checkpoints]
    with console.busy("loading torch"):
        from qattrain.benchmark.devices import bench_devices
    result = bench_devices(paths, device, layout, opt.data_folder(data_dir), mhz, console.status)
    console.result(result)
    console.text(f"{result['core']} under QEMU ({result['machine']}): instructions and cycles per image; bytes")
    rows = [_device_cells(row, result["mhz"]) for row in result["networks"]]
    console.table(Table.of(result["core"], rows, keys=2, left=("layout",)))
    images = {row["images"] for row in result["networks"]}
    console.text(f"{' or '.join(map(str, sorted(images)))} test images; 0 logits differ from the integer network's")
    console.text(
        "QEMU counts instructions. Cycles are those that the core's manual gives for them, without wait states:"
    )
    console.text(result["manual"])


def _device_cells(row: dict[str, Any], mhz: float) -> dict[str, str]:
    """A network in one layout: column -> text."""
    return {
        "network": row["network"],
        "layout": row["layout"],
        "instr.": f"{row['instructions']:,.0f}",
        "per MAC": f"{row['instructions_per_mac']:.2f}",
        "million cycles": f"{row['cycles_low'] / 1e6:.3g}-{row['cycles_high'] / 1e6:.3g}",
        f"ms at {mhz:g} MHz": f"{row['milliseconds_low']:.3g}-{row['milliseconds_high']:.3g}",
        "flash": f"{row['flash_bytes']:,}",
        "RAM": f"{row['ram_bytes']:,}",
        "stack": f"{row['stack_bytes']:,}",
    }


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A contender at one batch size: column -> text."""
    from qattrain.report.console import UNKNOWN, number

    what = row["what"] + (f" ({row['detail']})" if row["detail"] else "")
    return {
        "contender": row["name"],
        "batch": str(row["batch"]),
        "images/s": number(row["images_per_second"], ",.0f"),
        "lowest to highest": f"{min(row['repeats']):,.0f} to {max(row['repeats']):,.0f}" if row["repeats"] else UNKNOWN,
        **{f"x {name}": number(ratio, ".2f") for name, ratio in row["ratios"].items()},
        "what it is": row["missing"] or what,
    }
