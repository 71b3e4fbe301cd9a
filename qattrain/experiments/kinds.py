"""What the JSON files of sweeps and searches hold. No torch in here.

`sweep.json` holds, at the top level:

    kind         "sweep"
    name         of the sweep's folder
    version      of qattrain
    axes         dotted names of the settings that vary
    cells, finished, failed, unfinished     counts of rows
    notice       set where a dataset is a stand-in for MNIST, else null
    rows[]       one per cell: run_dir (relative to the sweep's folder), method ("fp32", "qat" or "ptq"), bits,
                 act_bits, quantizer ("float" for fp32), model, dataset, seed, epochs (0 for ptq), accuracy, loss,
                 weight_bytes, images_per_second (null for ptq), status ("finished", "failed" or "unfinished"), error
                 (of a failed one, else null), warnings (list: what is wrong with a finished one; null if unknown),
                 settings (name -> value, of those axes without a field of their own)
    groups[]     one per set of finished rows that differ only in the seed: method, bits, act_bits, quantizer, model,
                 dataset, epochs, settings, n, accuracy_mean, accuracy_std (of n - 1 degrees of freedom; null if n is
                 1), loss_mean, weight_bytes, images_per_second (mean; null for ptq)
    reference[]  other people's results, as given with --reference: name, weight_bytes, accuracy

`fit.json` holds, at the top level: kind "fit"; name; version; notice; dataset; budget (weight_bytes, total_bytes, macs,
flash_bytes, milliseconds, core, mhz; null where none was set); families (chains with open places, by name); sampler;
held_out (number of images that candidates were ranked on); rungs (epochs after which some were passed over); epochs (of
the winner's trainings); seconds (of the whole search); winner (run_dir); accuracy_mean and accuracy_std of the finals
(null if there are none yet); and

    rows[]       one per candidate: run_dir, batch (from 1), model (a chain), bits, act_bits, layer_bits, what it costs
                 (weight_bytes, total_bytes, macs; flash_bytes and milliseconds, null without a core: as measured last,
                 before training or after some of it), epochs it was ranked after, loss and accuracy on the held-out
                 images after those (null if it failed before the first), status ("complete", "passed over", "failed",
                 or "open" if the search was stopped), error
    finals[]     one per training of the winner: run_dir, seed, accuracy and loss on the test images, and flash_bytes
                 and milliseconds of the trained network

Accuracies are fractions. Values that an unfinished row does not have yet are null. `sweep.csv` has the same rows.
"""

import shlex
from pathlib import Path

from qattrain.files import records


def _planned_again(path: Path) -> str:
    return f"remove it and run the sweep's command again, which keeps what is finished: rm {shlex.quote(str(path))}"


def _searched_again(path: Path) -> str:
    return f"remove its folder and search again: rm -r {shlex.quote(str(path.parent))}"


def _fitted_again(_path: Path) -> str:
    return "make it again with the same 'qattrain fit' command, which keeps what is trained"


def _run_again(_path: Path) -> str:
    return "run the sweep's command again, which makes it anew"


def _reported_again(path: Path) -> str:
    folder = path.absolute().parent
    name, runs_dir = shlex.quote(folder.name), shlex.quote(str(folder.parent))
    return f"make it again with: qattrain sweep --report-only --name {name} --runs-dir {runs_dir}"


MOST_BYTES = 64 << 20  # of the files that tell of every cell: more than 10,000
_CELL = {
    "name": str,
    "config": {"*": object},
    "notice": (str, None),
    "source?": (str, None),
    "until?": (records.count, None),
}
PLAN_KIND = records.Kind(
    {"asked": str, "axes": [str], "cells": [_CELL], "version": str}, _planned_again, MOST_BYTES, indent=1
)
RESULT_KIND = records.Kind(
    {
        "accuracy": records.fraction,
        "epochs": records.count,
        "loss": float,
        "train_loss?": (float, None),
        "weight_bytes": float,
        "images_per_second": (float, None),
        "warnings?": [str],
    },
    _run_again,
)
_COSTS = {
    "weight_bytes": records.count,
    "total_bytes": records.count,
    "macs": records.count,
    "flash_bytes": (records.count, None),
    "milliseconds": (float, None),
}
SEARCH_KIND = records.Kind(
    {
        "asked": {"*": object},
        "version": str,
        "seconds": float,
        "settled": {"*": {"*": str}},
        "notice": (str, None),
        "open": [_CELL],
        "old_failures": {"*": (records.count, None)},
        "finals": [_CELL],
        "trials": [
            {
                "batch": records.count,
                "candidate": {"params": {"*": object}, "model": str, "quant": {"*": object}, "costs": _COSTS},
                "cell": _CELL,
                "losses": {"*": float},
                "state": str,
                "failed": (str, None),
            }
        ],
    },
    _searched_again,
    MOST_BYTES,
    indent=1,
)
FIT_KIND = records.Kind(
    {
        "kind": str,
        "name": str,
        "version": str,
        "notice": (str, None),
        "dataset": str,
        "budget": {
            "weight_bytes": (records.count, None),
            "total_bytes": (records.count, None),
            "macs": (records.count, None),
            "flash_bytes": (records.count, None),
            "milliseconds": (float, None),
            "core": (str, None),
            "mhz": float,
        },
        "families": {"*": str},
        "sampler": str,
        "held_out": records.count,
        "rungs": [records.count],
        "epochs": records.count,
        "seconds": float,
        "winner": str,
        "accuracy_mean": (records.fraction, None),
        "accuracy_std": (float, None),
        "rows": [
            {
                "run_dir": str,
                "batch": records.count,
                "model": str,
                "bits": int,
                "act_bits": int,
                "layer_bits": {"*": int},
                **_COSTS,
                "epochs": records.count,
                "loss": (float, None),
                "accuracy": (records.fraction, None),
                "status": str,
                "error": (str, None),
            }
        ],
        "finals": [
            {
                "run_dir": str,
                "seed": int,
                "accuracy": records.fraction,
                "loss": float,
                "flash_bytes": (records.count, None),
                "milliseconds": (float, None),
            }
        ],
    },
    _fitted_again,
    MOST_BYTES,
    indent=1,
)
FAILURE_KIND = records.Kind({"error": str}, _run_again)
_ROW = {
    "run_dir": str,
    "method": str,
    "bits": int,
    "act_bits": int,
    "quantizer": str,
    "model": str,
    "dataset": str,
    "seed": int,
    "epochs": (records.count, None),
    "accuracy": (records.fraction, None),
    "loss": (float, None),
    "weight_bytes": (float, None),
    "images_per_second": (float, None),
    "status": str,
    "error": (str, None),
    "warnings?": ([str], None),
    "settings": {"*": object},
}
_GROUP = {
    "method": str,
    "bits": int,
    "act_bits": int,
    "quantizer": str,
    "model": str,
    "dataset": str,
    "epochs": records.count,
    "settings": {"*": object},
    "n": records.count,
    "accuracy_mean": records.fraction,
    "accuracy_std": (float, None),
    "loss_mean": float,
    "weight_bytes": float,
    "images_per_second": (float, None),
}
_POINT = {"name": str, "weight_bytes": records.count, "accuracy": records.fraction}
SWEEP_KIND = records.Kind(
    {
        "kind?": str,
        "name?": str,
        "version?": str,
        "axes?": [str],
        "cells?": records.count,
        "finished?": records.count,
        "failed?": records.count,
        "unfinished?": records.count,
        "notice": (str, None),
        "rows": [_ROW],
        "groups": [_GROUP],
        "reference": [_POINT],
    },
    _reported_again,
    MOST_BYTES,
    indent=1,
)


def check_fit(path: Path, document: records.Record) -> None:
    """Raises RecordError if the rows of a `fit.json` do not fit each other."""
    ranked = [row for row in document["rows"] if row["status"] in ("complete", "passed over")]
    if any(None in (row["loss"], row["accuracy"]) for row in ranked):
        raise records.damaged(path, FIT_KIND, "a candidate that was ranked has no loss")
    if document["winner"] not in [row["run_dir"] for row in ranked if row["status"] == "complete"]:
        raise records.damaged(path, FIT_KIND, "its winner is none of the candidates trained to the end")
