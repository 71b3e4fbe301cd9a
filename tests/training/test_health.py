"""Dead networks are told of, once, with what to try; healthy ones are not; and looking changes nothing."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qattrain.config import ExperimentConfig, PtqConfig, QuantConfig
from qattrain.data import load_dataset
from qattrain.data.dataset import ImageSet
from qattrain.errors import ConfigError
from qattrain.evaluation.inspection import observe_model
from qattrain.evaluation.metrics import Evaluation, evaluate, wilson_interval
from qattrain.evaluation.networks import torch_predictor
from qattrain.layers import PixelInput, QuantConv2d, QuantLinear, QuantReLU
from qattrain.quant import QUANTIZERS
from qattrain.report.findings import investigate
from qattrain.report.sources import Subject
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import restore_model
from qattrain.training.health import guessing_accuracy, warnings_about, watched_codes
from qattrain.training.ptq import quantize_after_training
from qattrain.training.run import resolve
from qattrain.training.session import RunResult

Tiny = Callable[..., RunResult]
DEAD = {"quant.quantizer": "pow2", "quant.bits": 8, "quant.n": 0, "train.epochs": 3}


def test_weights_that_all_round_to_zero_are_told_of_when_they_appear_and_at_the_end(
    tiny: Tiny, silent_display: Any, tmp_path: Path
) -> None:
    display = silent_display()
    result = tiny(DEAD, display=display)
    assert [epochs for epochs, _ in display.warnings] == [1, 3]
    (text,) = result.summary()["warnings"]
    assert text == display.warnings[-1][1]
    assert "conv1, conv2, fc1, fc2: all weights of a layer have the same code (0)." in text
    assert "act1, act2, act3: all activations of a layer have the same code (0) on 360 images." in text
    assert "is no better than always answering the most frequent class (10.28 %)" in text
    lines = (result.run_dir / runs.METRICS_FILE).read_text().splitlines()
    assert all(len(json.loads(line)["warnings"]) == 1 for line in lines)
    (finding,) = investigate([Subject("dead", result.run_dir / runs.LAST_FILE)], tmp_path, lambda _: None)
    assert f"dead: {text}" in finding.notes
    suggested = re.search(r"--set quant.n=(\d+), which fits these weights \(it is 0\)", text)
    assert suggested
    cured = tiny(DEAD | {"quant.n": int(suggested[1]), "data.limit_train": None})
    assert cured.summary()["warnings"] == []


def test_a_learning_rate_that_kills_is_named_with_the_default(tiny: Tiny) -> None:
    (text,) = tiny({"train.lr": 1e9, "data.limit_train": 60}).summary()["warnings"]
    assert "no better than always answering" in text
    assert text.endswith("Try a lower --lr: it is 1e+09, the default is 0.05.")


def test_a_healthy_run_has_no_warning_and_its_record_no_such_field(tiny: Tiny, silent_display: Any) -> None:
    display = silent_display()
    result = tiny({"data.limit_train": None}, display=display)
    assert result.checkpoint.history[-1]["test_accuracy"] > 0.8
    assert (display.warnings, result.summary()["warnings"]) == ([], [])
    assert not any("warnings" in record for record in result.checkpoint.history)


@pytest.mark.parametrize(
    ("quantizer", "bits"), [(name, bits) for name in QUANTIZERS for bits in (1, 2, 3, 4)] + [("lsq", 32)]
)
def test_after_an_epoch_at_few_bits_only_what_is_true_is_said(tiny: Tiny, quantizer: str, bits: int) -> None:
    try:
        result = tiny({"quant.quantizer": quantizer, "quant.bits": bits}, stop_after=1)
    except ConfigError:  # not with these bits
        return
    (record,) = result.checkpoint.history
    test = load_dataset("digits", Path()).test
    layers = observe_model(restore_model(result.checkpoint, "it"), test.images)
    single = {seen.layer for seen in layers if seen.codes is not None and seen.codes.min() == seen.codes.max()}
    most = int(test.labels.bincount().max()) / 360
    guesses = wilson_interval(round(360 * record["test_accuracy"]), 360)[0] <= most
    text = " ".join(record.get("warnings", []))
    assert bool(text) == (guesses or bool(single))
    told = re.findall(r"([\w, ]+): all (?:weights|activations)", text)
    assert {layer.strip() for layers in told for layer in layers.split(",")} == single
    assert ("better than always answering" in text) == guesses
    assert ("Epoch 1 of 2: this may pass" in text) == (guesses and not single)


def test_post_training_quantization_that_ends_in_guessing_says_so(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny({"quant.bits": 32, "data.limit_train": None}).run_dir / runs.LAST_FILE
    for bits, expected in ((1, 1), (8, 0)):
        quant = QuantConfig(quantizer="affine", bits=bits)
        result, _ = quantize_after_training(source, quant, PtqConfig(), None, tmp_path, tmp_path / "runs")
        found = result.summary()["warnings"]
        assert len(found) == expected
    assert "warnings" not in result.checkpoint.history[-1]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (PixelInput(), QuantConv2d(1, 8, 3), QuantReLU(), nn.Flatten(), QuantLinear(8 * 36, 10, per_channel=False))
    net = nn.Sequential(*layers)
    net(torch.randint(0, 256, (4, 1, 8, 8)).to(torch.uint8))  # so that every quantizer is initialized
    return net.eval()


def test_looking_draws_no_random_numbers_and_changes_neither_state_nor_results() -> None:
    net, images = _network(), torch.randint(0, 256, (40, 1, 8, 8)).to(torch.uint8)
    state, rng, expected = copy.deepcopy(net.state_dict()), torch.get_rng_state(), net(images)
    with watched_codes(net) as single:
        assert torch.equal(net(images), expected)
    assert single == {}
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_counts_if_all_its_codes_in_all_batches_are_one_and_they_are_not_too_few() -> None:
    net, black = _network(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    net[1].bias.data.fill_(-1e3)
    with watched_codes(net) as single:
        net(black)
        assert single == {("activation", "2"): 0}
    net[1].bias.data.fill_(1e3)
    with watched_codes(net) as single:
        net(black)
        assert single == {("activation", "2"): 15}
        net[1].bias.data.fill_(-1e3)
        net(black)
    assert single == {}  # one code in each batch, but not the same
    tiny = nn.Sequential(PixelInput(), QuantConv2d(1, 1, 1), nn.Flatten(), QuantLinear(4, 3, per_channel=False))
    with watched_codes(tiny) as single:
        tiny(torch.ones(1, 1, 2, 2, dtype=torch.uint8))
    assert single == {}  # a single weight has a single code


def test_guessing_is_an_accuracy_whose_interval_reaches_down_to_the_most_frequent_class() -> None:
    def judged(correct: int, labels: list[int]) -> float | None:
        test = Evaluation(len(labels), correct, 2.3, torch.empty(0), torch.empty(0))
        return guessing_accuracy(test, torch.tensor(labels))

    balanced = [*range(10)] * 100
    assert judged(100, balanced) == judged(0, balanced) == 0.1
    edge = next(correct for correct in range(100, 200) if wilson_interval(correct, 1000)[0] > 0.1)
    assert (judged(edge - 1, balanced), judged(edge, balanced)) == (0.1, None)
    skewed = [0] * 900 + [1] * 100
    assert (judged(900, skewed), judged(990, skewed)) == (0.9, None)
    assert judged(50, [3] * 50) is None  # of one class only: nobody can tell


def test_evaluating_under_watch_costs_next_to_nothing() -> None:
    """In calls of `aminmax`, since times would measure the machine: two for a quantizer at most, not two a batch."""
    net, data = _network(), ImageSet(torch.randint(0, 256, (3000, 1, 8, 8)).to(torch.uint8), torch.zeros(3000).long())
    calls = []
    original = torch.aminmax
    with pytest.MonkeyPatch.context() as patch, watched_codes(net):
        patch.setattr(torch, "aminmax", lambda codes: calls.append(codes.shape) or original(codes))
        evaluate(torch_predictor(net), data)
    assert len(calls) == 3  # conv, ReLU, linear: each is alive in its first rows
    assert all(shape[0] <= 8 for shape in calls)


@pytest.mark.parametrize(
    ("correct", "total", "said"),
    [
        (6, 8, "75.00 %, is on 8 images not clearly better than always answering the most frequent class (50.00 %)"),
        (4, 8, "50.00 %, is no better than"),
        (60, 100, None),
        (59, 100, "59.00 %, is on 100 images not clearly better than"),
    ],
)
def test_a_guess_on_few_images_is_worded_as_what_it_is(
    tiny_config: Callable[..., ExperimentConfig], correct: int, total: int, said: str | None
) -> None:
    test: Any = SimpleNamespace(total=total, accuracy=correct / total, interval=wilson_interval(correct, total))
    labels = torch.arange(total) % 2
    found = warnings_about(torch.nn.Sequential(), {}, test, labels, resolve(tiny_config(), Path())[0], 2)
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]
        assert ("more test images" in found[0]) == (total == 8)
