"""A search for the best network within budgets. No torch in here, but what a candidate costs needs it.

Candidates come in batches. Each batch is trained for a few epochs, the best third of all that came so far is trained on
from where it stopped, and the best third of those to the end: successive halving, with the promotion rule of ASHA
applied batch by batch. Then the best of all is trained by the full recipe on three seeds. What is ranked is the loss on
held-out training images; nothing is chosen on test images. What a candidate takes on a core depends on its weights, so
it is measured again whenever it goes on; what breaks the budget then has failed.

A search keeps nothing but its folder, and each of its steps follows from what is there. So it goes on after a kill as
if nothing had happened: the same candidates, the same runs, the same winner. Two things depend on the machine: how many
batches fit into a time, and whether a candidate fails for want of memory or disk; the latter is recorded as failed once
its rung is over, and not tried again.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization"; Li et al.
2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA).
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qattrain.config import parse_config
from qattrain.config.chain import PRESETS, parse_open_chain
from qattrain.errors import ConfigError, TrainingError
from qattrain.experiments import on_core
from qattrain.experiments.candidates import OPTIONS, Candidate, Space, Tried, identity, propose
from qattrain.experiments.folder import Cell
from qattrain.experiments.grid import Point
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.search_folder import Asked, Progress, SearchFolder, SearchLedger, Trial
from qattrain.experiments.sweep import Crew, Sweep, Watcher
from qattrain.runs import folder as runs
from qattrain.runs.creation import written_by_us

MOST_EPOCHS = 27  # of a candidate: with fewer, what learns fast looks better than what learns well
KEPT = 3  # one in so many goes on, for so many times the epochs
HELD_OUT, LEAST_SHARE = 5000, 6  # training images; at most one in so many
SEEDS = 3  # of the winner


class Search:
    """One search. crew: its workers. watch: called as that of a sweep. say: called with a line.

    progress: kept up to date for a display.
    """

    def __init__(
        self,
        asked: Asked,
        folder: SearchFolder,
        crew: Crew,
        watch: Watcher,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.asked, self.folder, self.crew = asked, folder, crew
        self.watch, self.say, self.progress = watch, say, progress
        self.started, self.state = time.monotonic(), folder.read_state()
        self.recipe = parse_config(_merged(asked.recipe, self.state.settled), "fit")
        self.images = images = crew.describe(self.recipe.data.model_dump(mode="json"))
        self.epochs = self.recipe.train.epochs
        self.rungs = rungs(min(MOST_EPOCHS, self.epochs))
        self.held_out = self.recipe.data.val_split or min(HELD_OUT, images.train // LEAST_SHARE)
        if not 0 < self.held_out < images.train:
            raise ConfigError(
                f"data.val_split = {self.held_out}: of {images.train:,} training images at least one must be held out, "
                "and one left; choose another --val-split, or a larger --limit-train"
            )
        # A preset by its name, because its own widths are where a search begins.
        families = {name: parse_open_chain(name if name in PRESETS else line) for name, line in asked.families.items()}
        measure = partial(on_core.untrained, asked.budget, images) if asked.budget.core is not None else None
        self.space = Space(families, self.recipe.quant, asked.budget, images.shape, images.classes, measure)

    @property
    def seconds(self) -> float:
        """Spent on it, by processes before this one, too."""
        return self.state.seconds + time.monotonic() - self.started

    @property
    def trials(self) -> list[Trial]:
        """All candidates so far."""
        return self.state.trials

    def run(self) -> Trial:
        """Search, and train the winner. Raises ConfigError, TrainingError, and whatever settling a run raises."""
        first = self._batch(0) if not self.trials else []  # what is refused leaves no folder behind
        self.folder.make()
        with written_by_us(self.folder.path, "the search"):
            self.folder.refuse_others(self.asked)
            self.state = self.folder.read_state()  # another process may have gone on with it in between
            self.trials.extend(first if not self.trials else [])
            if not self.state.settled:
                self._note_settled(self.trials[0].cell)
            if self.asked.minutes is not None:
                self.progress.ends_at = self.started + 60 * self.asked.minutes - self.state.seconds
            for number in itertools.count():
                batch = [trial for trial in self.trials if trial.batch == number]
                if not batch:
                    batch = self._batch(number)
                    self.trials.extend(batch)
                if not batch:
                    break
                self._halve(number, batch)
                if all(trial.failed for trial in self.trials):
                    raise TrainingError(f"no candidate could be trained: {batch[0].failed}")
            best = self.best()
            if best is None:
                failed = next(trial.failed for trial in self.trials if trial.failed)
                raise TrainingError(f"no candidate could be trained to the end: {failed}")
            self._train_winner(best)
        return best

    def best(self) -> Trial | None:
        """The candidate with the smallest loss of those that were trained to the end."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return min(complete, key=lambda trial: trial.loss, default=None)

    def _batch(self, number: int) -> list[Trial]:
        """New candidates; [] if the search is over."""
        left = self.asked.batch
        if self.asked.trials is not None:
            left = min(left, self.asked.trials - len(self.trials))
        if left <= 0 or not self._is_time_left(number):
            return []
        self.say(f"batch {number + 1}: choosing {_count(left, 'candidate')}")
        tried = [Tried(one.candidate, one.losses, one.state == "complete") for one in self.trials if one.losses]
        known, candidates = {trial.candidate.identity for trial in self.trials}, list[Candidate]()
        new = propose(self.space, tried, self.asked.sampler, (1_000_003 * self.recipe.seed + number) % 2**32)
        for one in itertools.chain(self.space.first() if number == 0 else [], new):
            if one.identity not in known:
                known.add(one.identity)
                candidates.append(one)
            if len(candidates) == left:
                break
        if not candidates:
            self.say("nothing new is proposed any more")
            return []
        cells = self._settled([self._point(one) for one in candidates])
        by_network = {_identity(cell): cell for cell in cells}
        return [Trial(number, one, by_network[one.identity]) for one in candidates]

    def _point(self, candidate: Candidate) -> Point:
        """What a candidate is trained with: the recipe, but for its epochs, and images held out."""
        searched = {"train": {"epochs": self.rungs[-1]}, "data": {"val_split": self.held_out}}
        return self._config(candidate, searched, self.recipe.seed)

    def _config(self, candidate: Candidate, others: dict[str, dict[str, Any]], seed: int) -> Point:
        """The recipe, with what is settled, for a candidate; `others` replace some of its settings."""
        values = self.asked.recipe
        for settings in (self.state.settled, candidate.settings(), others):
            values = _merged(values, settings)
        config = parse_config(values | {"name": None, "seed": seed}, "fit")
        return Point(candidate.model, config.model_dump(mode="json"))

    def _settled(self, points: list[Point]) -> list[Cell]:
        """Their cells; a stand-in for MNIST is told of in all of them."""
        cells = self.crew.settle(points)
        return [replace(cell, notice=cell.notice or self.state.notice) for cell in cells]

    def _note_settled(self, cell: Cell) -> None:
        """Keep what `auto` became, so that all trainings have it in common, wherever the search goes on."""
        data, train = cell.config["data"], cell.config["train"]
        self.state.notice = cell.notice
        self.state.settled = {
            "data": {"dataset": data["dataset"]},
            "train": {key: train[key] for key in ("device", "precision")},
        }

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
        """Train the batch for the epochs of the first rung, then the best of it further; rungs that are done stay."""
        for rung in self.rungs:
            going = [trial for trial in batch if trial.state == "open" and rung not in trial.losses]
            if not going:
                continue
            stage = f"batch {number + 1}, {_count(len(going), 'candidate')} to {_count(rung, 'epoch')}"
            failed = self._train([replace(trial.cell, until=rung) for trial in going], stage)
            for trial in going:
                trial.failed = failed.get(trial.cell.name)
                if trial.failed is not None:
                    trial.state = "failed"
                else:
                    trial.losses[rung] = self._loss(trial, rung)
            ranked = sorted(trial.losses[rung] for trial in self.trials if rung in trial.losses)
            worst = ranked[math.ceil(len(ranked) / KEPT) - 1] if ranked else 0.0  # that goes on
            for trial in (one for one in going if one.state == "open"):
                if rung == self.rungs[-1]:
                    trial.state = "complete"
                elif trial.losses[rung] > worst:
                    trial.state = "passed over"
                if trial.state != "passed over":
                    self._measure(trial)
            self._open([])

    def _measure(self, trial: Trial) -> None:
        """What it takes on the core, with the weights it has by now; too much, and it has failed."""
        budget = self.asked.budget
        if budget.core is None:
            return
        found = on_core.trained(budget, self.folder.cells / trial.cell.name / runs.LAST_FILE)
        trial.candidate = replace(trial.candidate, costs=replace(trial.candidate.costs, **found))
        broken = [f"{OPTIONS[name]} {cost:,.6g}" for name, cost in budget.broken(trial.candidate.costs).items()]
        if broken:
            trial.state, trial.failed = "failed", f"trained, it needs {' and '.join(broken)}"

    def _loss(self, trial: Trial, rung: int) -> float:
        """On the held-out images, after that many epochs."""
        record = runs.read_metrics(self.folder.cells / trial.cell.name)[rung - 1]
        return float(record["val_loss"])

    def _train(self, cells: list[Cell], stage: str) -> dict[str, str]:
        """Train these cells until they have ended; the error lines of those that failed, by name."""
        best = self.best()
        self.progress.best = best.loss if best is not None else None
        self.progress.stage, self.progress.cells = stage, {cell.name: cell for cell in cells}
        self._open(cells)
        sweep = Sweep(self.folder, cells, self.watch, self._ledger)
        try:
            if sweep.ledger.open:
                self.say(stage)
                sweep.run(self.crew)
        finally:
            self._write()  # the time it took
        return sweep.ledger.failed

    def _ledger(self, cells: list[Cell]) -> Ledger:
        return SearchLedger(self.folder, cells, self.state.old_failures)

    def _train_winner(self, best: Trial) -> None:
        """By the full recipe, on all training images, on SEEDS seeds."""
        seeds = range(self.recipe.seed, self.recipe.seed + SEEDS)
        if not self.state.finals or _identity(self.state.finals[0]) != best.candidate.identity:
            all_images = {"data": {"val_split": 0}}
            self.state.finals = self._settled([self._config(best.candidate, all_images, seed) for seed in seeds])
        failed = self._train(self.state.finals, f"the winner, {_count(self.epochs, 'epoch')} on {SEEDS} seeds")
        if failed:
            name, line = next(iter(failed.items()))
            raise TrainingError(f"{self.folder.cells / name}: {line}; run the same command again to retry it")

    def _open(self, cells: list[Cell]) -> None:
        """Tell the workers which cells are to be trained now; failures until now do not count."""
        self.state.open = cells
        self.state.old_failures = {cell.name: self.folder.failure_time(cell.name) for cell in cells}
        self._write()

    def _write(self) -> None:
        """Write the search's file."""
        now = time.monotonic()
        self.state.seconds, self.started = self.state.seconds + now - self.started, now
        self.folder.write_state(self.asked, self.state)


def rungs(last: int) -> list[int]:
    """The epochs after which candidates are compared: 1, 3, 9 if the last is 9."""
    return [*(rungs(last // KEPT) if last >= KEPT else []), last]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _merged(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with other values in some sections."""
    return dict(recipe) | {name: recipe.get(name, {}) | section for name, section in settings.items()}


def _identity(cell: Cell) -> str:
    """`Candidate.identity` of a cell's network."""
    config = parse_config(cell.config, cell.name)
    return identity(config.model.chain.line, config.quant)
