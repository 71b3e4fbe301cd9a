"""Methods side by side on the same test images: float, quantized after training, trained quantized, any checkpoint."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qattrain.config import FLOAT_BITS, ExperimentConfig, PtqConfig, QuantConfig, is_float
from qattrain.data import load_dataset
from qattrain.errors import ConfigError, TrainingError, write_errors
from qattrain.evaluation.checkpoints import Outcome, evaluate_network
from qattrain.evaluation.metrics import mcnemar_p
from qattrain.evaluation.networks import Trained
from qattrain.files import records, write_atomically
from qattrain.files.stopping import SIGNALS, Stopped
from qattrain.layers.network import plan_layers, weight_bytes
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint, restore_model
from qattrain.training.ptq import quantize, settle_ptq
from qattrain.training.run import resolve, resume, train
from qattrain.training.session import Display, RunResult

SEPARATOR = "vs"
METHODS = ("fp32", "ptq", "qat")


@dataclass(frozen=True)
class Row:
    """One method, its run and its results. delta: accuracy minus the first row's. mcnemar_p: against the first row."""

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
    """rows: in the order asked for. histories: one dict per epoch of each run. key: hash of all configurations."""

    dataset: str
    notice: str | None
    test_images: int
    rows: list[Row]
    histories: list[list[dict[str, Any]]]
    key: str


class Comparer:
    """Finds or makes the runs. `say` is called with a line on each; `display` makes the display for a training."""

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
        self.networks: dict[Path, Trained] = {}  # each is loaded once
        self.said: set[str] = set()

    def run(self, methods: list[str]) -> Comparison:
        """Compare `methods`: fp32, ptq, qat, or checkpoints. Raises any QattrainError."""
        entries = [method for method in methods if method != SEPARATOR]
        if len(entries) < 2:
            raise ConfigError(
                f"compare {' '.join(methods)!r}: give at least two of {', '.join(METHODS)}, checkpoints or runs, "
                "for example: qattrain compare fp32 vs qat"
            )
        # Names and files first: a typing mistake must not show after ten minutes of training.
        paths = {entry: runs.find_checkpoint(entry, self.runs_dir) for entry in entries if entry not in METHODS}
        for path in paths.values():
            self._network(path)
        quant, chain = plan_layers(self.config.model, self.config.quant).quant, self.config.model.chain
        if "qat" in entries and is_float(quant, chain):
            raise ConfigError("--bits 32: 'qat' would be the float network; allowed: 1 to 8")
        if "fp32" in entries or "ptq" in entries:
            paths["fp32"] = self._trained(self.config.model_copy(update={"quant": QuantConfig(bits=FLOAT_BITS)}))
        if "ptq" in entries:
            paths["ptq"] = self._quantized(paths["fp32"])
        if "qat" in entries:
            paths["qat"] = self._trained(self.config)
        return self._compare(entries, [paths[entry] for entry in entries])

    def _network(self, path: Path) -> Trained:
        if path not in self.networks:
            checkpoint = load_checkpoint(path)  # which refuses packed files
            self.networks[path] = Trained(checkpoint, restore_model(checkpoint, str(path)))
        return self.networks[path]

    def _trained(self, config: ExperimentConfig) -> Path:
        settled, _, _ = resolve(config, self.data_dir)
        if found := self._finished(settled):
            return found
        begun = runs.find_begun(settled.model_dump(mode="json"), self.runs_dir)
        with self.display() as display:
            if begun is not None:
                self.say(f"{begun.name}: not finished, its configuration is the same; resuming it")
                result = resume(str(begun), self.data_dir, self.runs_dir, display, {}, None)
            else:
                self.say("no run with this configuration: training one")
                result = train(config, self.data_dir, self.runs_dir, display)
        if result.interrupted:
            raise Stopped(result.signal or SIGNALS[0])
        return result.run_dir / runs.LAST_FILE

    def _quantized(self, source: Path) -> Path:
        asked = {key: getattr(self.config.quant, key) for key in ("bits", "act_bits", "layer_bits")}
        quant, checkpoint = QuantConfig(quantizer=self.ptq_quantizer, **asked), self._network(source).checkpoint
        config = settle_ptq(checkpoint.config, len(checkpoint.history), str(source), quant, PtqConfig(), None)
        if found := self._finished(config):
            return found
        dataset = load_dataset(config.data.spec, self.data_dir)
        result, _ = quantize(checkpoint, source, config, dataset, self.runs_dir)
        self.say(f"{result.run_dir.name}: quantized {source.parent.name} after training")
        self._warn(result.checkpoint)
        return result.run_dir / runs.LAST_FILE

    def _finished(self, config: ExperimentConfig) -> Path | None:
        path = runs.find_finished(config.model_dump(mode="json"), self.runs_dir, self._say_once)
        if path is not None:
            self.say(f"{path.parent.name}: reused, its configuration is the same")
            self._warn(self._network(path).checkpoint)
        return path

    def _say_once(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.say(line)

    def _warn(self, checkpoint: Checkpoint) -> None:
        for warning in checkpoint.warnings:
            self.say(f"warning: {warning}")

    def _compare(self, entries: list[str], paths: list[Path]) -> Comparison:
        limit = self.config.data.limit_test
        outcomes = {
            path: evaluate_network(self._network(path), path, self.data_dir, limit_test=limit)
            for path in dict.fromkeys(paths)
        }
        first = outcomes[paths[0]]
        dataset, notice, total = first.network.facts.dataset, first.network.notice, first.evaluation.total
        for path, entry in zip(paths, entries, strict=True):
            other, images = outcomes[path].network.facts.dataset, outcomes[path].evaluation.total
            if (dataset, total) != (other, images):
                raise ConfigError(
                    f"'{entry}' was tested on {images} images of {other}, '{entries[0]}' on {total} of {dataset}; "
                    "compare checkpoints with the same test images"
                )
        rows = [self._row(entry, path, outcomes[path], first) for entry, path in zip(entries, paths, strict=True)]
        checkpoints = [self._network(path).checkpoint for path in paths]
        configs = [checkpoint.config.model_dump_json() for checkpoint in checkpoints]
        key = hashlib.sha256(json.dumps([entries, configs]).encode()).hexdigest()[:10]
        return Comparison(dataset, notice, total, rows, [checkpoint.history for checkpoint in checkpoints], key)

    def _row(self, entry: str, path: Path, outcome: Outcome, first: Outcome) -> Row:
        result, network = outcome.evaluation, self._network(path)
        summary = RunResult(path.parent, network.checkpoint).summary()
        return Row(
            method=entry if entry in METHODS else path.parent.name,
            run_dir=str(path.parent),
            bits=summary["bits"],
            act_bits=summary["act_bits"],
            accuracy=result.accuracy,
            accuracy_ci95=result.interval,
            delta=result.accuracy - first.evaluation.accuracy,
            mcnemar_p=mcnemar_p(*(one.evaluation.predictions == one.test.labels for one in (first, outcome))),
            loss=result.loss,
            weight_bytes=weight_bytes(network.model),
            images_per_second=summary["images_per_second"],
        )


def write_comparison(comparison: Comparison, document: dict[str, Any], png: bytes, runs_dir: Path) -> Path:
    """Write `compare.json` and `compare.png`; returns their folder. Raises TrainingError."""
    folder = runs_dir / f"compare-{comparison.key}"
    with write_errors(TrainingError, f"cannot make {folder}", "choose another --runs-dir"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.png", png)
    records.write(folder / runs.COMPARISON_FILE, runs.COMPARISON_KIND, document)
    return folder
