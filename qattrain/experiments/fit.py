"""What a search found: `fit.json`."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import qattrain
from qattrain.errors import TrainingError, write_errors
from qattrain.experiments import on_core
from qattrain.experiments.folder import ELSEWHERE, FIT_FILE, Cell
from qattrain.experiments.kinds import FIT_KIND
from qattrain.experiments.search import Search
from qattrain.experiments.search_folder import Trial
from qattrain.files import records, replace_files
from qattrain.runs import folder as runs


def write_fit(folder: Path, document: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Write `fit.json` and `pictures` (file name -> content), all or none. Raises TrainingError."""
    with write_errors(TrainingError, f"cannot write into {folder}", ELSEWHERE):
        replace_files(folder, pictures | {FIT_FILE: records.encoded(FIT_KIND, document)})


def fit_document(search: Search) -> dict[str, Any]:
    """What `fit.json` holds, once a candidate was trained to the end."""
    best, budget = search.best(), search.asked.budget
    assert best is not None, search.folder
    ended = [(cell, search.folder.result(cell)) for cell in search.state.finals]
    finals = [_final_row(search, cell, result) for cell, result in ended if result is not None]
    accuracies = [row["accuracy"] for row in finals]
    return {
        "kind": "fit",
        "name": search.folder.path.name,
        "version": qattrain.__version__,
        "notice": search.state.notice,
        "dataset": search.images.dataset,
        "budget": asdict(budget),
        "families": search.asked.families,
        "sampler": search.asked.sampler,
        "held_out": search.held_out,
        "rungs": search.rungs,
        "epochs": search.epochs,
        "seconds": search.seconds,
        "rows": [_row(search, trial) for trial in search.trials],
        "winner": f"{search.folder.cells.name}/{best.cell.name}",
        "finals": finals,
        "accuracy_mean": statistics.fmean(accuracies) if finals else None,
        "accuracy_std": statistics.stdev(accuracies) if len(finals) > 1 else None,
    }


def _row(search: Search, trial: Trial) -> dict[str, Any]:
    epochs, quant = max(trial.losses, default=0), trial.candidate.quant
    history = runs.read_metrics(search.folder.cells / trial.cell.name) if epochs else []
    return {
        "run_dir": f"{search.folder.cells.name}/{trial.cell.name}",
        "batch": trial.batch + 1,
        "model": trial.candidate.model,
        "bits": quant.bits,
        "act_bits": quant.act_bits,
        "layer_bits": quant.layer_bits,
        **asdict(trial.candidate.costs),
        "epochs": epochs,
        "loss": trial.losses.get(epochs),
        "accuracy": history[epochs - 1]["val_accuracy"] if epochs else None,
        "status": trial.state,
        "error": trial.failed,
    }


def _final_row(search: Search, cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    """One of the winner's trainings; on a core it is measured again, with what it learned."""
    row = {"run_dir": f"{search.folder.cells.name}/{cell.name}", "seed": cell.config["seed"]}
    row |= {"accuracy": result["accuracy"], "loss": result["loss"], "flash_bytes": None, "milliseconds": None}
    if search.asked.budget.core is not None:
        row |= on_core.trained(search.asked.budget, search.folder.cells / cell.name / runs.LAST_FILE)
    return row
