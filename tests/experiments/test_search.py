"""Searches: the best of each batch go on, and after any stop the rest is as if nobody had stopped it.

Workers here train nothing: they write what a training would leave, with a loss that follows from the configuration.
"""

import hashlib
import json
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import QuantConfig, parse_config
from qattrain.errors import ConfigError, TrainingError
from qattrain.experiments import on_core
from qattrain.experiments.candidates import Budget, Costs, preset_families
from qattrain.experiments.fit import fit_document
from qattrain.experiments.folder import PLAN_FILE, RESULT_FILE, SEARCH_FILE, Cell, SweepFolder, cell_name
from qattrain.experiments.grid import Point
from qattrain.experiments.kinds import RESULT_KIND
from qattrain.experiments.ledger import Ledger
from qattrain.experiments.search import Search, rungs
from qattrain.experiments.search_folder import Asked, Progress, SearchFolder
from qattrain.experiments.sweep import Images
from qattrain.files import records
from qattrain.report.fit import over_budget
from qattrain.runs import folder as runs

pytest.importorskip("optuna", reason="the extra [search] is not installed")
LINE = "conv ? 5x5 stride 2 bn, dw 3x3 bn, conv ? 1x1 bn, avgpool, fc"
SETTLED = {"lr": 0.05, "batch_size": 32, "weight_decay": 0.0, "threads": 1}


def healthy(_cell: Cell) -> bool:
    return False


class Paper:
    """Workers on paper, one after the other. stop_at: interrupted before so many trainings; doomed: cells that fail."""

    def __init__(
        self, folder: SweepFolder, stop_at: int | None = None, doomed: Callable[[Cell], bool] = healthy
    ) -> None:
        self.folder, self.stop_at, self.doomed, self.size = folder, stop_at, doomed, 2
        self.owners: Set[str] = {folder.owner}
        self.trained: list[tuple[str, int, int]] = []  # cell, from epoch, to epoch

    def describe(self, _data: dict[str, Any]) -> Images:
        return Images("digits", (1, 28, 28), 10, 1200)

    def settle(self, points: list[Point]) -> list[Cell]:
        return [self._settled(parse_config(point.config, "test").model_dump(mode="json")) for point in points]

    def _settled(self, values: dict[str, Any]) -> Cell:
        values |= {"train": values["train"] | SETTLED, "data": values["data"] | {"dataset": "digits"}}
        return Cell(cell_name(values), values, "a stand-in")

    def step(self, ledger: Ledger) -> None:
        for cell in ledger.ready():
            if self.stop_at == len(self.trained):
                raise KeyboardInterrupt
            with self.folder.claimed(cell.name) as report:
                assert report is not None, cell.name
                self._train(cell)

    def _train(self, cell: Cell) -> None:
        if self.doomed(cell):
            self.folder.set_failure(cell.name, "the loss became nan")
            return
        run_dir, until = self.folder.cells / cell.name, cell.until or cell.config["train"]["epochs"]
        before = runs.read_metrics(run_dir)
        self.trained.append((cell.name, len(before), until))
        if not before:
            run_dir.mkdir()
            runs.write_config(run_dir, cell.config | {"name": cell.name}, {})
        history = [*before, *(record(cell, epoch) for epoch in range(len(before) + 1, until + 1))]
        runs.write_metrics(run_dir, history)
        (run_dir / runs.LAST_FILE).touch()
        last = {"accuracy": 1 - history[-1]["test_loss"] / 9, "loss": history[-1]["test_loss"], "epochs": until}
        records.write(run_dir / RESULT_FILE, RESULT_KIND, last | {"weight_bytes": 1.0, "images_per_second": None})

    def close(self) -> None: ...


def loss(cell: Cell, epoch: int) -> float:
    """Between 0 and 3, smaller with more epochs, another one for every network."""
    about = json.dumps([cell.config["model"]["name"], cell.config["quant"], cell.config["seed"]])
    return (int(hashlib.sha256(about.encode()).hexdigest()[:6], 16) / 2**24) * 2 + 1 / epoch


def record(cell: Cell, epoch: int) -> dict[str, Any]:
    found = loss(cell, epoch)
    return {
        "epoch": epoch,
        "test_loss": found,
        "test_accuracy": 1 - found / 9,
        "val_loss": found,
        "val_accuracy": 1 - found / 9,
        "epoch_seconds": 2.0,
    }


def asked(**others: Any) -> Asked:
    recipe = {
        "train": {"epochs": 9},
        "model": {"name": "conv 1 5x5 stride 2 bn, dw 3x3 bn, conv 1 1x1 bn, avgpool, fc"},
    }
    return replace(Asked(recipe, {"chain": LINE}, Budget(weight_bytes=800), trials=24), **others)


def searched(path: Path, what: Asked, **crew: Any) -> tuple[Search, Paper]:
    folder = SearchFolder(path)
    folder.refuse_others(what)
    workers = Paper(folder, **crew)
    search = Search(what, folder, workers, lambda *_: None, lambda _: None, Progress(folder.cells))
    search.run()
    return search, workers


def found_in(search: Search) -> dict[str, Any]:
    return fit_document(search) | {"seconds": 0.0, "name": ""}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Paper]:
    return searched(tmp_path_factory.mktemp("search") / "s", asked())


def test_the_best_third_goes_on_and_nothing_is_trained_twice(undisturbed: tuple[Search, Paper]) -> None:
    search, workers = undisturbed
    steps = {(start, end) for _, start, end in workers.trained}
    assert steps == {(0, 1), (1, 3), (3, 9), (0, 9)}
    first = [trial for trial in search.trials if trial.batch == 0]
    assert len(first) == 12
    by_loss = sorted(first, key=lambda trial: trial.losses[1])
    assert [3 in trial.losses for trial in by_loss] == [True] * 4 + [False] * 8
    by_loss = sorted(by_loss[:4], key=lambda trial: trial.losses[3])
    assert [trial.state for trial in by_loss] == ["complete"] * 2 + ["passed over"] * 2
    for rung, after in ((1, 3), (3, 9)):  # in the second batch those go on that are among the best of all so far
        ranked = sorted(trial.losses[rung] for trial in search.trials if rung in trial.losses)
        for trial in search.trials:
            if trial.batch == 1 and rung in trial.losses:
                assert (after in trial.losses) == (trial.losses[rung] in ranked[: -(-len(ranked) // 3)])
    epochs = [end for _, _, end in workers.trained]
    assert epochs.count(1) == 24
    assert len(workers.trained) == len(set(workers.trained))


def test_the_winner_has_the_smallest_loss_and_is_trained_on_three_seeds(undisturbed: tuple[Search, Paper]) -> None:
    search, _ = undisturbed
    document = fit_document(search)
    complete = [row for row in document["rows"] if row["status"] == "complete"]
    (winner,) = (row for row in complete if row["run_dir"] == document["winner"])
    assert winner["loss"] == min(row["loss"] for row in complete)
    assert all(row["weight_bytes"] <= 800 for row in document["rows"])
    assert [row["seed"] for row in document["finals"]] == [0, 1, 2]
    for row in document["finals"]:
        config = runs.read_record(search.folder.path / row["run_dir"])["config"]
        assert (config["train"]["epochs"], config["data"]["val_split"]) == (9, 0)
        assert config["model"]["name"] == winner["model"]
    trial = runs.read_record(search.folder.path / winner["run_dir"])["config"]
    assert (trial["train"]["epochs"], trial["data"]["val_split"]) == (9, 200)  # a sixth of 1,200 images
    assert document["notice"] == "a stand-in"


@pytest.mark.parametrize("stop_at", [0, 1, 5, 12, 13, 16, 18, 25, -5, -3, -1])
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(
    stop_at: int, undisturbed: tuple[Search, Paper], tmp_path: Path
) -> None:
    search, whole = undisturbed
    stop_at %= len(whole.trained)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "s", asked(), stop_at=stop_at)
    before = SearchFolder(tmp_path / "s").read_state().trials
    assert len(before) in (12, 24)
    again, rest = searched(tmp_path / "s", asked())
    assert found_in(again) == found_in(search)
    assert len(rest.trained) == len(whole.trained) - stop_at  # nothing was trained twice


def test_more_candidates_go_on_with_the_same_search(undisturbed: tuple[Search, Paper], tmp_path: Path) -> None:
    few, _ = searched(tmp_path / "s", asked(trials=12))
    assert len(few.trials) == 12
    more, rest = searched(tmp_path / "s", asked(trials=24))
    assert found_in(more) == found_in(undisturbed[0])
    assert sum(end == 1 for _, _, end in rest.trained) == 12


def test_a_candidate_that_fails_stops_nothing_and_is_not_ranked(tmp_path: Path) -> None:
    def doomed(cell: Cell) -> bool:
        return cell.config["data"]["val_split"] > 0 and loss(cell, 1) < 1.8

    search, _ = searched(tmp_path / "s", asked(), doomed=doomed)
    failed = [row for row in fit_document(search)["rows"] if row["status"] == "failed"]
    assert failed
    assert all(row["error"] == "the loss became nan" and row["loss"] is None for row in failed)
    with pytest.raises(TrainingError, match="no candidate could be trained: the loss became nan"):
        searched(tmp_path / "none", asked(), doomed=lambda _: True)
    with pytest.raises(TrainingError, match="no candidate could be trained to the end: the loss became nan"):
        searched(tmp_path / "late", asked(), doomed=lambda cell: cell.until == 3)
    with pytest.raises(TrainingError, match=r"the loss became nan; run the same command again"):
        searched(tmp_path / "final", asked(trials=12), doomed=lambda cell: cell.config["data"]["val_split"] == 0)
    state = SearchFolder(tmp_path / "final").read_state()  # what failed just now is not opened to workers again
    assert state.old_failures == dict.fromkeys((cell.name for cell in state.finals), None)


def test_what_breaks_the_budget_once_trained_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is estimated at 600 bytes of flash; some trained ones need more."""

    def untrained(_budget: Budget, _images: Images, _model: str, _quant: QuantConfig, costs: Costs) -> Costs:
        return replace(costs, flash_bytes=600)

    def trained(_budget: Budget, checkpoint: Path) -> dict[str, Any]:
        return {"flash_bytes": 597 + int(checkpoint.parent.name[-6:], 16) % 6, "milliseconds": None}

    monkeypatch.setattr(on_core, "untrained", untrained)
    monkeypatch.setattr(on_core, "trained", trained)
    what = asked(budget=Budget(weight_bytes=800, flash_bytes=600, core="cortex-m0"))
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "s", what, stop_at=20)
    search, _ = searched(tmp_path / "s", what)
    assert found_in(searched(tmp_path / "whole", what)[0])["rows"] == found_in(search)["rows"]
    rows = found_in(search)["rows"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert all(row["error"] == f"trained, it needs --flash {row['flash_bytes']}" for row in failed)
    assert all(row["flash_bytes"] > 600 and row["loss"] is not None for row in failed)
    assert {row["flash_bytes"] for row in rows if row["status"] == "complete"} <= {597, 598, 599, 600}
    assert {row["flash_bytes"] for row in rows if row["status"] == "passed over" and row["epochs"] == 1} == {600}


@pytest.mark.parametrize(
    ("flash", "said"),
    [
        ((600, 600, 600), None),
        ((600, 601, 600), "breaks the budget on cortex-m0: seed 1 takes 601 bytes of flash; use another seed."),
        ((1700, 601, 602), "seed 2 takes 602 bytes of flash; search again with a smaller budget."),
    ],
)
def test_a_winner_that_breaks_the_budget_at_its_end_is_told_of(flash: tuple[int, ...], said: str | None) -> None:
    budget = {"flash_bytes": 600, "milliseconds": None, "core": "cortex-m0"}
    finals = [{"seed": seed, "flash_bytes": number, "milliseconds": 9.0} for seed, number in enumerate(flash)]
    found = over_budget({"budget": budget, "finals": finals})
    assert found is None if said is None else found is not None and found.endswith(said)


def test_what_was_decided_stays_decided(undisturbed: tuple[Search, Paper], tmp_path: Path) -> None:
    """A candidate that failed is not tried again once its rung is over, whatever would become of it now."""

    def doomed(cell: Cell) -> bool:
        return cell.until == 1 and loss(cell, 1) < 1.5

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "s", asked(), doomed=doomed, stop_at=20)
    failed = [trial.cell.name for trial in SearchFolder(tmp_path / "s").read_state().trials if trial.failed]
    assert failed
    again, rest = searched(tmp_path / "s", asked())
    assert {row["run_dir"].partition("/")[2] for row in found_in(again)["rows"] if row["error"]} >= set(failed)
    assert not set(failed) & {name for name, _, _ in rest.trained}
    assert found_in(again) != found_in(undisturbed[0])


def test_a_budget_that_only_the_smallest_network_meets_is_searched(tmp_path: Path) -> None:
    families = {name: family.line for name, family in preset_families().items()}
    search, _ = searched(tmp_path / "s", asked(families=families, budget=Budget(weight_bytes=12)))
    assert {row["weight_bytes"] for row in found_in(search)["rows"]} == {12}


def test_minutes_end_the_search_after_the_first_batch_at_the_latest(tmp_path: Path) -> None:
    search, _ = searched(tmp_path / "s", asked(trials=None, minutes=0.0))
    assert len(search.trials) == 12
    # 9 epochs of 2 s on 3 seeds by 2 workers take 36 s: no batch fits before that.
    search, _ = searched(tmp_path / "s", asked(trials=None, minutes=35 / 60))
    assert len(search.trials) == 12
    search, _ = searched(tmp_path / "s", asked(trials=48, minutes=100 / 60))
    assert len(search.trials) == 48


def test_another_search_a_sweep_or_a_run_in_the_folder_is_one_line(tmp_path: Path) -> None:
    searched(tmp_path / "s", asked(trials=3, batch=3))
    for other, what in (
        (asked(trials=3, batch=3, budget=Budget(weight_bytes=700)), "budget differ"),
        (asked(trials=3, batch=4, sampler="random"), "batch and sampler differ"),
    ):
        with pytest.raises(ConfigError, match=f"holds another search: {what}.*choose another --name"):
            SearchFolder(tmp_path / "s").refuse_others(other)
    for file, what in ((PLAN_FILE, "a sweep"), (runs.CONFIG_FILE, "a run")):
        (tmp_path / what).mkdir()
        (tmp_path / what / file).touch()
        with pytest.raises(ConfigError, match=f"is {what}, not a search"):
            SearchFolder(tmp_path / what).refuse_others(asked())
    with pytest.raises(ConfigError, match="is a search, not a sweep"):
        SweepFolder(tmp_path / "s").refuse_a_run()


def test_a_damaged_record_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    searched(tmp_path / "s", asked(trials=3, batch=3))
    path = tmp_path / "s" / SEARCH_FILE
    path.write_text(path.read_text().replace('"weight_bytes": ', '"weight_bytes": 1', 1))
    with pytest.raises(Exception, match=r"search.json is damaged.*remove its folder and search again"):
        searched(tmp_path / "s", asked(trials=3, batch=3))


def test_its_name_follows_from_what_is_asked_for_but_not_from_the_time_it_may_take() -> None:
    names = {asked(trials=n, minutes=m).name for n, m in ((1, None), (None, 3.0))}
    assert len(names) == 1
    assert asked(sampler="random").name not in names
    threads = asked(recipe=asked().recipe | {"name": "x", "train": {"epochs": 9, "threads": 3}})
    assert threads.name in names


def test_the_epochs_of_candidates_are_thirds_of_each_other() -> None:
    found = [rungs(last) for last in (1, 2, 3, 4, 8, 20, 27)]
    assert found == [[1], [2], [1, 3], [1, 4], [2, 8], [2, 6, 20], [1, 3, 9, 27]]


def test_with_many_epochs_only_the_winner_is_trained_for_all(tmp_path: Path) -> None:
    what = asked(trials=12)
    recipe = what.recipe | {"train": {"epochs": 40}}
    search, workers = searched(tmp_path / "s", replace(what, recipe=recipe))
    assert {(start, end) for _, start, end in workers.trained} == {(0, 1), (1, 3), (3, 9), (9, 27), (0, 40)}
    configs = [runs.read_record(search.folder.path / row["run_dir"])["config"] for row in found_in(search)["rows"]]
    assert {config["train"]["epochs"] for config in configs} == {27}
