"""A checkpoint on its dataset's test images, through any engine."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qattrain.checkpoint import Checkpoint, load_checkpoint, restore_model
from qattrain.config import FLOAT_BITS
from qattrain.data import load_dataset
from qattrain.engines import ENGINES
from qattrain.environment import pick_device
from qattrain.errors import CheckpointError
from qattrain.evaluation import Evaluation, evaluate
from qattrain.lowering import lower
from qattrain.model import plan_layers
from qattrain.verification import Mismatches, compare_with_integers


@dataclass(frozen=True)
class Outcome:
    """What was evaluated, how it did, and the true labels (int64, on the CPU) it was held against.

    mismatches: against the integers, if asked for and if every layer has them.
    """

    checkpoint: Checkpoint
    evaluation: Evaluation
    labels: Tensor
    mismatches: Mismatches | None


def evaluate_checkpoint(
    path: Path, data_dir: Path, engine: str = "torch", limit_test: int | None = None, verify: bool = False
) -> Outcome:
    """Evaluate the checkpoint in `path` on its dataset's test images, as many as its run used if no limit is given.

    verify: also count what differs from the integers. Raises CheckpointError, DataError, ExportError.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    model = restore_model(checkpoint, str(path))
    dataset = load_dataset(config.data.dataset, data_dir)
    if dataset.classes != len(checkpoint.class_names):
        raise CheckpointError(
            f"{path} tells {len(checkpoint.class_names)} classes apart, "
            f"{dataset.name} in {data_dir} has {dataset.classes}; use the data it was trained on"
        )
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)  # float sums are equal for equal numbers of threads
    device = pick_device("auto")  # wherever it was trained: a GPU's result does not need that GPU
    test = dataset.test.head(limit_test or config.data.limit_test).to(device)
    result = evaluate(ENGINES[engine](model.to(device)), test)
    mismatches = None
    if verify and FLOAT_BITS not in plan_layers(config.quant).layer_bits.values():
        mismatches = compare_with_integers(engine, model, lower(model), test.images)
    return Outcome(checkpoint, result, test.labels.cpu(), mismatches)
