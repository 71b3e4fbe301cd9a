"""A search for the best network within budgets. No torch in here, but what a candidate costs needs it.

Candidates come in batches. Each batch is trained for a few epochs, the best third of all that came so far is trained on
from where it stopped, and the best third of those to the end: successive halving, with the promotion rule of ASHA
applied batch by batch. Then the best of all is trained by the full recipe on three seeds. What is ranked is the loss on
held-out training images; nothing is chosen on test images.

A search keeps nothing but its folder, and each of its steps follows from what is there. So it goes on after a kill as
if nothing had happened: the same candidates, the same runs, the same winner; only how many batches fit into a time
depends on the machine.

    search.json              what was asked for, all candidates, and which cells are being trained now
    cells/ claims/ failures/ as of a sweep (`qattrain.experiments.folder`): every candidate is a run like any other
    fit.json front.png .svg  the result (`qattrain.experiments.kinds`)

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization"; Li et al.
2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA).
"""

import contextlib
import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import qattrain
from qattrain.config import parse_config
from qattrain.config.chain import PRESETS, parse_open_chain
from qattrain.config.sources import merge
from qattrain.errors import ConfigError, TrainingError
from qattrain.experiments.candidates import Budget, Candidate, Costs, Measure, Space, Tried, propose
from qattrain.experiments.folder import (
    HASH_DIGITS,
    PLAN_FILE,
    SEARCH_FILE,
    Cell,
    SweepFolder,
    recorded_cell,
)
from qattrain.experiments.grid import Point
from qattrain.experiments.kinds import SEARCH_KIND
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.sweep import Crew, Images, Status, Sweep
from qattrain.files import records
from qattrain.runs import folder as runs
from qattrain.runs.creation import written_by_us

MOST_EPOCHS = 9  # of a candidate
KEPT = 3  # one in so many goes on, for so many times the epochs
BATCH = 12
HELD_OUT, LEAST_SHARE = 5000, 6  # training images; at most one in so many
SEEDS = 3  # of the winner
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
    """A candidate, the batch it came in, its run, and its losses on the held-out images by epochs. failed: why."""

    batch: int
    candidate: Candidate
    cell: Cell
    losses: dict[int, float] = field(default_factory=dict)
    failed: str | None = None
    is_complete: bool = False

    @property
    def loss(self) -> float:
        """After the last epoch it was ranked at."""
        return self.losses[max(self.losses)]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"batch": self.batch, "candidate": self.candidate.record(), "cell": asdict(self.cell)}


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

    def read_trials(self) -> tuple[list[Trial], float]:
        """All candidates so far, and the seconds spent on them. Raises RecordError."""
        path = self.path / SEARCH_FILE
        found = records.read(path, SEARCH_KIND)
        if found is None:
            return [], 0.0
        try:
            trials = [
                Trial(one["batch"], Candidate.of(one["candidate"]), _cell(one["cell"])) for one in found["trials"]
            ]
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise records.damaged(path, SEARCH_KIND, str(error)) from None
        return trials, found["seconds"]

    def open_cells(self) -> list[Cell]:
        """The cells that are being trained now. Raises RecordError."""
        found = records.read(self.path / SEARCH_FILE, SEARCH_KIND)
        return [_cell(one) for one in found["open"]] if found is not None else []

    def stamp(self) -> tuple[int, int] | None:
        """Another one whenever the file was written anew."""
        with contextlib.suppress(OSError):
            about = (self.path / SEARCH_FILE).stat()
            return about.st_mtime_ns, about.st_ino
        return None


def _cell(record: dict[str, Any]) -> Cell:
    return recorded_cell(record, {None}, [])


class SearchLedger(Ledger):
    """A ledger for workers that stay: it follows the search's file from one rung to the next."""

    grows = True

    def __init__(self, folder: SearchFolder, cells: list[Cell]) -> None:
        self.stamp = folder.stamp()
        super().__init__(folder, cells)

    def ended(self) -> Iterator[tuple[str, float | str]]:
        """As of any ledger; first it takes over what was opened since."""
        assert isinstance(self.folder, SearchFolder)
        stamp = self.folder.stamp()
        if stamp != self.stamp:
            vars(self).update(vars(SearchLedger(self.folder, self.folder.open_cells())))
            self.stamp = stamp  # of what was there before it was read
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


class Search:
    """One search. crew: its workers. watch: called as that of a sweep. say: called with a line.

    measure: see `Space`. progress: kept up to date for a display.
    """

    def __init__(
        self,
        asked: Asked,
        folder: SearchFolder,
        crew: Crew,
        watch: Callable[[Status, tuple[str, float | str] | None], None],
        say: Callable[[str], None],
        progress: Progress,
        measure: Callable[[Images], Measure] | None = None,
    ) -> None:
        self.asked, self.folder, self.crew, self.say, self.progress = asked, folder, crew, say, progress
        self.watch, self.recorded, self.seconds_before = watch, *folder.read_trials()
        recipe = parse_config(asked.recipe, "fit")
        images = crew.describe(recipe.data.model_dump(mode="json"))
        self.images = images
        self.epochs = recipe.train.epochs
        self.rungs = rungs(min(MOST_EPOCHS, self.epochs))
        self.held_out = recipe.data.val_split or min(HELD_OUT, images.train // LEAST_SHARE)
        if not 0 < self.held_out < images.train:
            raise ConfigError(
                f"data.val_split = {self.held_out}: of {images.train:,} training images at least one must be held out, "
                "and one left; choose another --val-split, or a larger --limit-train"
            )
        # A preset by its name, because its own widths are where a search begins.
        families = {name: parse_open_chain(name if name in PRESETS else line) for name, line in asked.families.items()}
        on_core = measure(images) if measure is not None else None
        self.space = Space(families, recipe.quant, asked.budget, images.shape, images.classes, on_core)
        self.trials: list[Trial] = []
        self.started = time.monotonic()
        if asked.minutes is not None:
            progress.ends_at = self.started + 60 * asked.minutes - self.seconds_before
        self.finals: list[Cell] = []
        self.open: list[Cell] = []

    @property
    def seconds(self) -> float:
        """Spent on it, by processes before this one, too."""
        return self.seconds_before + time.monotonic() - self.started

    def run(self) -> Trial:
        """Search, and train the winner. Raises TrainingError if no candidate could be trained."""
        self.folder.make()
        with written_by_us(self.folder.path):
            for number in itertools.count():
                batch = self._batch(number)
                if not batch:
                    break
                self._halve(number, batch)
                if self.best() is None:  # at least a third of those that did not fail is trained to the end
                    raise TrainingError(f"no candidate could be trained: {batch[0].failed}")
            best = self.best()
            assert best is not None, self.folder
            self._train_winner(best)
        return best

    def best(self) -> Trial | None:
        """The candidate with the smallest loss of those that were trained to the end."""
        return min((trial for trial in self.trials if trial.is_complete), key=lambda trial: trial.loss, default=None)

    def _batch(self, number: int) -> list[Trial]:
        """The candidates of this batch, recorded ones or new ones; [] if the search is over."""
        recorded = [trial for trial in self.recorded if trial.batch == number]
        if recorded:
            return recorded
        left = self.asked.batch
        if self.asked.trials is not None:
            left = min(left, self.asked.trials - len(self.trials))
        if left <= 0 or not self._is_time_left(number):
            return []
        known = {trial.candidate.identity for trial in self.trials}
        self.say(f"batch {number + 1}: choosing {left} candidates")
        first = self.space.first()[:left] if number == 0 else []
        tried = [Tried(t.candidate, t.losses, t.is_complete) for t in self.trials if t.losses]
        new = propose(self.space, tried, self.asked.sampler, _seed(self.asked.recipe, number))
        candidates = []
        for one in itertools.chain(first, new):
            if one.identity not in known:
                known.add(one.identity)
                candidates.append(one)
            if len(candidates) == left:
                break
        if not candidates:
            self.say("nothing new is proposed any more")
            return []
        cells = self.crew.settle([self._point(one) for one in candidates])
        by_identity = {_identity(cell.config): cell for cell in cells}
        return [Trial(number, one, by_identity[one.identity]) for one in candidates]

    def _point(self, candidate: Candidate) -> Point:
        """What a candidate is trained with: the recipe, but for its epochs, and images held out."""
        values = _merged(self.asked.recipe, candidate.settings())
        merge(values, ["train", "epochs"], self.rungs[-1], "")
        merge(values, ["data", "val_split"], self.held_out, "")
        return Point(candidate.model, parse_config(values | {"name": None}, "fit").model_dump(mode="json"))

    def _is_time_left(self, number: int) -> bool:
        """Whether another batch and the winner's trainings fit into the minutes; the first always does."""
        if self.asked.minutes is None or number == 0:
            return True
        left = 60 * self.asked.minutes - self.seconds - self._seconds_of_winner()
        return left > self.seconds / number

    def _seconds_of_winner(self) -> float:
        """How long its trainings take, from the epochs of the best candidate so far; 0 if there is none."""
        best = self.best()
        if best is None:
            return 0.0
        history = runs.read_metrics(self.folder.cells / best.cell.name)
        rounds = math.ceil(SEEDS / max(1, self.crew.size))
        return statistics.fmean(record["epoch_seconds"] for record in history) * self.epochs * rounds

    def _halve(self, number: int, batch: list[Trial]) -> None:
        """Train the batch for the epochs of the first rung, then the best of it further."""
        self.trials += batch
        going = batch
        for rung in self.rungs:
            epochs = f"{rung} epoch{'s' if rung > 1 else ''}"
            stage = f"batch {number + 1}, {len(going)} candidate{'s' if len(going) > 1 else ''} to {epochs}"
            failed = self._train([replace(trial.cell, until=rung) for trial in going], stage)
            for trial in going:
                trial.failed = failed.get(trial.cell.name)
                if trial.failed is None:
                    trial.losses[rung] = self._loss(trial, rung)
            going = [trial for trial in going if trial.failed is None]
            if rung == self.rungs[-1]:
                for trial in going:
                    trial.is_complete = True
            else:
                ranked = sorted(trial.losses[rung] for trial in self.trials if rung in trial.losses)
                going = [trial for trial in going if trial.losses[rung] <= ranked[math.ceil(len(ranked) / KEPT) - 1]]
            self._note_best()
            if not going:
                break

    def _loss(self, trial: Trial, rung: int) -> float:
        """On the held-out images, after that many epochs."""
        record = runs.read_metrics(self.folder.cells / trial.cell.name)[rung - 1]
        return float(record["val_loss"])

    def _note_best(self) -> None:
        best = self.best()
        if best is not None:
            self.progress.best = best.loss

    def _train(self, cells: list[Cell], stage: str) -> dict[str, str]:
        """Train these cells until they have ended; the error lines of those that failed, by name."""
        self.open, self.progress.stage = cells, stage
        self.progress.cells = {cell.name: cell for cell in cells}
        self._write()
        sweep = Sweep(self.folder, cells, self.watch, SearchLedger)  # type: ignore[arg-type]
        if sweep.ledger.open:
            self.say(stage)
            sweep.run(self.crew)
        return sweep.ledger.failed

    def _train_winner(self, best: Trial) -> None:
        """By the full recipe, on all training images, on SEEDS seeds."""
        seed = self.asked.recipe.get("seed", 0)
        values = _merged(self.asked.recipe, best.candidate.settings() | {"data": {"val_split": 0}}) | {"name": None}
        points = [
            Point(f"seed {number}", parse_config(values | {"seed": number}, "fit").model_dump(mode="json"))
            for number in range(seed, seed + SEEDS)
        ]
        self.finals = self.crew.settle(points)
        failed = self._train(self.finals, f"the winner, {self.epochs} epochs on {SEEDS} seeds")
        if failed:
            name, line = next(iter(failed.items()))
            raise TrainingError(f"{self.folder.cells / name}: {line}; run the same command again to retry it")

    def _write(self) -> None:
        content = {
            "asked": self.asked.identity(),
            "version": qattrain.__version__,
            "seconds": self.seconds,
            "open": [asdict(cell) for cell in self.open],
            "trials": [trial.record() for trial in [*self.trials, *self.recorded[len(self.trials) :]]],
        }
        records.write(self.folder.path / SEARCH_FILE, SEARCH_KIND, content)


def rungs(last: int) -> list[int]:
    """The epochs after which candidates are compared: 1, 3, 9 if the last is 9."""
    return [*(rungs(last // KEPT) if last >= KEPT else []), last]


def _merged(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with other values in some sections."""
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    return values | {name: values.get(name, {}) | section for name, section in settings.items()}


def _seed(recipe: Mapping[str, Any], number: int) -> int:
    """Of what is proposed in a batch."""
    return int(1_000_003 * recipe.get("seed", 0) + number) % 2**32


def _identity(config: Mapping[str, Any]) -> str:
    """`Candidate.identity` of a settled configuration."""
    known = parse_config(dict(config), "fit")
    return Candidate({}, known.model.chain.line, known.quant, Costs(0, 0, 0)).identity
