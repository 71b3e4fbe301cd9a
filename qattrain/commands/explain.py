"""`qattrain explain`: answers questions about quantization, each with a small experiment."""

import time
from pathlib import Path
from typing import Annotated

import typer

from qattrain.commands import options as opt

DEFAULT_OUT = Path("explain")


def explain(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC]",
            help=f"{opt.listed('explain/__init__.py', 'TOPICS')}. Leave it out to list their questions.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the picture (PNG and SVG).")] = DEFAULT_OUT,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="D", help="Dataset of the experiment: digits (scikit-learn's), mnist, ...; auto: MNIST if on disk."
        ),
    ] = "digits",
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", help="Only for scale: the n of its 2^n, 3 to 12.  [default: 4]")
    ] = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Answer a question about quantization with a small experiment.

    It takes at most half a minute, on one thread. The published numbers are of the default, scikit-learn's digits.

    \b
    Examples:
      qattrain explain
      qattrain explain ste
      qattrain explain scale --n 8
      qattrain explain ptq --dataset mnist --out pictures
    """
    from qattrain.report.console import Console, Table

    console = Console(json)
    start = time.perf_counter()
    from qattrain.errors import pick
    from qattrain.explain import TOPICS, Lab
    from qattrain.report.drawing import check_writable, write_pictures

    if n is not None:
        _check_n(topic, n)
    if topic is None:
        console.result({"topics": {name: known.question for name, known in TOPICS.items()}})
        rows = [[name, known.question] for name, known in TOPICS.items()]
        console.table(Table("", ["qattrain explain", "question"], rows, prose=("question",)))
        return
    chosen = pick(TOPICS, topic, "topic", also="; run 'qattrain explain' to see what each is about")
    check_writable(out)
    with console.busy(f"{topic}: measuring, up to half a minute"):
        lab = Lab(opt.data_folder(data_dir), dataset)
        found = chosen.explain(lab) if n is None else chosen.explain(lab, n)
        written = write_pictures(out, {topic: found.figure})
    seconds = time.perf_counter() - start
    console.result(
        {
            "topic": topic,
            "question": chosen.question,
            "numbers": found.numbers,
            "answer": found.answer,
            "look": found.look,
            "paper": found.paper,
            "pictures": [str(path) for path in written],
            "seconds": seconds,
        }
    )
    console.heading(f"{chosen.question}\n")
    for table in found.tables:
        console.heading(table.title)
        console.table(table)
    for paragraph in found.answer:
        console.paragraph(paragraph)
    console.paragraph("\n".join(f"- look at {line}" for line in found.look) + f"\n- paper: {found.paper}")
    paths = " and ".join(map(str, written))
    console.text(f"measured in {seconds:.0f} s; picture: {paths}", dim=paths)


def _check_n(topic: str | None, n: int) -> None:
    """Raises ConfigError unless the topic takes an n, and this one."""
    from qattrain.errors import ConfigError
    from qattrain.explain import TOPICS

    takers = {name: known.allowed_n for name, known in TOPICS.items() if known.allowed_n is not None}
    if topic not in takers:
        raise ConfigError(f"--n {n}: only for the topic {' or '.join(takers)}, which is about weights times 2^n")
    if n not in takers[topic]:
        low, high = takers[topic][0], takers[topic][-1]
        raise ConfigError(f"--n {n}: allowed: {low} to {high}; --n 8 means weights times 2^8 = 256")
