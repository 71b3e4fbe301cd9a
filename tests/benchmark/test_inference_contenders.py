"""The inference contenders compute what they claim to."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from qattrain.benchmark.inference import (
    BATCHES,
    INFERENCE,
    ORDERS,
    classify,
    float_onnx,
    one_thread_session,
    static_int8_onnx,
)
from qattrain.benchmark.rounds import Workload, synthetic_images
from qattrain.benchmark.training import plain_net
from qattrain.files import compiler as compiling

DATA = synthetic_images(64)
REAL = DATA.images.numpy().astype(np.float32) / np.float32(255)


def expected() -> np.ndarray:
    with torch.no_grad():
        return plain_net()(torch.from_numpy(REAL)).numpy()


@pytest.mark.parametrize("order", ORDERS)
def test_the_float_net_as_onnx_is_the_float_net(order: str) -> None:
    (logits,) = one_thread_session(float_onnx(plain_net(), order))(REAL)
    np.testing.assert_allclose(logits, expected(), atol=1e-5)


def test_every_int8_form_is_near_the_float_net_and_smaller() -> None:
    forms = static_int8_onnx(plain_net(), REAL)
    size = len(float_onnx(plain_net(), ORDERS[0]))
    for name, content in forms.items():
        assert len(content) < size / 2, name
        (logits,) = one_thread_session(content)(REAL)
        assert np.corrcoef(logits.ravel(), expected().ravel())[0, 1] > 0.95, name


@pytest.mark.parametrize("name", ["torch-fp32", "onnx", "c-packed", "c-int8"])
def test_contenders_are_measured_at_both_batch_sizes(name: str) -> None:
    if name.startswith("c-") and compiling.find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    (contender,) = (contender for contender in INFERENCE if contender.name == name)
    assert contender.batches == BATCHES
    with ExitStack() as stack:
        ready = contender.build(Workload(DATA, DATA, 1, "fp32", stack))
        assert tuple(ready) == BATCHES
        assert all(one.measure() > 0 for one in ready.values())


def test_classify_shows_every_image_once_in_batches_of_that_size() -> None:
    seen: list[int] = []
    classify(lambda images: seen.append(len(images)), REAL, 10)
    assert seen == [10] * 6 + [4]
