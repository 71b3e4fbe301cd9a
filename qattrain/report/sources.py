"""What a report is about, and the file it becomes.

Runs, packed files, comparisons and sweeps are recognised by their content, not their names; so is a page that may be
replaced. Nothing here imports torch or matplotlib: what cannot be read or written is refused at once.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.errors import CheckpointError, RecordError, ReportError, system_errors
from qattrain.experiments.folder import FIT_FILE, SEARCH_FILE
from qattrain.experiments.folder import JSON_FILE as SWEEP_FILE
from qattrain.experiments.kinds import FIT_KIND, SWEEP_KIND, check_fit
from qattrain.files import read_bounded, records, replace_files
from qattrain.integer.packed import FILE_NAME as PACKED_FILE
from qattrain.runs import folder as runs

GENERATOR = "qattrain"  # by this a page is recognised as ours


@dataclass(frozen=True)
class Subject:
    """One network to report on. test_images, accuracy: as recorded in a comparison; None if it is named directly."""

    name: str
    path: Path
    test_images: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep or a search, and its `sweep.json` or `fit.json` (`qattrain.experiments.kinds`)."""

    folder: Path
    document: dict[str, Any]

    @property
    def is_search(self) -> bool:
        return "finals" in self.document

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of a sweep; of a search its winner, if it has one."""
        if not self.is_search:
            return list(self.document["groups"])
        return [self.document] if self.document["accuracy_mean"] is not None else []

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [row for row in self.document["rows"] if row["status"] == "finished"]


def find_sources(texts: Sequence[str], runs_dir: Path) -> tuple[list[Subject], list[Sweep]]:
    """What `texts` refer to: files, folders, or names in `runs_dir`. Raises CheckpointError, ReportError."""
    found: list[Subject | Sweep] = []
    for text in texts:
        path = _locate(text, runs_dir)
        if path.suffix == ".json":
            found += _read_document(path)
        else:
            found.append(Subject(path.parent.name if path.name == runs.LAST_FILE else text, path))
    return [one for one in found if isinstance(one, Subject)], [one for one in found if isinstance(one, Sweep)]


def _locate(text: str, runs_dir: Path) -> Path:
    """The file meant by `text`: itself, or the one that shows what kind of folder it is."""
    known = (SWEEP_FILE, FIT_FILE, runs.COMPARISON_FILE, runs.LAST_FILE, PACKED_FILE)
    try:
        for place in (Path(text), runs_dir / text):
            if place.is_file():
                return place
            for name in known:
                if (place / name).is_file():
                    return place / name
            if (place / SEARCH_FILE).is_file():
                raise ReportError(f"{place} is a search that has not ended; run its 'qattrain fit' command again")
            if (place / runs.CELLS_FOLDER).is_dir():
                raise ReportError(
                    f"{place} is a sweep without {SWEEP_FILE}; make it with: qattrain sweep --report-only --name "
                    f"{shlex.quote(place.name)} --runs-dir {shlex.quote(str(place.parent))}"
                )
            if place.is_dir() and not (place / runs.CONFIG_FILE).exists():
                inside = ", ".join(run.name for run in runs.list_runs(place)[:4])
                raise ReportError(
                    f"{place} holds none of {', '.join(known)}: it is not a run, a comparison or a sweep; name one"
                    + (f" of its runs: {inside}" if inside else "")
                )
    except (OSError, ValueError):  # too long, or not a path: find_checkpoint says so as everywhere
        pass
    return runs.find_checkpoint(text, runs_dir)


def _read_document(path: Path) -> list[Subject] | list[Sweep]:
    """The networks of a comparison, or one sweep or search."""
    remedy = "name the folder of a comparison, a sweep or a search"
    data = read_bounded(path, SWEEP_KIND.most_bytes, ReportError, str(path), remedy)
    is_fit = path.name != runs.COMPARISON_FILE and b'"finals"' in data
    is_sweep = is_fit or (path.name != runs.COMPARISON_FILE and b'"groups"' in data)
    try:
        document = records.read(path, FIT_KIND if is_fit else SWEEP_KIND if is_sweep else runs.COMPARISON_KIND)
        if is_fit and document is not None:
            check_fit(path, document)
    except RecordError as error:
        raise ReportError(f"{error}; or name a folder that 'qattrain compare' or 'qattrain sweep' wrote") from None
    if document is None or not document["rows"]:
        raise ReportError(f"{path} has no rows; name the folder of a comparison or a sweep")
    if is_sweep:
        return [Sweep(path.parent, document)]
    total = document["test_images"]
    rows = [(row["method"], row["run_dir"], row["accuracy"]) for row in document["rows"]]
    return [Subject(name, _run_of(run_dir, path.parent.parent), total, accuracy) for name, run_dir, accuracy in rows]


def _run_of(run_dir: str, beside: Path) -> Path:
    """The checkpoint of a run of a comparison: beside it, where both may have been moved, or else where it was."""
    with suppress(OSError, ValueError):  # too long, or not a path
        for folder in (beside / Path(run_dir).name, Path(run_dir)):
            if (folder / runs.LAST_FILE).is_file():
                return folder / runs.LAST_FILE
    raise CheckpointError(f"the run {run_dir} of the comparison is neither there nor in {beside}; compare again")


def check_target(path: Path) -> None:
    """Raises ReportError if no page can be written there, or if a file there is not a page of this tool."""
    if path.is_dir():
        raise ReportError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ReportError(f"--out {path}: there is no folder {path.parent}; make it, or name another file")
    if not path.exists():
        return
    with system_errors(ReportError, f"--out {path}", "name another file"), path.open("rb") as file:
        start = file.read(2000)
    if f'name="generator" content="{GENERATOR} '.encode() not in start:
        raise ReportError(f"--out {path} exists and is not a qattrain report; name another file")


def write_page(path: Path, page: bytes) -> None:
    """Write the whole page or nothing. Raises ReportError."""
    with system_errors(ReportError, f"cannot write {path}", "name another file with --out"):
        replace_files(path.parent, {path.name: page})
