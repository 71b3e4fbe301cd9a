"""Every image counts once, intervals and p-values are the textbook's, and ties go to the lowest class."""

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from qattrain.config import ModelConfig, QuantConfig
from qattrain.data.dataset import ImageSet
from qattrain.evaluation.metrics import (
    CACHED_BATCH,
    EVALUATION_BATCH,
    errors_by_class,
    evaluate,
    hardest_images,
    in_parts,
    mcnemar_p,
    wilson_interval,
)
from qattrain.evaluation.networks import torch_predictor
from qattrain.layers.network import build_model


def images_of(count: int) -> ImageSet:
    """Images whose first two pixels spell their number, with labels 0..9 in turn."""
    numbers = torch.arange(count)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 256, numbers // 256
    return ImageSet(images, numbers % 10)


def numbers_in(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].long() + 256 * images[:, 0, 0, 1].long()


def exact_p(only_a: int, only_b: int) -> float:
    """Two-sided, in whole numbers: so many fair coins fall as unevenly as this, or more so."""
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2 ** (only_a + only_b))))


@given(total=st.integers(1, 20_000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(total: int, share: float) -> None:
    correct = round(total * share)
    expected = binomtest(correct, total).proportion_ci(0.95, "wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@given(total=st.integers(1, 20_000), share=st.floats(0, 1))
def test_the_interval_holds_the_accuracy_and_stays_within_0_and_1(total: int, share: float) -> None:
    correct = round(total * share)
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


@given(only_a=st.integers(0, 400), only_b=st.integers(0, 400), both=st.integers(0, 50), neither=st.integers(0, 50))
def test_the_p_value_is_the_exact_binomial_one_on_discordant_images(
    only_a: int, only_b: int, both: int, neither: int
) -> None:
    a = torch.tensor([True] * only_a + [False] * only_b + [True] * both + [False] * neither, dtype=torch.bool)
    b = torch.tensor([False] * only_a + [True] * only_b + [True] * both + [False] * neither, dtype=torch.bool)
    expected = exact_p(only_a, only_b)
    assert mcnemar_p(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p(a, b) == mcnemar_p(b, a)


def test_the_p_value_of_ten_thousand_discordant_images_comes_at_once() -> None:
    a = torch.arange(10_000) < 5_100
    start = time.process_time()
    p = mcnemar_p(a, ~a)
    assert time.process_time() - start < 1
    assert p == pytest.approx(exact_p(5_100, 4_900), rel=1e-9)


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_every_image_is_counted_once_partial_batch_included(count: int) -> None:
    data, seen = images_of(count), []

    def predict(images: Tensor) -> Tensor:
        assert 1 <= len(images) <= EVALUATION_BATCH
        seen.append(numbers_in(images))
        wrong = (numbers_in(images) == count - 1).long()  # the very last image is the only one taken for another class
        return F.one_hot((numbers_in(images) + wrong) % 10, 10) * 3.0

    result = evaluate(predict, data)
    assert torch.cat(seen).tolist() == list(range(count))
    assert (result.total, result.correct) == (count, count - 1)
    assert result.accuracy == (count - 1) / count
    assert result.predictions.dtype == torch.int64
    logits = F.one_hot(result.predictions, 10) * 3.0
    assert result.loss == pytest.approx(F.cross_entropy(logits.double(), data.labels).item(), rel=1e-12)
    assert result.interval == wilson_interval(count - 1, count)


@given(logits=st.lists(st.lists(st.integers(-2, 2), min_size=10, max_size=10), min_size=1, max_size=20))
def test_ties_go_to_the_lowest_class(logits: list[list[int]]) -> None:
    rows = torch.tensor(logits, dtype=torch.float32)
    result = evaluate(lambda images: rows[numbers_in(images)], images_of(len(logits)))
    assert result.predictions.tolist() == [row.index(max(row)) for row in logits]


def test_integer_logits_of_any_size_are_compared_exactly() -> None:
    rows = torch.tensor([[2**24, 2**24 + 1], [2**30 + 1, 2**30]], dtype=torch.int32)
    assert evaluate(lambda images: rows[numbers_in(images)], images_of(2)).predictions.tolist() == [1, 0]


def test_errors_are_counted_by_true_class_and_empty_classes_stay() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([0, 1, 1, 0, 3, 1])
    assert errors_by_class(predictions, labels, 5) == [(1, 2), (0, 1), (0, 0), (2, 3), (0, 0)]


def test_the_test_loss_does_not_depend_on_the_training_batch(tiny: Callable[..., Any], tmp_path: Any) -> None:
    still = {"train.lr": 1e-30, "train.epochs": 1, "train.weight_decay": 0.0, "quant.bits": 32}
    losses = {tiny(still | {"train.batch_size": size}).checkpoint.history[0]["test_loss"] for size in (1, 7, 200)}
    assert len(losses) == 1, tmp_path


@pytest.mark.parametrize("line", ["conv 6 5x5, pool 2, fc 20, fc", "conv 4 3x3 bn, dw 3x3 bn, avgpool, fc"])
@pytest.mark.parametrize(("quantizer", "bits"), [("lsq", 4), ("affine", 2), ("pow2", 8), ("lsq", 1)])
def test_a_quantized_network_gives_the_same_logits_in_parts(line: str, quantizer: str, bits: int) -> None:
    torch.manual_seed(0)
    quant = QuantConfig(bits=bits, quantizer=quantizer) if bits > 1 else QuantConfig(bits=1, act_bits=2)
    model = build_model(ModelConfig(name=line), quant, 10)
    images = torch.randint(0, 256, (2 * CACHED_BATCH + 7, 1, 28, 28), dtype=torch.uint8)
    model(images[:50])  # scales are initialized from the first batch
    predict = torch_predictor(model)
    expected = predict(images)
    assert len(expected.unique()) > 5
    assert torch.equal(in_parts(predict)(images), expected)


def test_errors_can_be_spread_over_their_kinds() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([1, 1, 1, 2, 1, 0])
    probabilities = F.one_hot(predicted, 3).double() * 0.5 + torch.linspace(0.1, 0.2, 6).unsqueeze(1)
    test = ImageSet(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), labels)
    worst = [hard.index for hard in hardest_images(probabilities, test, ("a", "b", "c"))]
    assert worst == [0, 1, 2, 3, 5]
    spread = [hard.index for hard in hardest_images(probabilities, test, ("a", "b", "c"), spread=True)]
    assert spread == [0, 3, 5, 1, 2]
    assert [hard.index for hard in hardest_images(probabilities, test, ("a", "b", "c"), 2, spread=True)] == [0, 3]
