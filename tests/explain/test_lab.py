"""The laboratory: which data it takes, and that it trains as the tool does, the same every time."""

from pathlib import Path

import pytest
import torch

from qattrain.config import ModelConfig, QuantConfig
from qattrain.data import Dataset, ImageSet
from qattrain.errors import ConfigError
from qattrain.explain.lab import TEST_IMAGES, TRAIN_IMAGES, Lab
from qattrain.layers.network import weight_layers


def test_without_mnist_on_disk_the_digits_are_taken_and_nothing_is_downloaded(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.dataset.name == "digits"
    assert lab.data_line == "1,437 training and 360 test images of digits"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="nosuch"):
        _ = Lab(tmp_path, "nosuch").dataset


def test_mnist_on_disk_is_taken_in_part(mnist_dir: Path) -> None:
    data = Lab(mnist_dir).dataset
    assert (data.name, len(data.train.labels), len(data.test.labels)) == ("mnist", TRAIN_IMAGES, TEST_IMAGES)
    assert Lab(mnist_dir, "digits").dataset.name == "digits"


def test_a_training_is_the_same_twice_and_watched_at_every_step(tmp_path: Path) -> None:
    lab, epochs = Lab(tmp_path), list[int]()
    one = lab.train(QuantConfig(bits=4), 1, lambda _model, epoch: epochs.append(epoch))
    other = lab.train(QuantConfig(bits=4), 1)
    assert epochs == [1] * 45  # batches of 32 images
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_images_of_another_shape_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet(torch.zeros(2, 3, 9, 9, dtype=torch.uint8), torch.tensor([0, 1]))
    colour = Dataset("photos", ("a", "b"), lambda: images, lambda: images, (3, 9, 9))
    monkeypatch.setattr("qattrain.explain.lab.load_dataset", lambda _name, _folder: colour)
    with pytest.raises(ConfigError, match=r"photos: its images are 3x9x9.*28x28; allowed: auto, digits"):
        _ = Lab(tmp_path, "photos").dataset


def test_another_network_is_trained_and_may_be_changed_before(tmp_path: Path) -> None:
    lab, seen = Lab(tmp_path), []
    model = lab.train(QuantConfig(bits=4), 1, network=ModelConfig(name="fc 4 bn, fc"), prepare=seen.append)
    assert seen == [model]
    assert list(weight_layers(model)) == ["fc1", "fc2"]


def test_weights_quantized_after_training_are_those_of_the_float_network(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    float_model = lab.train(QuantConfig(bits=32), 1)
    quantized = lab.quantized_after_training(float_model, QuantConfig(quantizer="affine", bits=8))
    for name, tensor in float_model.state_dict().items():
        assert torch.equal(tensor, quantized.state_dict()[name]), name
    assert abs(lab.accuracy(quantized) - lab.accuracy(float_model)) < 0.05
