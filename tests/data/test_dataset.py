from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qattrain.data import Dataset, ImageSet
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.runs.folder import LAST_FILE


def small_set(count: int) -> ImageSet:
    return ImageSet(torch.arange(count * 784).to(torch.uint8).reshape(count, 1, 28, 28), torch.arange(count))


def test_head_is_the_first_images_with_their_labels() -> None:
    head = small_set(5).head(3)
    assert torch.equal(head.images, small_set(5).images[:3])
    assert head.labels.tolist() == [0, 1, 2]


def test_head_of_none_or_too_many_is_everything() -> None:
    assert len(small_set(5).head(None).labels) == 5
    assert len(small_set(5).head(9).images) == 5


def test_to_moves_images_and_labels_and_keeps_their_types() -> None:
    moved = small_set(2).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert (moved.images.dtype, moved.labels.dtype) == (torch.uint8, torch.int64)


def test_classes_counts_the_names() -> None:
    assert Dataset("few", ("a", "b", "c"), lambda: small_set(1), lambda: small_set(1)).classes == 3


def test_parts_are_read_once_and_only_when_used() -> None:
    read: list[str] = []

    def load(part: str) -> ImageSet:
        read.append(part)
        return small_set(len(read))

    dataset = Dataset("few", ("a",), lambda: load("train"), lambda: load("test"))
    assert read == []
    assert dataset.test is dataset.test
    assert read == ["test"]
    assert len(dataset.train.labels) == 2
    assert read == ["test", "train"]


def test_evaluating_a_checkpoint_does_not_read_the_training_images(
    tiny: Callable[..., Any], write_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, read, original = write_set("mnist", tmp_path), [], np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, *a, **k: (read.append(Path(path)), original(path, *a, **k))[1])
    run = tiny({"data.dataset": "mnist", "train.epochs": 1}).run_dir
    assert fake.files["train-images"] in read  # where the pixels are read, this sees it
    read.clear()
    assert evaluate_checkpoint(run / LAST_FILE, tmp_path).evaluation.total == 50
    assert fake.files["test-images"] in read
    assert fake.files["train-images"] not in read
