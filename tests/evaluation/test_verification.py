"""What differs from the integers is counted, and nothing else is."""

from typing import Any

import pytest
import torch
from integer_models import random_images
from torch import Tensor, nn

from qattrain.config import ModelConfig, QuantConfig
from qattrain.evaluation.metrics import EVALUATION_BATCH
from qattrain.evaluation.networks import compare_with_integers, torch_predictor
from qattrain.integer import IntegerModel
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model

IMAGES = torch.from_numpy(random_images(20, 1))


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    net = build_model(ModelConfig(name="lenet-nano"), QuantConfig(quantizer="pow2"), 10)
    net(IMAGES)
    return net.eval()


def shifted(integers: IntegerModel, change: Any) -> Any:
    """A predictor whose integer logits are those of the model, changed."""

    def predict(images: Tensor) -> Tensor:
        logits = torch.from_numpy(integers.run(images.numpy())).double()
        change(images, logits)
        return logits * integers.logit_scale

    return predict


def test_equal_networks_have_no_mismatches_and_the_integers_predictions(net: nn.Sequential) -> None:
    integers = lower(net)
    found = compare_with_integers(torch_predictor(net), integers, IMAGES, net)
    assert (found.predictions, found.codes, found.logits) == (0, 0, 0)
    assert found.integer_predictions.tolist() == integers.run(IMAGES.numpy()).argmax(1).tolist()
    assert not any(module._forward_hooks for module in net.modules())


def test_codes_are_counted_only_where_a_model_shows_them(net: nn.Sequential) -> None:
    assert compare_with_integers(torch_predictor(net), lower(net), IMAGES).codes is None


def test_every_differing_code_and_logit_is_counted(net: nn.Sequential) -> None:
    integers = lower(net)
    expected = integers.trace(IMAGES.numpy())
    with torch.no_grad():
        net.conv1.bias += 0.3
    changed = lower(net).trace(IMAGES.numpy())
    found = compare_with_integers(torch_predictor(net), integers, IMAGES, net)
    differing = [a != b for a, b in zip(expected, changed, strict=True)]
    assert found.codes == sum(int(codes.sum()) for codes in differing[:-1]) > 0
    assert found.logits == differing[-1].any(1).sum() > 0
    assert found.predictions == (expected[-1].argmax(1) != changed[-1].argmax(1)).sum()


def test_one_logit_of_one_image_in_a_later_batch_is_found(net: nn.Sequential) -> None:
    integers = lower(net)
    images = IMAGES[:1].repeat(EVALUATION_BATCH + 3, 1, 1, 1)
    images[-1] = IMAGES[5]

    def change(batch: Tensor, logits: Tensor) -> None:
        if len(batch) == 3:
            logits[2, logits[2].argmin()] -= 1

    found = compare_with_integers(shifted(integers, change), integers, images)
    assert (found.predictions, found.codes, found.logits) == (0, None, 1)


def test_a_prediction_differs_only_if_the_class_does(net: nn.Sequential) -> None:
    integers = lower(net)

    def change(_batch: Tensor, logits: Tensor) -> None:
        logits[5, logits[5].argmin()] = logits[5].max() + 1
        logits[:5] += 1

    found = compare_with_integers(shifted(integers, change), integers, IMAGES)
    assert (found.predictions, found.logits) == (1, 6)


def test_no_images_have_no_mismatches(net: nn.Sequential) -> None:
    found = compare_with_integers(torch_predictor(net), lower(net), IMAGES[:0], net)
    assert (found.predictions, found.codes, found.logits, len(found.integer_predictions)) == (0, 0, 0, 0)


def test_hooks_are_gone_after_a_failure(net: nn.Sequential) -> None:
    def fail(_images: Tensor) -> Tensor:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        compare_with_integers(fail, lower(net), IMAGES, net)
    assert not any(module._forward_hooks for module in net.modules())
