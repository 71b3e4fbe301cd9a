"""Methods side by side on the same test images: float, quantized after training, trained quantized, any checkpoint."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import FLOAT_BITS, ExperimentConfig, PtqConfig, QuantConfig
from qattrain.errors import ConfigError, TrainingError
from qattrain.evaluation.checkpoints import Outcome, evaluate_checkpoint
from qattrain.evaluation.metrics import mcnemar_p
from qattrain.evaluation.networks import Trained
from qattrain.files import write_atomically
from qattrain.layers.network import plan_layers, weight_bytes
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint
from qattrain.training.ptq import quantize_after_training, settle_ptq
from qattrain.training.run import Display, RunResult, resolve, train

SEPARATOR = "vs"
METHODS = ("fp32", "ptq", "qat")


@dataclass(frozen=True)
class Row:
    """One method: its run and how it did. delta: accuracy minus the first row's; mcnemar_p: against the first row."""

    method: str
    run_dir: str
    bits: int
    act_bits: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    delta: float
    mcnemar_p: float
    loss: float
    weight_bytes: int
    images_per_second: float | None


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked for; histories: of the same runs, one dict an epoch."""

    dataset: str
    notice: str | None
    test_images: int
    rows: list[Row]
    histories: list[list[dict[str, Any]]]
    key: str  # hash of all configurations: names the result's folder


class Comparer:
    """Finds or makes the runs. `say` gets a line on each; `display` makes the display of a run to be trained."""

    def __init__(
        self,
        config: ExperimentConfig,
        ptq_quantizer: str,
        data_dir: Path,
        runs_dir: Path,
        say: Callable[[str], None],
        display: Callable[[], AbstractContextManager[Display]],
    ) -> None:
        for key, value in (("name", config.name), ("train.init", config.train.init), ("ptq", config.ptq)):
            if value is not None:
                raise ConfigError(f"{key} = {value!r}: compare trains from scratch and names runs itself; leave it out")
        self.config, self.ptq_quantizer = config, ptq_quantizer
        self.data_dir, self.runs_dir, self.say, self.display = data_dir, runs_dir, say, display

    def run(self, methods: list[str]) -> Comparison:
        """Compare `methods`: fp32, ptq, qat, or checkpoints. Raises any QattrainError."""
        entries = [method for method in methods if method != SEPARATOR]
        if len(entries) < 2:
            raise ConfigError(
                f"compare {' '.join(methods)!r}: give at least two of {', '.join(METHODS)}, checkpoints or runs, "
                "for example: qattrain compare fp32 vs qat"
            )
        # Names and files first: a typing mistake must not show after ten minutes of training.
        named = {entry: runs.find_checkpoint(entry, self.runs_dir) for entry in entries if entry not in METHODS}
        for path in named.values():
            load_checkpoint(path)
        if "qat" in entries and plan_layers(self.config.quant).is_float:
            raise ConfigError("--bits 32: 'qat' would be the float network; allowed: 1 to 8")
        paths = {}
        for entry in sorted(dict.fromkeys(entries), key=lambda entry: (*METHODS, entry).index(entry)):
            if entry in named:
                paths[entry] = named[entry]
            elif entry == "ptq":
                source = paths["fp32"] if "fp32" in paths else self._trained(self._float_config())
                paths[entry] = self._quantized(source)
            else:
                paths[entry] = self._trained(self._float_config() if entry == "fp32" else self.config)
        return self._compare(entries, [paths[entry] for entry in entries])

    def _float_config(self) -> ExperimentConfig:
        return self.config.model_copy(update={"quant": QuantConfig(bits=FLOAT_BITS)})

    def _trained(self, config: ExperimentConfig) -> Path:
        settled, _, _ = resolve(config, self.data_dir)
        found = self._finished(settled)
        if found is not None:
            return found
        self.say("no finished run with this configuration: training one")
        with self.display() as display:
            result = train(config, self.data_dir, self.runs_dir, display)
        if result.interrupted:
            raise KeyboardInterrupt
        return result.run_dir / runs.LAST_FILE

    def _quantized(self, source: Path) -> Path:
        quant = QuantConfig(
            quantizer=self.ptq_quantizer,
            bits=self.config.quant.bits,
            act_bits=self.config.quant.act_bits,
            layer_bits=self.config.quant.layer_bits,
        )
        found = self._finished(settle_ptq(load_checkpoint(source), source, quant, PtqConfig(), None))
        if found is not None:
            return found
        result, _ = quantize_after_training(source, quant, PtqConfig(), None, self.data_dir, self.runs_dir)
        self.say(f"{result.run_dir.name}: quantized {source.parent.name} after training")
        return result.run_dir / runs.LAST_FILE

    def _finished(self, config: ExperimentConfig) -> Path | None:
        path = runs.find_finished(config.model_dump(mode="json"), self.runs_dir)
        if path is not None:
            self.say(f"{path.parent.name}: reused, its configuration is the same")
        return path

    def _compare(self, entries: list[str], paths: list[Path]) -> Comparison:
        limit = self.config.data.limit_test
        checkpoints = [load_checkpoint(path) for path in paths]
        outcomes = [evaluate_checkpoint(path, self.data_dir, limit_test=limit) for path in paths]
        first = outcomes[0]
        for outcome, entry in zip(outcomes, entries, strict=True):
            mine, theirs = first.network.facts.dataset, outcome.network.facts.dataset
            if (mine, first.evaluation.total) != (theirs, outcome.evaluation.total):
                raise ConfigError(
                    f"'{entry}' was tested on {outcome.evaluation.total} images of {theirs}, '{entries[0]}' on "
                    f"{first.evaluation.total} of {mine}; compare checkpoints with the same test images"
                )
        rows = [self._row(*item, first) for item in zip(entries, paths, checkpoints, outcomes, strict=True)]
        configs = [checkpoint.config.model_dump_json() for checkpoint in checkpoints]
        key = hashlib.sha256(json.dumps([entries, configs]).encode()).hexdigest()[:10]
        histories = [checkpoint.history for checkpoint in checkpoints]
        dataset, notice = first.network.facts.dataset, first.network.notice
        return Comparison(dataset, notice, first.evaluation.total, rows, histories, key)

    def _row(self, entry: str, path: Path, checkpoint: Checkpoint, outcome: Outcome, first: Outcome) -> Row:
        result, network = outcome.evaluation, outcome.network
        assert isinstance(network, Trained), entry  # packed files were refused before anything was trained
        summary = RunResult(path.parent, checkpoint).summary()
        hits = [o.evaluation.predictions == o.labels for o in (first, outcome)]
        return Row(
            method=entry if entry in METHODS else path.parent.name,
            run_dir=str(path.parent),
            bits=summary["bits"],
            act_bits=summary["act_bits"],
            accuracy=result.accuracy,
            accuracy_ci95=result.interval,
            delta=result.accuracy - first.evaluation.accuracy,
            mcnemar_p=mcnemar_p(*hits),
            loss=result.loss,
            weight_bytes=weight_bytes(network.model),
            images_per_second=summary["images_per_second"],
        )


def write_comparison(comparison: Comparison, document: dict[str, Any], png: bytes, runs_dir: Path) -> Path:
    """Write `compare.json` and `compare.png`; returns their folder. Raises TrainingError."""
    folder = runs_dir / f"compare-{comparison.key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {folder}: {error.strerror}; choose another --runs-dir") from None
    write_atomically(folder / "compare.png", png)
    write_atomically(folder / "compare.json", (json.dumps(document, indent=2) + "\n").encode())
    return folder
