"""A checkpoint on its dataset's test images, through any engine."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qattrain.checkpoint import Checkpoint, load_checkpoint, restore_model
from qattrain.data import load_dataset
from qattrain.engines import ENGINES
from qattrain.environment import pick_device
from qattrain.errors import CheckpointError
from qattrain.evaluation import Evaluation, evaluate


@dataclass(frozen=True)
class Outcome:
    """What was evaluated, how it did, and the true labels (int64, on the CPU) it was held against."""

    checkpoint: Checkpoint
    evaluation: Evaluation
    labels: Tensor


def evaluate_checkpoint(path: Path, data_dir: Path, engine: str = "torch", limit_test: int | None = None) -> Outcome:
    """Evaluate the checkpoint in `path` on its dataset's test images, as many as its run used if no limit is given.

    Raises CheckpointError, DataError.
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
    return Outcome(checkpoint, evaluate(ENGINES[engine](model.to(device)), test), test.labels.cpu())
