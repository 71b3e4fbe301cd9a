"""What a report says about each network: read from its files, and measured by evaluating and inspecting it now."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qattrain.config import FLOAT_BITS, ExperimentConfig
from qattrain.data import Dataset, ImageSet
from qattrain.errors import CheckpointError
from qattrain.evaluation.checkpoints import Outcome, evaluate_network
from qattrain.evaluation.inspection import Inspection, inspect_network
from qattrain.evaluation.metrics import Evaluation, HardImage, hardest_images, mcnemar_p
from qattrain.evaluation.networks import Network, Trained, load_network
from qattrain.integer import ModelFacts
from qattrain.report.console import percent
from qattrain.report.sources import Subject
from qattrain.runs.folder import read_record

# Wrong answers that a page holds: as many as this, fewer if the images are large.
LEAST_WRONG, MOST_WRONG, MOST_PIXELS = 20, 120, 250_000
AVERAGE = "avg"  # what names of averages begin with; their codes have 8 bits unless others were asked for
METHODS = {"float": "float", "qat": "QAT", "ptq": "PTQ"}


@dataclass(frozen=True, eq=False)
class Finding:
    """One network. test: the images it was evaluated on, with their labels. wrong: some of those it gets wrong.

    delta, mcnemar_p: against the first one of the report, None if their test images differ.

    config, environment: as recorded, None and {} if they are not. history: one dict per epoch, empty for packed files.
    """

    subject: Subject
    kind: str  # float, QAT, PTQ, packed
    facts: ModelFacts
    test: ImageSet
    evaluation: Evaluation
    inspection: Inspection
    wrong: list[HardImage]
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
    def correct(self) -> Tensor:
        """Which of the test images it gets right, bool (N,)."""
        return self.evaluation.predictions == self.test.labels

    @property
    def label(self) -> str:
        """`float`, `4-bit QAT`, `2/4-bit PTQ` (weights, activations), `mostly 4-bit QAT` if some layers differ."""
        usual, others = self._layer_bits()
        if set(usual) == {FLOAT_BITS} and not others:
            return "float"
        bits = "/".join(str(bits) for bits in dict.fromkeys(usual))
        mostly = "mostly " if any(not layer.startswith(AVERAGE) for layer in others) else ""
        return f"{mostly}{bits}-bit {self.kind}"

    @property
    def bits(self) -> str:
        """Of weights and activations, and of the layers that have others: `4 / 4 (avg1: 8)`."""
        usual, others = self._layer_bits()
        exempt = ", ".join(f"{layer}: {bits}" for layer, bits in others.items())
        return " / ".join(map(str, usual)) + (f" ({exempt})" if exempt else "")

    def _layer_bits(self) -> tuple[list[int], dict[str, int]]:
        """The usual bits of weights and of activations, and the layers that have others."""
        usual: list[int] = []
        others: dict[str, int] = {}
        for kind in ("weight", "activation"):
            bits = {layer.layer: layer.bits for layer in self.inspection.layers if layer.kind == kind}
            if bits:
                counts = Counter(own for layer, own in bits.items() if not layer.startswith(AVERAGE))
                usual.append((counts or Counter(bits.values())).most_common(1)[0][0])
                others |= {layer: own for layer, own in bits.items() if own != usual[-1]}
        return usual, others

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
    findings: list[Finding] = []
    first: Outcome | None = None
    loaded: dict[str, Dataset] = {}
    for subject, network in zip(subjects, networks, strict=True):
        say(f"evaluating {subject.name}")
        outcome = evaluate_network(network, subject.path, data_dir, limit_test=subject.test_images, loaded=loaded)
        first = first or outcome
        findings.append(_finding(subject, outcome, first))
    return findings


def same_images(findings: Sequence[Finding]) -> bool:
    """Whether all networks were evaluated on the same test images, so that they can be compared image by image."""
    return all(finding.delta is not None for finding in findings)


def short_names(findings: Sequence[Finding]) -> list[str]:
    """What to call each network where there is little room: its label, unless another one has the same."""
    labels = [finding.label for finding in findings]
    if len(set(labels)) == len(labels):
        return labels
    return [finding.name for finding in findings]


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
    most = max(LEAST_WRONG, min(MOST_WRONG, MOST_PIXELS // outcome.test.images[0].numel()))
    return Finding(
        subject=subject,
        kind=METHODS[checkpoint.config.method] if checkpoint else "packed",
        facts=network.facts,
        test=outcome.test,
        evaluation=evaluation,
        inspection=inspect_network(network, outcome.test, subject.name, evaluation.logits),
        wrong=hardest_images(evaluation.logits.softmax(1), outcome.test, network.facts.class_names, most, spread=True),
        delta=delta,
        mcnemar_p=p,
        config=checkpoint.config if checkpoint else None,
        environment=read_record(subject.path.parent).get("environment", {}) if checkpoint else {},
        history=checkpoint.history if checkpoint else [],
        notes=notes,
    )
