"""Networks of every kind for reports, trained once: float, QAT, PTQ, packed. One has a hostile name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import PtqConfig, QuantConfig
from qattrain.evaluation.checkpoints import export_network
from qattrain.runs.folder import write_metrics
from qattrain.training import run as experiment
from qattrain.training.ptq import quantize_after_training

EVIL = "_<script>alert('x')&<$x^$ 漢"


@dataclass(frozen=True)
class Networks:
    """runs_dir holds the runs float, ptq and EVIL, which is a QAT run; packed: its packed file."""

    runs_dir: Path
    packed: Path


@pytest.fixture(scope="session")
def networks(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any
) -> Networks:
    folder = tmp_path_factory.mktemp("reported")
    runs_dir = folder / "runs"
    for settings in (
        {"name": "float", "quant.bits": 32},
        {"name": EVIL, "quant.bits": 3, "quant.layer_bits": {"conv1": 8}, "data.val_split": 20},
    ):
        experiment.train(tiny_config(settings), folder, runs_dir, silent_display())
    quant = QuantConfig(quantizer="affine", bits=2, act_bits=4)
    source = runs_dir / "float" / "last.pt"
    quantize_after_training(source, quant, PtqConfig(), "ptq", folder, runs_dir)
    export_network(runs_dir / EVIL / "last.pt", "packed", folder, folder=folder / "packed", verify=False)
    return Networks(runs_dir, folder / "packed" / "model.safetensors")


@pytest.fixture
def make_sweep(tmp_path: Path, networks: Networks) -> Callable[..., Path]:
    """Writes the `sweep.json` of a sweep of two finished runs and one that failed; returns its folder."""

    def make(name: str = "sweep-1", **changes: Any) -> Path:
        same = {"quantizer": "lsq", "model": "lenet-nano", "dataset": "digits", "epochs": 2, "settings": {}}
        measured = {"accuracy": 0.75, "loss": 0.5, "weight_bytes": 5956, "images_per_second": 1000.0}
        rows = [
            {"method": "qat", "bits": 4, "act_bits": 4, "seed": seed, "run_dir": f"cells/s{seed}", **same, **measured}
            for seed in (0, 1)
        ]
        done = [row | {"status": "finished", "error": None} for row in rows]
        failed = rows[0] | dict.fromkeys(measured) | {"status": "failed", "error": f"broken: {EVIL}", "seed": 7}
        group = {
            key: rows[0][key] for key in ("method", "bits", "act_bits", *same, "weight_bytes", "images_per_second")
        }
        group |= {"n": 2, "accuracy_mean": 0.75, "accuracy_std": 0.125, "loss_mean": 0.5}
        document = {"kind": "sweep", "notice": None, "rows": [*done, failed], "groups": [group], "reference": []}
        folder = tmp_path / name
        for seed, errors in ((0, (0.5, 0.2)), (1, (0.3, 0.1))):
            run_dir = folder / "cells" / f"s{seed}"
            run_dir.mkdir(parents=True)
            history = [{"epoch": epoch, "test_accuracy": 1 - error} for epoch, error in enumerate(errors, start=1)]
            write_metrics(run_dir, history)
            shutil.copy(networks.runs_dir / "float" / "config.json", run_dir)
        (folder / "sweep.json").write_text(json.dumps(document | changes))
        return folder

    return make
