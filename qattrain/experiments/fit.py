"""What a search found, and what a network takes on a core under QEMU. The last needs torch."""

import math
import statistics
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qattrain
from qattrain.config import ModelConfig, QuantConfig
from qattrain.errors import TrainingError, write_errors
from qattrain.experiments.candidates import Budget, Costs
from qattrain.experiments.folder import ELSEWHERE, FIT_FILE, Cell
from qattrain.experiments.kinds import FIT_KIND
from qattrain.experiments.search import Search
from qattrain.experiments.search_folder import Trial
from qattrain.experiments.sweep import Images
from qattrain.files import records, replace_files
from qattrain.runs import folder as runs

if TYPE_CHECKING:
    from qattrain.integer import IntegerModel

LAYOUT = "packed"  # of the C that is measured: the smallest
CALIBRATION_IMAGES = 64  # of noise, from which a network that nobody trained gets its scales


def on_device(budget: Budget, images: Images, model: str, quant: QuantConfig, costs: Costs) -> Costs:
    """The costs with what the exported C takes on the budget's core, of weights that nobody trained yet.

    Flash is the same for trained ones but for a few bytes. Raises ExportError, also if tools are missing.
    """
    import torch

    from qattrain.integer.lowering import lower
    from qattrain.layers.network import build_model

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build_model(ModelConfig(name=model), quant, images.classes, images.shape).train()
        network(torch.randint(0, 256, (CALIBRATION_IMAGES, *images.shape), dtype=torch.uint8))
        return replace(costs, **measured_on(budget, lower(network.eval(), images.shape)))


def measured_on(budget: Budget, integers: "IntegerModel", always: bool = False) -> dict[str, Any]:
    """flash_bytes and, if the budget has a time, milliseconds of an integer network on the budget's core.

    No time is measured of what needs too much flash already, unless it is asked for: always. It is infinite if the
    machine has too little memory. Raises ExportError.
    """
    import numpy as np

    from qattrain.export.c_compile import footprint
    from qattrain.export.c_devices import DEVICES, broken, fits_machine, measure_device
    from qattrain.export.c_export import c_sources

    assert budget.core is not None
    device, files = DEVICES[budget.core], c_sources(integers, LAYOUT)
    try:
        needs = footprint(files, device.target)
    except (OSError, subprocess.SubprocessError) as error:
        raise broken(error, device) from None
    found: dict[str, Any] = {"flash_bytes": needs.flash_bytes, "milliseconds": None}
    is_small = budget.flash_bytes is None or needs.flash_bytes <= budget.flash_bytes
    if budget.milliseconds is not None and not fits_machine(needs, integers.input_shape, device):
        found["milliseconds"] = math.inf
    elif budget.milliseconds is not None and (is_small or always):
        noise = np.random.default_rng(0).integers(0, 256, (1, *integers.input_shape)).astype(np.uint8)
        cycles = measure_device(files, integers, noise, budget.core).profile.cycles_low
        found["milliseconds"] = cycles / budget.mhz / 1000
    return found


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
        from qattrain.evaluation.networks import load_network

        network = load_network(search.folder.cells / cell.name / runs.LAST_FILE)
        row |= measured_on(search.asked.budget, network.integers(), always=True)
    return row
