import torch

from qattrain.data import Dataset, ImageSet


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
    assert Dataset("few", ("a", "b", "c"), small_set(1), small_set(1)).classes == 3
