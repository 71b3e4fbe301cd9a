"""`qattrain fit`: the best network for a budget."""

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qattrain.commands import options as opt

if TYPE_CHECKING:
    from qattrain.experiments.candidates import Budget
    from qattrain.experiments.search import Search
    from qattrain.report.console import Console

MINUTES = 60.0


@opt.takes_open
def fit(
    settings: opt.Settings,
    context: typer.Context,
    most_bytes: Annotated[
        int | None, typer.Option("--bytes", min=1, metavar="N", help="At most N bytes of packed weights.")
    ] = None,
    total_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N bytes, biases, multipliers and shifts included.")
    ] = None,
    macs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N multiply-accumulates for one image.")
    ] = None,
    flash: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N bytes of flash on --core, code included.")
    ] = None,
    time_ms: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="T", help="At most T ms for one image on --core, with its fast multiplier."),
    ] = None,
    core: Annotated[
        str | None,
        typer.Option(help=f"For --flash and --time-ms, under QEMU: {opt.listed('export/c_devices.py', 'DEVICES')}."),
    ] = None,
    mhz: Annotated[float, typer.Option(min=0.001, max=100_000, help="Clock of --core, for --time-ms.")] = 48.0,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="M",
            help="About how long, the winner's trainings included; one batch at least. [default: 60]",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Try K candidates, however long that takes.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=3, max=1000, metavar="N", help="Candidates that are chosen and compared together.")
    ] = 12,
    sampler: Annotated[
        str, typer.Option(help=f"Who proposes: {opt.listed('experiments/candidates.py', 'SAMPLERS')}.")
    ] = "tpe",
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Also learn from this float checkpoint's outputs (distillation). Trained with the same --seed and "
            "--val-split, it has not seen the held-out images.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the search's folder. [default: a hash of what is asked for]")
    ] = None,
    config: opt.ConfigFile = None,
    set_: opt.Set = None,
    workers: opt.Workers = None,
    scheduler: opt.Scheduler = None,
    data_dir: opt.DataDir = None,
    runs_dir: opt.RunsDir = opt.DEFAULT_RUNS,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Find the best network for a budget: its widths and its bits.

    --model is a chain with ? for each number of outputs to be found, or a preset, of which all are open; without it,
    all presets are tried. Bits are searched, too, unless --bits, --act-bits or --layer-bits give them. Candidates come
    in batches. They are trained for an epoch or two; those among the best third of all so far go on for three times as
    many, and so on, up to --epochs or 27. They are ranked on held-out training images. Then the winner is trained
    with all settings given here on three seeds, and evaluated on the test images. Run the same command again to resume;
    more --minutes or --trials go on with the same search. Needs qattrain[search].

    \b
    Examples:
      qattrain fit --bytes 3200 --macs 60000 --minutes 30
      qattrain fit --bytes 4000 --model 'conv ? 5x5 bn, pool 2, dw 3x3 bn, fc'
      qattrain fit --flash 6000 --core cortex-m0 --time-ms 15 --trials 48
    """
    from qattrain.config import parse_config
    from qattrain.config.sources import collect_settings
    from qattrain.errors import ConfigError, optional_package, pick
    from qattrain.experiments.candidates import SAMPLERS, Budget
    from qattrain.experiments.search import Search
    from qattrain.experiments.search_folder import Asked, Progress, SearchFolder
    from qattrain.files import stopping
    from qattrain.report.console import Console

    console = Console(json)
    if minutes is not None and trials is not None:
        raise ConfigError(f"--minutes {minutes:g} with --trials {trials}: give only one of them")
    budget = Budget(most_bytes, total_bytes, macs, flash, time_ms, core, mhz if core is not None else Budget.mhz)
    _check(budget)
    pick(SAMPLERS, sampler, "--sampler")
    settings |= {("distill", "teacher"): teacher} if teacher is not None else {}
    recipe = collect_settings(config, set_ or [], settings)
    families = _families(recipe)
    if minutes is None and trials is None:
        minutes = MINUTES
    asked = Asked(recipe, families, budget, batch, sampler, minutes, trials)
    threads = parse_config(recipe, "fit").train.threads
    with optional_package("search", "fit"):
        import optuna  # noqa: F401
    folder = SearchFolder(runs_dir / (name or asked.name))
    folder.refuse_others(asked)

    from qattrain.report.display import sweep_display
    from qattrain.report.fit import fit_words

    progress, search = Progress(folder.cells), None
    console.status(f"{folder.path}: searching")
    try:
        with (
            closing(opt.hired(folder, context, scheduler, workers, threads, data_dir)) as crew,
            sweep_display(console, fit_words(progress)) as display,
        ):
            search = Search(asked, folder, crew, display.update, console.status, progress)
            _run(search, console)
    except (stopping.Stopped, KeyboardInterrupt) as error:
        number = getattr(error, "number", stopping.SIGNALS[0])
        if search is not None and search.best() is not None:
            _report(console, search)
        console.text(f"{stopping.stopped_words(number)} and saved; run the same command again to resume")
        raise typer.Exit(stopping.exit_code(number)) from None
    _report(console, search)


def _run(search: "Search", console: "Console") -> None:
    """Run it, and say what is going on if a signal stops it."""
    from qattrain.files.stopping import Stopped

    try:
        search.run()
    except (Stopped, KeyboardInterrupt):
        with suppress(OSError):  # the terminal may be gone
            console.status("stopping and saving what is running; press Ctrl-C again to stop at once")
        raise


def _families(recipe: dict[str, Any]) -> dict[str, str]:
    """The chains with open places that are asked for, by name. In `recipe` a chain without them takes their place.

    Raises ConfigError.
    """
    from qattrain.config import FLOAT_BITS
    from qattrain.config.chain import PRESETS, parse_open_chain
    from qattrain.errors import ConfigError
    from qattrain.experiments.candidates import preset_families

    model, quant = recipe.setdefault("model", {}), recipe.get("quant", {})
    if not isinstance(model, dict) or not isinstance(quant, dict):
        raise ConfigError("model and quant are tables of settings, for example --set model.dropout=0.1")
    if recipe.get("ptq") is not None:
        raise ConfigError("ptq: a search trains networks quantized; leave the table out")
    if model.get("widths") is not None:
        raise ConfigError(f"model.widths = {model['widths']}: widths are what is searched; leave it out")
    for key in ("bits", "act_bits"):
        if quant.get(key) == FLOAT_BITS:
            raise ConfigError(f"quant.{key} = {FLOAT_BITS}: only quantized networks are searched; allowed: 1 to 8")
    line = model.get("name")
    if not isinstance(line, str | None):
        raise ConfigError(f"model.name = {line!r}: allowed: one chain with ?, or a preset")
    families = preset_families() if line is None else {"chain" if line not in PRESETS else line: parse_open_chain(line)}
    model["name"] = next(iter(families.values())).chain.line
    return {name: family.line for name, family in families.items()}


def _check(budget: "Budget") -> None:
    """Raises ConfigError if it is none, or if a part of it is missing; ExportError if tools for its core are."""
    from qattrain.errors import ConfigError, ExportError, pick

    core, on_core = budget.core, {"--flash": budget.flash_bytes, "--time-ms": budget.milliseconds}
    given = [option for option, value in on_core.items() if value is not None]
    if (core is None) != (not given):
        what = f"--core {core} without --flash or --time-ms" if core is not None else f"{given[0]} without --core"
        raise ConfigError(f"{what}; give both, for example --flash 6000 --core cortex-m0")
    if not budget.limits:
        raise ConfigError("no budget; give at least one of --bytes, --total-bytes, --macs, --flash and --time-ms")
    if core is None:
        return
    from qattrain.export.c_devices import DEVICES, missing_tools

    device = pick(DEVICES, core, "--core")
    if device.missing:
        raise ExportError(missing_tools(device))


def _report(console: "Console", search: "Search") -> None:
    """Write fit.json and the pictures, and show what was found."""
    from qattrain.experiments.fit import fit_document, write_fit
    from qattrain.report import fit as shown
    from qattrain.report.tables import chain_lines

    document = fit_document(search)
    write_fit(search.folder.path, document, shown.front_pictures(document))
    console.notice(document["notice"])
    console.result(document)
    console.table(shown.trial_table(document, shown.MOST_ROWS))
    for line in chain_lines(row["model"] for row in shown.best_rows(document, shown.MOST_ROWS)):
        console.text(line)
    winner = shown.winner_of(document)
    if document["finals"]:
        console.table(shown.final_table(document))
    console.text(f"{shown.found_sentence(document)}: {winner['model']}, bits {shown.bits_words(winner)}")
    console.notice(shown.over_budget(document))
    if document["finals"]:
        first = search.folder.path / document["finals"][0]["run_dir"]
        console.command("to train it again", ["qattrain", "train", "--config", str(first / "config.json")])
    console.text(f"saved in {search.folder.path}: fit.json, front.png, front.svg")
