"""Sections as one self-contained HTML page: no network, no script, everything a user wrote is escaped."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

import qattrain
from qattrain.errors import ReportError
from qattrain.files import replace_files
from qattrain.report.blocks import Section

GENERATOR = "qattrain"  # how a page says who wrote it
TEMPLATES = Path(__file__).parent / "templates"


def render(title: str, lead: str, sections: Sequence[Section], command: str) -> bytes:
    """The page, UTF-8. command: the one that writes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = shlex.quote
    page = environment.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        command=command,
        generator=f"{GENERATOR} {qattrain.__version__}",
        style=Markup(TEMPLATES.joinpath("page.css").read_text(encoding="utf-8")),
    )
    return page.strip().encode("utf-8", "surrogateescape") + b"\n"


def check_target(path: Path) -> None:
    """Raises ReportError where no page can be written, or where what would be lost is no page of this tool."""
    if path.is_dir():
        raise ReportError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ReportError(f"--out {path}: there is no folder {path.parent}; make it, or name another file")
    try:
        with path.open("rb") as file:
            if f'name="generator" content="{GENERATOR} '.encode() not in file.read(2000):
                raise ReportError(f"--out {path} exists and is no report of qattrain's; name another file")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ReportError(f"--out {path}: {error.strerror}; name another file") from None


def write_page(path: Path, page: bytes) -> None:
    """Write the page whole, or not at all. Raises ReportError."""
    try:
        replace_files(path.parent, {path.name: page})
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror or error}; name another file with --out") from None
