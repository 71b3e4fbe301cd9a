from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits as load_from_sklearn
from torch import Tensor

from qattrain.data import Dataset, load_dataset
from qattrain.data.digits import load_digits


def boxes(dataset: Dataset) -> list[bytes]:
    return [bytes(image.flatten().tolist()) for part in (dataset.train, dataset.test) for image in part.images]


def centres(images: Tensor) -> Tensor:
    """(N, 2): centre of mass, row and column."""
    mass = images[:, 0].double()
    position = torch.arange(28, dtype=torch.float64)
    total = mass.sum((1, 2))
    return torch.stack(((mass.sum(2) * position).sum(1) / total, (mass.sum(1) * position).sum(1) / total), 1)


def test_split_is_fixed_stratified_and_complete() -> None:
    dataset = load_digits()
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1437, 360)
    total = torch.from_numpy(load_from_sklearn().target).bincount()
    assert torch.equal(dataset.train.labels.bincount() + dataset.test.labels.bincount(), total)
    assert ((dataset.test.labels.bincount() - total * 360 / 1797).abs() < 1).all()


def test_no_image_is_in_both_parts() -> None:
    images = boxes(load_digits())
    assert len(set(images)) == len(images) == 1797


def test_neither_seeds_nor_folders_change_it() -> None:
    first = load_digits()
    torch.manual_seed(5)
    np.random.default_rng(5)
    second = load_dataset("digits", Path("/no/such/folder"))
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)


def test_every_image_is_its_enlarged_original_uncut() -> None:
    """Compared with torch's own bilinear enlargement: the same mass, which cropping would reduce."""
    originals = torch.from_numpy(load_from_sklearn().images)[:, None] * (255 / 16)
    enlarged = F.interpolate(originals, size=(20, 20), mode="bilinear", align_corners=False)
    expected = (enlarged + 0.5).floor().sum((1, 2, 3)).sort().values
    dataset = load_digits()
    masses = torch.cat((dataset.train.images, dataset.test.images)).double().sum((1, 2, 3)).sort().values
    assert (masses - expected).abs().max() <= 40  # codes at most one apart, where a half is rounded


def test_enlargement_agrees_with_torch_pixel_by_pixel() -> None:
    from qattrain.data.digits import _enlarge

    originals = load_from_sklearn().images[:200]
    enlarged = F.interpolate(torch.from_numpy(originals)[:, None] * (255 / 16), size=(20, 20), mode="bilinear")
    difference = torch.from_numpy(_enlarge(originals.astype(np.int64))) - enlarged[:, 0]
    assert difference.abs().max() <= 0.5 + 1e-9
    assert difference.min() >= -0.5 + 1e-9 or not (difference == -0.5).any()  # a half goes up


def test_centres_of_mass_lie_where_those_of_mnist_do() -> None:
    dataset = load_digits()
    for part in (dataset.train, dataset.test):
        assert (centres(part.images) - 14).abs().max() <= 0.5 + 1e-9


def test_values_use_the_whole_range() -> None:
    images = load_digits().train.images
    assert (int(images.min()), int(images.max())) == (0, 255)
