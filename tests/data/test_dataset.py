from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qattrain.config import DataConfig
from qattrain.data import Dataset, ImageSet, check_identity, settle_data
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


def checked(**recorded: Any) -> None:
    """Checks a dataset of two classes, 1x28x28, digest abc..., against what a run recorded of it, with changes."""
    digest = "abc" * 16
    dataset = Dataset("folder:pets", ("cat", "dog"), lambda: small_set(1), lambda: small_set(1), digest=digest)
    values = {"class_names": ("cat", "dog"), "shape": (1, 28, 28), "digest": digest} | recorded
    check_identity(dataset, "runs/a/last.pt", **values)


def test_the_data_of_a_run_are_accepted() -> None:
    checked()
    checked(digest=None)


@pytest.mark.parametrize(
    ("recorded", "texts"),
    [
        ({"class_names": ("cat", "dog", "cow")}, ("was trained for 3 classes", "folder:pets has 2")),
        ({"class_names": ("cat", "cow")}, ("class 1 'cow'", "it is 'dog'")),
        ({"shape": (3, 28, 32)}, ("images of 3x28x32", "has 1x28x28")),
        ({"digest": "def" * 16}, ("folder:pets has changed", "abcabcabcabc", "was defdefdefdef")),
    ],
    ids=["count", "names", "shape", "digest"],
)
def test_other_data_are_refused_by_name(
    recorded: dict[str, Any], texts: tuple[str, ...], raises_data_error: Any
) -> None:
    with raises_data_error("runs/a/last.pt", "folder:pets", "use the images it was trained on", *texts):
        checked(**recorded)


def test_the_identity_is_recorded_and_another_one_refused(raises_data_error: Any) -> None:
    dataset = Dataset("npz:a", ("x", "y"), lambda: small_set(1), lambda: small_set(1), (3, 8, 9), "abc")
    data = DataConfig(dataset="npz:a", augment="none")
    settled = settle_data(data, dataset)
    assert settled == DataConfig(dataset="npz:a", augment="none", image_size="8x9", color=True, digest="abc")
    assert settled.spec == "npz:a@8x9,color"
    assert settle_data(settled, dataset) == settled
    with raises_data_error("npz:a", "data.digest = def", "leave data.digest out"):
        settle_data(settled.model_copy(update={"digest": "def"}), dataset)


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
    monkeypatch.setattr(
        np, "fromfile", lambda file, *a, **k: (read.append(Path(file.name)), original(file, *a, **k))[1]
    )
    run = tiny({"data.dataset": "mnist", "train.epochs": 1}).run_dir
    assert fake.files["train-images"] in read  # where the pixels are read, this sees it
    read.clear()
    assert evaluate_checkpoint(run / LAST_FILE, tmp_path).evaluation.total == 50
    assert fake.files["test-images"] in read
    assert fake.files["train-images"] not in read
