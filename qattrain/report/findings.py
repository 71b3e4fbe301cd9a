"""What a report says about each network: read from its files, and measured by evaluating and inspecting it now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qattrain.config import ExperimentConfig
from qattrain.errors import CheckpointError
from qattrain.evaluation.checkpoints import Outcome, evaluate_network
from qattrain.evaluation.inspection import Inspection, inspect_network
from qattrain.evaluation.metrics import Evaluation, mcnemar_p
from qattrain.evaluation.networks import Network, Trained, load_network
from qattrain.integer import ModelFacts
from qattrain.report.console import percent
from qattrain.report.sources import Subject
from qattrain.runs.folder import read_record

METHODS = {"float": "float", "qat": "QAT", "ptq": "PTQ"}


@dataclass(frozen=True, eq=False)
class Finding:
    """One network. delta, mcnemar_p: against the first one of the report, None if their test images differ.

    config, environment: as recorded, None and {} if they are not. history: one dict per epoch, empty for packed files.
    """

    subject: Subject
    kind: str  # float, QAT, PTQ, packed
    facts: ModelFacts
    evaluation: Evaluation
    inspection: Inspection
    delta: float | None
    mcnemar_p: float | None
    config: ExperimentConfig | None
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    notes: list[str]

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def bits(self) -> str:
        """Weight and activation bits, `4/8`; several, comma-separated, if layers differ."""
        layers = self.inspection.layers
        kinds = [[str(layer.bits) for layer in layers if layer.kind == kind] for kind in ("weight", "activation")]
        return "/".join(",".join(dict.fromkeys(bits)) for bits in kinds)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes or 0 for layer in self.inspection.layers)

    @property
    def trained_epochs(self) -> list[dict[str, Any]]:
        """Without epoch 0, the result of a quantization after training."""
        return [record for record in self.history if record["epoch"] > 0]


def investigate(subjects: Sequence[Subject], data_dir: Path, say: Callable[[str], None]) -> list[Finding]:
    """Evaluate and inspect every network; `say` gets a line on each. Raises CheckpointError, DataError, ConfigError."""
    networks = [_load(subject.path) for subject in subjects]  # an unusable one fails before anything is computed
    found: list[Finding] = []
    first: Outcome | None = None
    for subject, network in zip(subjects, networks, strict=True):
        say(f"evaluating {subject.name}")
        outcome = evaluate_network(network, subject.path, data_dir, limit_test=subject.test_images)
        first = first or outcome
        found.append(_finding(subject, outcome, first))
    return found


def _load(path: Path) -> Network:
    network = load_network(path)
    if isinstance(network, Trained) and not network.checkpoint.history:
        raise CheckpointError(
            f"{path} has no metrics: its first epoch was never finished; finish it with: "
            f"qattrain train --resume {path.parent}"
        )
    return network


def _finding(subject: Subject, outcome: Outcome, first: Outcome) -> Finding:
    network, evaluation = outcome.network, outcome.evaluation
    notes = [network.notice] if network.notice else []
    if subject.accuracy not in (None, evaluation.accuracy):
        notes.append(
            f"The comparison recorded an accuracy of {percent(subject.accuracy)} for {subject.name}, now it is "
            f"{percent(evaluation.accuracy)}: the run was replaced, or another of its checkpoints was compared."
        )
    if isinstance(network, Trained):
        notes += [f"{subject.name}: {text}" for text in network.checkpoint.warnings]
    delta = p = None
    if first.network.facts.dataset == network.facts.dataset and torch.equal(first.test.labels, outcome.test.labels):
        delta = evaluation.accuracy - first.evaluation.accuracy
        p = mcnemar_p(*(one.evaluation.predictions == one.test.labels for one in (first, outcome)))
    checkpoint = None
    if isinstance(network, Trained):
        checkpoint = network.checkpoint
        network.model.cpu()
    return Finding(
        subject=subject,
        kind=METHODS[checkpoint.config.method] if checkpoint else "packed",
        facts=network.facts,
        evaluation=evaluation,
        inspection=inspect_network(network, outcome.test, subject.name, evaluation.logits),
        delta=delta,
        mcnemar_p=p,
        config=checkpoint.config if checkpoint else None,
        environment=read_record(subject.path.parent).get("environment", {}) if checkpoint else {},
        history=checkpoint.history if checkpoint else [],
        notes=notes,
    )
