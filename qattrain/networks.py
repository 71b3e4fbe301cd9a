"""A network as CKPT names it: a checkpoint, or a packed file, which holds only its integers."""

from dataclasses import dataclass
from pathlib import Path

from qattrain.checkpoint import Checkpoint, load_checkpoint, restore_model
from qattrain.config import FLOAT_BITS
from qattrain.data import DIGITS_NAME
from qattrain.export import ModelFacts, is_packed, load_packed
from qattrain.integer import IntegerModel
from qattrain.lowering import lower
from qattrain.model import LeNet, plan_layers


@dataclass(frozen=True)
class Trained:
    """A network that torch can evaluate. checkpoint: what it came from."""

    checkpoint: Checkpoint
    model: LeNet

    @property
    def facts(self) -> ModelFacts:
        config, history = self.checkpoint.config, self.checkpoint.history
        accuracy = history[-1]["test_accuracy"] if history else None
        return ModelFacts(config.model.name, config.data.dataset, self.checkpoint.class_names, accuracy)

    @property
    def notice(self) -> str | None:
        return self.checkpoint.notice

    @property
    def limit_test(self) -> int | None:
        """How many test images its run used; None: all."""
        return self.checkpoint.config.data.limit_test

    @property
    def quantized(self) -> bool:
        """Whether every layer has 1 to 8 bits."""
        return FLOAT_BITS not in plan_layers(self.checkpoint.config.quant).layer_bits.values()

    def integers(self) -> IntegerModel:
        """Raises ExportError if a layer is float."""
        return lower(self.model)


@dataclass(frozen=True)
class Packed:
    """A network of integers only."""

    facts: ModelFacts
    model: IntegerModel
    limit_test: int | None = None
    quantized: bool = True

    @property
    def notice(self) -> str | None:
        """That it is no MNIST network, where it is not: why, only the run knows."""
        is_stand_in = self.facts.dataset == DIGITS_NAME
        return "This network was trained on scikit-learn's digits, not on MNIST." if is_stand_in else None

    def integers(self) -> IntegerModel:
        return self.model


Network = Trained | Packed


def load_network(path: Path) -> Network:
    """Read and verify the file. Raises CheckpointError."""
    if is_packed(path):
        model, facts = load_packed(path)
        return Packed(facts, model)
    checkpoint = load_checkpoint(path)
    return Trained(checkpoint, restore_model(checkpoint, str(path)))
