"""Random chains: torch evaluates what the integers compute, but for codes that provably lie at a half."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from random_chains import Case, noise, random_case, trained

from qattrain.evaluation.networks import _watched_codes, compare_with_integers, torch_predictor
from qattrain.integer import INT32_MAX
from qattrain.integer.lowering import lower
from qattrain.quant import QUANTIZERS

IMAGES = 100
NEAR = Fraction(1, 2**20)  # relative distance to a half within which float rounding may go the other way


def differing(case: Case, seed: int, images: int = IMAGES) -> Counter[str]:
    """What differs on noise, counted. Asserts that every layer makes of torch's codes what torch makes of them, but at
    a half: |v - n - 1/2| <= 2^-20 v for v = acc m / 2^k, in exact fractions.
    """
    net, x = trained(case, seed), noise(case, images, seed)
    integers = lower(net, case.shape)
    with _watched_codes(net) as seen, torch.no_grad():
        logits = net(x).double().numpy()
    given = [codes.numpy().astype(np.int64) for codes in seen]
    for layer, shape, codes, found in zip(integers.layers, integers.shapes, given, given[1:], strict=False):
        inputs = codes.reshape(len(x), *(shape if layer.kind != "linear" else (-1,)))
        acc = layer.accumulate(inputs)
        assert np.abs(acc).max() <= layer.accumulator_bound <= INT32_MAX
        how = layer.requantization
        assert how is not None
        expected = how.apply(acc)
        codes_found = found.reshape(expected.shape)
        for index in zip(*np.nonzero(expected != codes_found), strict=True):
            channel = index[1] % len(how.shift)  # an average has one multiplier
            v = Fraction(int(acc[index]) * int(how.multiplier[channel]), 2 ** int(how.shift[channel]))
            assert abs(v - v.__floor__() - Fraction(1, 2)) <= NEAR * v, (case, layer.name, float(v))
            assert abs(int(expected[index]) - int(codes_found[index])) == 1
    last = integers.layers[-1].accumulate(given[-1].reshape(len(x), -1))
    assert np.array_equal(np.rint(logits / integers.logit_scale), last), case
    counted = compare_with_integers(torch_predictor(net), integers, x, net)
    hidden = sum(int(np.prod(shape)) for shape in integers.shapes[1:-1]) * images
    counts = {"codes": counted.codes or 0, "logits": counted.logits, "predictions": counted.predictions}
    return Counter(counts | {"hidden codes": hidden, "images": images, "chains": 1})


def quantizer_of(seed: int) -> str:
    return list(QUANTIZERS)[seed % len(QUANTIZERS)]


@pytest.mark.parametrize("seed", range(1000, 1030))
def test_every_code_that_differs_lies_at_a_half(seed: int) -> None:
    case = random_case(seed, quantizer_of(seed))
    counts = differing(case, seed)
    if case.quant.quantizer == "pow2" and "bn" not in case.model.name:
        assert counts["codes"] == counts["logits"] == 0


@pytest.mark.parametrize("seed", range(2000, 2008))
def test_powers_of_two_without_batch_normalization_differ_in_nothing(seed: int) -> None:
    while "bn" in (case := random_case(seed, "pow2")).model.name:
        seed += 100  # the next one without
    counts = differing(case, seed)
    assert counts["codes"] == counts["logits"] == 0


def test_the_chains_cover_the_grammar_and_every_quantizer() -> None:
    cases = [random_case(seed, quantizer_of(seed)) for seed in range(1000, 1030)]
    words = {word for case in cases for word in case.model.name.replace(",", "").split()}
    assert {"conv", "dw", "pool", "avgpool", "fc", "stride", "pad", "groups", "bn"} <= words
    assert {case.quant.quantizer for case in cases} == set(QUANTIZERS)
    assert {case.shape[0] for case in cases} == {1, 2, 3, 4}
