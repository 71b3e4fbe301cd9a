"""The real 60,000 and 10,000 images, where they are on disk."""

from pathlib import Path

import pytest
import torch

from qattrain.data import Dataset, choose_dataset, load_dataset

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def mnist(real_data_dir: Path) -> Dataset:
    return load_dataset("mnist", real_data_dir)


def test_mnist_has_its_known_sizes_sums_and_class_balance(mnist: Dataset) -> None:
    assert mnist.train.images.shape == (60_000, 1, 28, 28)
    assert mnist.test.images.shape == (10_000, 1, 28, 28)
    assert (int(mnist.train.labels.sum()), int(mnist.test.labels.sum())) == (267_236, 44_434)
    train_balance = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_balance = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.labels.bincount().tolist() == train_balance
    assert mnist.test.labels.bincount().tolist() == test_balance


def test_mnist_begins_with_its_known_images(mnist: Dataset) -> None:
    assert mnist.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert mnist.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert mnist.train.images[0, 0, 5, 12:20].tolist() == [3, 18, 18, 18, 126, 136, 175, 26]
    assert round(float(mnist.train.images.double().mean()) / 255, 4) == 0.1307


def test_auto_finds_it(real_data_dir: Path) -> None:
    assert choose_dataset(real_data_dir) == ("mnist", None)


def test_centres_of_mass_are_where_digits_are_put(mnist: Dataset) -> None:
    mass = mnist.test.images[:, 0].double()
    rows = (mass.sum(2) * torch.arange(28.0, dtype=torch.float64)).sum(1) / mass.sum((1, 2))
    assert abs(float(rows.mean()) - 14) < 0.05
