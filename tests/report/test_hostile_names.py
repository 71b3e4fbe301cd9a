"""Names from a stranger's file or folder: the terminal, the page and exported files show them and do nothing else."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import forge
from integer_models import SMALL, random_model
from PIL import Image
from rich.progress import Progress, TextColumn
from rich.text import Text

from qattrain.export import EXPORTERS
from qattrain.integer import ModelFacts
from qattrain.report.console import Console, Printer
from qattrain.report.drawing import heading, plotted_name
from qattrain.report.page import Chart, Charts, Commands, Section, Tables, render
from qattrain.report.page import Text as Paragraph
from qattrain.training import run as experiment

CLEAR, SHOWN = "\x1b[2J\x1b[H\nerror: forged \u202etxt.exe", r"\x1b[2J\x1b[H\nerror: forged \u202etxt.exe"
MARKUP = "[bold red]x[/] [link=http://example.org]y[/link]"
NAMES = [CLEAR, MARKUP, "*/ int x; /*", "=1+1", "</title><script>", "\udce9", *"6789"]
CONTROL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any) -> Path:
    """A checkpoint with such class names and such a notice."""
    folder = tmp_path_factory.mktemp("hostile")
    settings = {"model.widths": [2, 2, 4], "quant.bits": 4, "data.limit_train": 64, "train.epochs": 1}
    path = experiment.train(tiny_config(settings), folder, folder, silent_display()).run_dir / "last.pt"

    def change(fields: dict[str, Any]) -> None:
        fields["class_names"] = NAMES
        fields["notice"] = CLEAR
        fields["history"][0]["warnings"] = [CLEAR]

    return forge(folder / "bad" / "last.pt", path, change)


def test_the_console_shows_names_and_obeys_none(hostile: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    Image.fromarray(np.tri(28, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    done = main("predict", hostile, tmp_path / "a.png")
    assert done.rc == 0, done
    assert not CONTROL.search(done.stdout + done.stderr)
    assert not any(line.startswith("error") for line in (done.stdout + done.stderr).splitlines())
    assert r"\x1b[2J" in done.stderr  # the notice
    found = json.loads(main("predict", hostile, tmp_path / "a.png", "--json").stdout)
    assert {name for [entry] in [found["images"]] for name, _ in entry["top"]} <= {*NAMES, 6, 7, 8, 9}


def test_an_error_is_one_line_whatever_it_names(main: Callable[..., Any], hostile: Path) -> None:
    for command in (("eval", CLEAR), ("eval", hostile, "--engine", CLEAR), ("report", hostile, "--out", CLEAR)):
        done = main(*command)
        assert (done.rc in (1, 2), done.stdout) == (True, "")
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
        assert r"\x1b[2J" in done.stderr.splitlines()[-1]
        assert not CONTROL.search(done.stderr)


def test_lines_tables_and_bars_show_names(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=False)
    for name in (CLEAR, MARKUP):
        console.text(f"a {name}", strong=name)
        console.status(name)
        console.notice(name)
        console.command("again", ["eval", name])
        console.heading(name.replace("\n", " "))
    written = capsys.readouterr()
    assert not CONTROL.search(written.out + written.err)
    assert written.out.count(SHOWN) == 2
    assert MARKUP in written.out
    assert MARKUP in written.err


def test_bars_obey_no_name() -> None:
    stream = io.StringIO()
    printer = Printer(file=stream, width=200)
    with Progress(TextColumn("{task.description}", markup=False), console=printer) as bar:
        bar.add_task(f"\x1b[2J{MARKUP}")
    printer.print(Text(CLEAR))
    assert not CONTROL.search(stream.getvalue())
    assert "[bold red]x[/] [link=" in stream.getvalue()


def test_a_terminal_still_gets_our_own_colours() -> None:
    stream = io.StringIO()
    Printer(file=stream, force_terminal=True, color_system="standard", width=80).print(Text("a\x1b[2J", "bold"))
    assert stream.getvalue() == "\x1b[1ma\\x1b[2J\x1b[0m\n"


def test_the_page_and_its_charts_show_names() -> None:
    from matplotlib.figure import Figure

    from qattrain.report.console import Table

    name = f"{CLEAR} $\\frac$ <b>"
    figure = Figure()
    figure.subplots().plot([1, 2], [1, 2], label=plotted_name(name))
    figure.suptitle(heading(name))
    table = Table(name, [name], [[name]])
    chart = Chart(figure, name, name, name, table)
    blocks = [Paragraph(name), table, Tables([table]), Charts([chart]), Commands(name, [[name]])]
    page = render(name, name, [Section("one", name, blocks)], name).decode()
    own = page[page.index("<body>") : page.rindex("<script>")]
    assert not CONTROL.search(page)
    assert own.count(r"\x1b[2J") >= 12
    assert "<b>" not in own


def test_a_run_with_such_a_name_is_reported(tmp_path: Path, tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    run_dir = tiny({"model.widths": [2, 2, 4], "quant.bits": 2, "train.epochs": 1}).run_dir
    run_dir = run_dir.rename(run_dir.parent / f"a$x$\x1b[2J\n{MARKUP[:8]}\udce9")
    page = tmp_path / "page.html"
    for command in (("report", run_dir, "--out", page), ("inspect", run_dir, "--plots", tmp_path / "plots")):
        done = main(*command)
        assert done.rc == 0, done
        assert not CONTROL.search(done.stdout + done.stderr)
    assert not CONTROL.search(page.read_text(encoding="utf-8"))


FACTS = ModelFacts("lenet-nano", "folder:a\n```\n# b <i>|\x1b[2J\udce9", tuple(NAMES), 0.5)


@pytest.mark.parametrize("to", ["packed", "onnx", "c"])
def test_exported_files_hold_names_as_text(to: str) -> None:
    model = random_model(widths=SMALL)
    files = EXPORTERS[to].write(model, FACTS, (EXPORTERS[to].layouts or ("",))[0])
    with EXPORTERS[to].run(files) as run:
        images = np.zeros((2, *model.input_shape), np.uint8)
        assert (run(images) == model.run(images)).all()
        assert run(images[:0]).shape == (0, model.classes)  # a batch of none
    for name, content in files.items():
        if not name.endswith((".c", ".h", ".md")):
            continue
        text = content.decode()
        assert not CONTROL.search(text)
        assert not any(line.startswith(("error", "```\n", "# b")) for line in text.splitlines())
        assert "int x" not in text or re.search(r'"\*/ int x; /\*"|\d: \\\*/ int x; /\\\*', text)


def test_the_exported_c_promises_what_is_proven() -> None:
    files = EXPORTERS["c"].write(random_model(widths=SMALL), FACTS, "packed")
    said = " ".join(files["model.c"].decode().replace("\n * ", " ").split())
    assert "no rounding is left over" not in said
    assert "Every number equals that of the integer network it was written from" in said
