"""The folder of a search: what was asked for, every candidate and what became of it. No torch in here.

search.json              all of `State`
cells/ claims/ failures/ as of a sweep (`qattrain.experiments.folder`): every candidate is a run like any other
fit.json front.png .svg  the result (`qattrain.experiments.kinds`)
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import qattrain
from qattrain.errors import ConfigError, reason
from qattrain.experiments.candidates import Budget, Candidate
from qattrain.experiments.folder import (
    HASH_DIGITS,
    PLAN_FILE,
    SEARCH_FILE,
    Cell,
    SweepFolder,
    recorded_cell,
)
from qattrain.experiments.kinds import SEARCH_KIND
from qattrain.experiments.ledger import Ledger
from qattrain.files import records
from qattrain.runs import folder as runs

BATCH = 12
RANKED = ("passed over", "complete")
STATES = ("open", "failed", *RANKED)
HASHED = ("recipe", "families", "budget", "batch", "sampler")


@dataclass(frozen=True)
class Asked:
    """What is searched for. recipe: nested settings of the winner's trainings; candidates get fewer epochs of it.

    families: chains with open places, by name. batch: candidates that are compared with each other first. sampler: a
    key of SAMPLERS. minutes: of everything, the winner's trainings included; trials: how many candidates; None: no
    limit.
    """

    recipe: dict[str, Any]
    families: dict[str, str]
    budget: Budget
    batch: int = BATCH
    sampler: str = "tpe"
    minutes: float | None = None
    trials: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes it this search and no other: how long it may take does not."""
        train = {key: value for key, value in self.recipe.get("train", {}).items() if key != "threads"}
        values = asdict(replace(self, recipe=self.recipe | {"name": None, "train": train}))
        found: dict[str, Any] = json.loads(json.dumps({key: values[key] for key in HASHED}))
        return found

    @property
    def name(self) -> str:
        """Of its folder, unless another is given."""
        text = json.dumps(self.identity(), sort_keys=True)
        return f"fit-{hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]}"


@dataclass
class Trial:
    """A candidate, the batch it came in, its run, and its losses on the held-out images by epochs.

    state: one of STATES; "open" while it is trained or may go on. failed: why it did.
    """

    batch: int
    candidate: Candidate
    cell: Cell
    losses: dict[int, float] = field(default_factory=dict)
    state: str = "open"
    failed: str | None = None

    @property
    def loss(self) -> float:
        """After the last epoch it was ranked at."""
        return self.losses[max(self.losses)]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        losses = {str(epochs): loss for epochs, loss in self.losses.items()}
        found = {"batch": self.batch, "candidate": self.candidate.record(), "cell": asdict(self.cell)}
        return found | {"losses": losses, "state": self.state, "failed": self.failed}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Trial":
        """From such a record. Raises ConfigError, ValueError, KeyError, TypeError."""
        losses = {int(epochs): loss for epochs, loss in record["losses"].items()}
        candidate, cell = Candidate.of(record["candidate"]), recorded_cell(record["cell"], {None}, [])
        if record["state"] not in STATES or (record["state"] in RANKED and not losses):
            raise ValueError(f"the candidate {cell.name} is {record['state']!r} with {len(losses)} losses")
        return cls(record["batch"], candidate, cell, losses, record["state"], record["failed"])


@dataclass
class State:
    """All that a search keeps, in its file. settled: what `auto` became, for all trainings; notice: about the data.

    finals: the winner's trainings. open: the cells that are being trained, with the times of their earlier failures,
    which do not count.
    """

    seconds: float = 0.0
    settled: dict[str, dict[str, str]] = field(default_factory=dict)
    notice: str | None = None
    trials: list[Trial] = field(default_factory=list)
    finals: list[Cell] = field(default_factory=list)
    open: list[Cell] = field(default_factory=list)
    old_failures: dict[str, int | None] = field(default_factory=dict)


class SearchFolder(SweepFolder):
    """The folder of a search."""

    def refuse_others(self, asked: Asked) -> None:
        """Raises ConfigError if a run, a sweep or another search has the name, RecordError if the file is damaged."""
        for file, what in ((runs.CONFIG_FILE, "a run"), (PLAN_FILE, "a sweep"), (runs.COMPARISON_FILE, "a comparison")):
            if (self.path / file).exists():
                raise ConfigError(f"{self.path} is {what}, not a search; choose another --name")
        found = records.read(self.path / SEARCH_FILE, SEARCH_KIND)
        if found is None:
            return
        mine = asked.identity()
        other = [key for key in HASHED if found["asked"].get(key) != mine[key]]
        if other:
            raise ConfigError(
                f"{self.path} holds another search: {' and '.join(other)} differ from what is asked for now; choose "
                "another --name"
            )
        if found["version"] != qattrain.__version__:
            raise ConfigError(
                f"{self.path} was begun by qattrain {found['version']}, this is {qattrain.__version__}, which may "
                "propose other candidates; choose another --name"
            )

    def read_state(self) -> State:
        """What is there. Raises RecordError."""
        path = self.path / SEARCH_FILE
        found = records.read(path, SEARCH_KIND)
        if found is None:
            return State()
        try:
            trials = [Trial.of(one) for one in found["trials"]]
            finals, opened = ([recorded_cell(one, {None}, []) for one in found[key]] for key in ("finals", "open"))
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise records.damaged(path, SEARCH_KIND, reason(error)) from None
        about = found["seconds"], found["settled"], found["notice"]
        return State(*about, trials, finals, opened, found["old_failures"])

    def write_state(self, asked: Asked, state: State) -> None:
        """Raises TrainingError."""
        content = {
            "asked": asked.identity(),
            "version": qattrain.__version__,
            "seconds": state.seconds,
            "settled": state.settled,
            "notice": state.notice,
            "open": [asdict(cell) for cell in state.open],
            "old_failures": state.old_failures,
            "finals": [asdict(cell) for cell in state.finals],
            "trials": [trial.record() for trial in state.trials],
        }
        records.write(self.path / SEARCH_FILE, SEARCH_KIND, content)

    def stamp(self) -> tuple[int, int] | None:
        """Another one whenever the file was written anew."""
        with contextlib.suppress(OSError):
            about = (self.path / SEARCH_FILE).stat()
            return about.st_mtime_ns, about.st_ino
        return None


class SearchLedger(Ledger):
    """A ledger for workers that stay: in them it follows the search's file from one rung to the next."""

    grows = True

    def __init__(self, folder: SearchFolder, cells: list[Cell], old_failures: dict[str, int | None]) -> None:
        self.process, self.stamp = os.getpid(), folder.stamp()
        super().__init__(folder, cells, old_failures)

    def ended(self) -> Iterator[tuple[str, float | str]]:
        """As of any ledger; in a worker it first takes over what was opened since."""
        assert isinstance(self.folder, SearchFolder)
        stamp = self.folder.stamp()
        if self.process != os.getpid() and stamp is not None and stamp != self.stamp:
            state = self.folder.read_state()
            fresh = SearchLedger(self.folder, state.open, state.old_failures)
            vars(self).update(vars(fresh) | {"process": self.process, "stamp": stamp})  # the stamp before it was read
        return super().ended()


@dataclass
class Progress:
    """What a display says of a search. folder: of all cells. stage: what is being trained. cells: those, by name.

    best: the smallest loss so far, of a candidate that was trained to the end. ends_at: when the minutes are over, by
    time.monotonic.
    """

    folder: Path
    stage: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    best: float | None = None
    ends_at: float | None = None
