"""What a report knows of each network: from its files, and from evaluating and looking at it now."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qattrain.config import ExperimentConfig
from qattrain.errors import CheckpointError
from qattrain.evaluation.checkpoints import Outcome, evaluate_checkpoint, load_test_data
from qattrain.evaluation.inspection import Inspection, inspect_network
from qattrain.evaluation.metrics import Evaluation, mcnemar_p
from qattrain.evaluation.networks import Packed, Trained, load_network
from qattrain.integer import ModelFacts
from qattrain.report.console import percent
from qattrain.report.sources import Subject
from qattrain.runs import folder as runs


@dataclass(frozen=True, eq=False)
class Finding:
    """One network. delta, mcnemar_p: against the first one of the report, None where the test images are not the same.

    config, environment: as recorded, None where the file does not say. history: one dict an epoch, empty for packed
    files.
    """

    subject: Subject
    kind: str  # float, QAT, PTQ, packed
    facts: ModelFacts
    engine: str
    evaluation: Evaluation
    inspection: Inspection
    delta: float | None
    mcnemar_p: float | None
    config: ExperimentConfig | None
    environment: dict[str, Any] | None
    history: list[dict[str, Any]]
    notes: list[str]

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def bits(self) -> str:
        """Weight and activation bits; several where layers differ."""
        return "/".join(self._bits_of(kind) for kind in ("weight", "activation"))

    def _bits_of(self, kind: str) -> str:
        found = dict.fromkeys(str(layer.bits) for layer in self.inspection.layers if layer.kind == kind)
        return ",".join(found)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes or 0 for layer in self.inspection.layers)

    @property
    def trained_epochs(self) -> list[dict[str, Any]]:
        return [record for record in self.history if record["epoch"] > 0]


def investigate(subjects: Sequence[Subject], data_dir: Path, say: Callable[[str], None]) -> list[Finding]:
    """Evaluate and inspect every network; `say` gets a line on each. Raises CheckpointError, DataError, ConfigError."""
    for subject in subjects:  # what cannot be reported on shows before anything is computed
        network = load_network(subject.path)
        if isinstance(network, Trained) and not network.checkpoint.history:
            raise CheckpointError(
                f"{subject.path} has no metrics: its first epoch was never finished; go on with it: "
                f"qattrain train --resume {subject.path.parent}"
            )
    found: list[Finding] = []
    first: Outcome | None = None
    for subject in subjects:
        say(f"evaluating {subject.name}")
        outcome = evaluate_checkpoint(subject.path, data_dir, limit_test=subject.test_images)
        first = first or outcome
        found.append(_finding(subject, outcome, first, data_dir))
    return found


def _finding(subject: Subject, outcome: Outcome, first: Outcome, data_dir: Path) -> Finding:
    network, evaluation = outcome.network, outcome.evaluation
    paired = first.network.facts.dataset == network.facts.dataset and torch.equal(first.labels, outcome.labels)
    test = load_test_data(network, subject.path, data_dir).test.head(evaluation.total)
    notes = [network.notice] if network.notice else []
    if subject.accuracy not in (None, evaluation.accuracy):
        notes.append(
            f"The comparison recorded an accuracy of {percent(subject.accuracy or 0)} for {subject.name}, now it is "
            f"{percent(evaluation.accuracy)}: the run was replaced, or another of its checkpoints was compared."
        )
    checkpoint = None
    if isinstance(network, Trained):
        checkpoint = network.checkpoint
        network.model.cpu()
    hits = [o.evaluation.predictions == o.labels for o in (first, outcome)] if paired else None
    return Finding(
        subject=subject,
        kind=_kind(network),
        facts=network.facts,
        engine=outcome.engine,
        evaluation=evaluation,
        inspection=inspect_network(network, test, title=subject.name),
        delta=evaluation.accuracy - first.evaluation.accuracy if paired else None,
        mcnemar_p=mcnemar_p(*hits) if hits else None,
        config=checkpoint.config if checkpoint else None,
        environment=_environment(subject.path) if checkpoint else None,
        history=checkpoint.history if checkpoint else [],
        notes=notes,
    )


def _kind(network: Trained | Packed) -> str:
    if isinstance(network, Packed):
        return "packed"
    return {"float": "float", "qat": "QAT", "ptq": "PTQ"}[network.checkpoint.config.method]


def _environment(checkpoint: Path) -> dict[str, Any] | None:
    """As recorded beside the checkpoint; None where that file is not there, or not what a run writes."""
    try:
        recorded = json.loads((checkpoint.parent / runs.CONFIG_FILE).read_text(encoding="utf-8"))["environment"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if isinstance(recorded, dict) else None
