"""`qattrain explain`: questions about quantization, answered by a small experiment each."""

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
            help="ste, scale, ptq, affine, conv, autograd, integer or latent; left out, they are listed.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the picture, PNG and SVG.")] = DEFAULT_OUT,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="D", help="What to experiment on. auto: MNIST if it is on disk, else the embedded digits."
        ),
    ] = "auto",
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 read by cli.main
) -> None:
    """Run a small experiment, and answer with what it measured: half a minute at most, on one thread.

    \b
    Examples:
      qattrain explain
      qattrain explain ste
      qattrain explain scale --dataset digits --out pictures
    """
    from qattrain.report.console import Console, Table

    console = Console(json)
    start = time.perf_counter()
    from qattrain.errors import ConfigError
    from qattrain.explain import TOPICS, Lab
    from qattrain.report.drawing import check_writable, write_pictures

    if topic is None:
        console.result({"topics": {name: known.question for name, known in TOPICS.items()}})
        rows = [[name, known.question] for name, known in TOPICS.items()]
        console.table(Table("", ["qattrain explain", "question"], rows, left=("question",)))
        return
    if topic not in TOPICS:
        raise ConfigError(f"topic {topic!r}: allowed: {', '.join(TOPICS)}; 'qattrain explain' says what each is about")
    check_writable(out)
    lab = Lab(opt.data_folder(data_dir), dataset)
    found = TOPICS[topic].explain(lab)
    written = write_pictures(out, {topic: found.figure})
    seconds = time.perf_counter() - start
    console.result(
        {
            "topic": topic,
            "question": TOPICS[topic].question,
            "numbers": found.numbers,
            "answer": found.answer,
            "look": found.look,
            "paper": found.paper,
            "pictures": [str(path) for path in written],
            "seconds": seconds,
        }
    )
    console.heading(TOPICS[topic].question)
    for table in found.tables:
        console.heading(f"\n{table.title}")
        console.table(table)
    for paragraph in found.answer:
        console.paragraph(paragraph)
    console.paragraph("\n".join(f"- look at {line}" for line in found.look) + f"\n- paper: {found.paper}")
    console.text(f"measured in {seconds:.0f} s; picture: {' and '.join(map(str, written))}")
