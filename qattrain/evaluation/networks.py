"""The network in a checkpoint or a packed file, ENGINES that compute its logits, and whether they equal its integers.

To add an engine: write a context manager that takes a network and yields a predictor (and closes what it opened), and
one line in ENGINES.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qattrain.config import FLOAT_BITS, bits_by_layer
from qattrain.config.chain import Shape
from qattrain.data import DIGITS_NAME
from qattrain.errors import CheckpointError, ConfigError, ExportError
from qattrain.evaluation.metrics import EVALUATION_BATCH, Predictor
from qattrain.export import EXPORTERS
from qattrain.export.base import Exporter, Runner, settled_layout
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.packed import is_packed, load_packed
from qattrain.layers.quantized import QuantAvgPool2d, WeightLayer
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint, restore_model


@dataclass(frozen=True)
class Trained:
    """A network that torch can evaluate. checkpoint: the one it was restored from."""

    checkpoint: Checkpoint
    model: nn.Module

    @property
    def facts(self) -> ModelFacts:
        config, history = self.checkpoint.config, self.checkpoint.history
        accuracy = history[-1]["test_accuracy"] if history else None
        return ModelFacts(config.model.name, config.data.spec, self.checkpoint.class_names, accuracy)

    @property
    def notice(self) -> str | None:
        if self.checkpoint.history:
            return self.checkpoint.notice
        unfinished = "The first epoch of this run was never finished: the network has hardly learned anything."
        return f"{unfinished} {self.checkpoint.notice or ''}".rstrip()

    @property
    def limit_test(self) -> int | None:
        """Number of test images its run used; None: all."""
        return self.checkpoint.config.data.limit_test

    @property
    def quantized(self) -> bool:
        """Whether every layer has 1 to 8 bits."""
        config = self.checkpoint.config
        return FLOAT_BITS not in bits_by_layer(config.quant, config.model.chain).values()

    @property
    def input_shape(self) -> Shape:
        """(C, H, W) of its images."""
        return self.checkpoint.input_shape

    def integers(self) -> IntegerModel:
        """Raises ExportError if a layer is float."""
        return lower(self.model, self.checkpoint.input_shape)


@dataclass(frozen=True)
class Packed:
    """A network of integers only."""

    facts: ModelFacts
    model: IntegerModel
    limit_test: int | None = None
    quantized: bool = True

    @property
    def input_shape(self) -> Shape:
        """(C, H, W) of its images."""
        return self.model.input_shape

    @property
    def notice(self) -> str | None:
        """Said if the network was trained on the stand-in for MNIST; only the run knows why."""
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


def why_unusable(checkpoint: Checkpoint) -> str | None:
    """Why `qattrain eval` would refuse the network of a run that just ended; None if it would not."""
    try:
        network = Trained(checkpoint, restore_model(checkpoint, "this network"))
        if network.quantized:
            network.integers()
    except (CheckpointError, ExportError) as error:
        return str(error)
    return None


def torch_predictor(model: nn.Module) -> Predictor:
    """Predict with `model` on its own device: uint8 images (N, C, H, W) -> logits (N, classes).

    Puts the model into evaluation mode at every call. TF32 is off: its ten bits of mantissa cannot hold sums of codes.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        model.eval()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        logits: Tensor = model(images.to(device))
        return logits

    return predict


@contextmanager
def torch_engine(network: Network) -> Iterator[Predictor]:
    """Predict with the trained model itself. Raises ConfigError for a packed file, which has no real weights."""
    if isinstance(network, Packed):
        raise ConfigError(
            "--engine torch: a packed file holds only integers; leave the option out, or use --engine integer"
        )
    yield torch_predictor(network.model)


def integer_predictor(run: Runner, integers: IntegerModel) -> Predictor:
    """uint8 images (N, C, H, W) -> logits float64 (N, classes): those of `run` times `logit_scale`.

    With that factor the loss equals that of the real logits.
    """

    def predict(images: Tensor) -> Tensor:
        logits = torch.from_numpy(run(images.cpu().numpy())).to(images.device)
        return logits.double() * integers.logit_scale

    return predict


@contextmanager
def exported_engine(exporter: Exporter, network: Network) -> Iterator[Predictor]:
    """Export `network` in memory, in the exporter's default layout, and run that. Raises ExportError.

    For a line in ENGINES: `partial(exported_engine, EXPORTERS["onnx"])`.
    """
    integers = network.integers()
    files = exporter.write(integers, network.facts, settled_layout(exporter, None))
    with exporter.run(files) as run:
        yield integer_predictor(run, integers)


@contextmanager
def integer_engine(network: Network) -> Iterator[Predictor]:
    """Predict with the integers of `network`. Raises ExportError if a layer is float."""
    integers = network.integers()
    yield integer_predictor(integers.run, integers)


Engine = Callable[[Network], AbstractContextManager[Predictor]]

ENGINES: dict[str, Engine] = {
    "torch": torch_engine,
    "integer": integer_engine,
    "onnx": partial(exported_engine, EXPORTERS["onnx"]),
    "c": partial(exported_engine, EXPORTERS["c"]),
}


@dataclass(frozen=True)
class Mismatches:
    """What differs from IntegerModel. predictions: images with a different class. codes: hidden codes that differ, over
    all layers and images; None for an engine that does not expose them. logits: images with a different logit.

    integer_predictions: int64 (N,), the classes that IntegerModel predicts.
    """

    predictions: int
    codes: int | None
    logits: int
    integer_predictions: Tensor


def compare_with_integers(
    predict: Predictor, integers: IntegerModel, images: Tensor, shown: nn.Module | None = None
) -> Mismatches:
    """Run `predict` and `integers` on all `images` (uint8 (N, C, H, W)) and count what differs.

    shown: the model that `predict` calls, if its hidden codes are also to be compared.
    """
    codes = different = 0
    found_classes, expected_classes = [], []
    watching: AbstractContextManager[list[Tensor]] = nullcontext([]) if shown is None else _watched_codes(shown)
    with watching as seen:
        for batch in images.split(EVALUATION_BATCH):
            seen.clear()
            *hidden, logits = (torch.from_numpy(values) for values in integers.trace(batch.cpu().numpy()))
            # Engines return accumulators times the scale: dividing by it gives the integers back.
            found = torch.round(predict(batch).double().cpu() / integers.logit_scale).long()
            different += int((found != logits).any(1).sum())
            found_classes.append(found.argmax(1))
            expected_classes.append(logits.argmax(1))
            for given, expected in zip(seen[1:], hidden, strict=shown is not None):  # the first are the pixels
                codes += int((given.long().cpu().reshape(expected.shape) != expected).sum())
    integer_predictions = torch.cat(expected_classes)
    return Mismatches(
        predictions=int((torch.cat(found_classes) != integer_predictions).sum()),
        codes=None if shown is None else codes,
        logits=different,
        integer_predictions=integer_predictions,
    )


@contextmanager
def _watched_codes(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, every call of `model` appends the codes that each of its layers is given: pooled, if they are."""
    seen: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, WeightLayer | QuantAvgPool2d)]
    handles = [layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0].codes)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
