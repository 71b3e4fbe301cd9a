import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qattrain.data.dataset import ImageSet, batch_slices, class_quotas, epoch_order, split_validation
from qattrain.errors import ConfigError

SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 10_000)


def labelled(labels: list[int]) -> ImageSet:
    """Images whose first two pixels encode their position, so that a split can be traced."""
    images = torch.zeros((len(labels), 1, 28, 28), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)).to(torch.uint8)
    return ImageSet(images, torch.tensor(labels))


@given(st.integers(0, 300), SEEDS, EPOCHS)
def test_epoch_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert (order.dtype, order.device.type) == (torch.int64, "cpu")
    assert order.sort().values.tolist() == list(range(count))


@given(SEEDS, EPOCHS)
def test_epoch_order_depends_on_nothing_but_its_arguments(seed: int, epoch: int) -> None:
    first = epoch_order(200, seed, epoch)
    torch.rand(3)
    np.random.default_rng().random()
    assert torch.equal(first, epoch_order(200, seed, epoch))


@given(SEEDS, EPOCHS)
def test_neighbouring_seeds_and_epochs_give_unrelated_orders(seed: int, epoch: int) -> None:
    pairs = [(seed, epoch), (seed, epoch + 1), (seed + 1, epoch), (seed + 2**32, epoch)]
    assert len({tuple(epoch_order(200, *pair).tolist()) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32])
def test_swapping_seed_and_epoch_changes_the_order(seed: int) -> None:
    assert not torch.equal(epoch_order(200, seed, seed + 1), epoch_order(200, seed + 1, seed))


@given(st.integers(0, 500), st.integers(1, 600))
def test_slices_cover_everything_once_in_order(count: int, batch_size: int) -> None:
    slices = batch_slices(count, batch_size)
    assert [index for part in slices for index in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == batch_size for part in slices[:-1])
    assert all(0 < part.stop - part.start <= batch_size for part in slices)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.data())
def test_validation_split_is_disjoint_complete_and_stratified(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels) - 1))
    rest, held_out = split_validation(labelled(labels), count, seed=3)
    assert len(held_out.labels) == count
    positions = [part.images[:, 0, 0, 0].tolist() for part in (rest, held_out)]
    assert sorted(positions[0] + positions[1]) == list(range(len(labels)))
    assert all(part == sorted(part) for part in positions)
    for part, indices in zip((rest, held_out), positions, strict=True):
        assert part.labels.tolist() == [labels[index] for index in indices]
    for label in set(labels):
        share = count * labels.count(label) / len(labels)
        assert abs(held_out.labels.tolist().count(label) - share) < 1


def test_validation_split_follows_its_seed() -> None:
    train = labelled([index % 3 for index in range(120)])
    first, again, other = (split_validation(train, 30, seed)[1].images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [-1, 12, 13])
def test_validation_split_that_does_not_fit_is_a_config_error(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"val-split {count} .* 12 training images: choose 0 to 11") as caught:
        split_validation(labelled([0] * 12), count, seed=0)
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=100), st.data())
def test_quotas_sum_to_the_count_and_exceed_no_class(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    quotas = class_quotas(np.array(labels, dtype=np.int64), count)
    assert sum(quotas.values()) == count
    assert all(0 <= quota <= labels.count(label) for label, quota in quotas.items())
