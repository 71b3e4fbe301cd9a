"""Sensitivity: a rise is that of one tensor alone, on the right images, and the chosen bits are the best."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qattrain.config import QuantConfig
from qattrain.data import Dataset, load_dataset, split_validation
from qattrain.errors import ConfigError
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import Trained, load_network, torch_predictor
from qattrain.layers.network import build_model, copy_weights, packed_bytes
from qattrain.runs.folder import LAST_FILE
from qattrain.training import run as experiment
from qattrain.training.ptq import calibrate, minmax
from qattrain.training.sensitivity import (
    BITS,
    CALIBRATION_IMAGES,
    TRAINED_ON,
    Rise,
    Sensitivity,
    assign_bits,
    held_out_images,
    measure,
    rise_of,
    uniform_bytes,
)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs_dir: Path, tiny_config: Callable[..., Any], silent_display: Any) -> Callable[[int], Path]:
    """The checkpoint of a network with that many bits that has learned the digits, trained once."""

    def train(bits: int) -> Path:
        path = runs_dir / f"bits{bits}" / LAST_FILE
        if not path.exists():
            config = tiny_config({"name": f"bits{bits}", "quant.bits": bits, "data.limit_train": None})
            experiment.train(config, runs_dir, runs_dir, silent_display())
        return path

    return train


@pytest.fixture(scope="module")
def digits(runs_dir: Path) -> Dataset:
    return load_dataset("digits", runs_dir)


@pytest.fixture(scope="module")
def found(trained: Callable[[int], Path], digits: Dataset) -> Sensitivity:
    return measure(loaded(trained(32)), digits, images=300, calibration="minmax")


def loaded(path: Path) -> Trained:
    network = load_network(path)
    assert isinstance(network, Trained)
    return network


@pytest.mark.parametrize(("name", "bits"), [("conv1", 2), ("conv2", 3), ("fc2", 1), ("act1", 2), ("act3", 1)])
def test_a_rise_is_that_of_a_network_with_that_one_exemption(
    name: str, bits: int, found: Sensitivity, trained: Callable[[int], Path], digits: Dataset
) -> None:
    network = loaded(trained(32))
    config = network.checkpoint.config
    quant = QuantConfig(bits=32, act_bits=32, layer_bits={name: bits})
    model = build_model(config.model, quant, 10)
    copy_weights(network.checkpoint.model, model, "test")
    images, held_out, _ = held_out_images(config, digits, 300)
    calibrate(model, network.model, images, minmax)
    before = evaluate(torch_predictor(network.model), held_out)
    after = evaluate(torch_predictor(model), held_out)
    rise = rise_of(found, name, bits)
    assert rise.rise == pytest.approx(after.loss - before.loss, abs=1e-9)
    assert rise.kind == ("activation" if name.startswith("act") else "weight")
    assert (found.loss, found.accuracy) == (pytest.approx(before.loss, abs=1e-12), before.accuracy)


def test_every_tensor_is_measured_in_order_and_8_bits_cost_nothing(found: Sensitivity) -> None:
    names = ["conv1", "act1", "conv2", "act2", "fc1", "act3", "fc2"]
    assert [(rise.name, rise.bits) for rise in found.rises] == list(itertools.product(names, BITS))
    for rise in found.rises:
        if rise.bits == 8:
            assert abs(rise.rise) < 0.003
        assert rise.margin > 0
    weights_at_1 = [rise for rise in found.rises if rise.kind == "weight" and rise.bits == 1]
    for rise in weights_at_1:
        assert rise.rise > 10 * abs(rise_of(found, rise.name, 8).rise)
    assert max(rise.rise - rise.margin for rise in weights_at_1) > 0
    assert found.images == 300
    assert found.notes == [TRAINED_ON]


@pytest.mark.parametrize("bits", [32, 4])
def test_the_network_is_left_as_it_was_and_the_numbers_repeat(
    bits: int, trained: Callable[[int], Path], digits: Dataset
) -> None:
    network = loaded(trained(bits))
    before = torch_predictor(network.model)(digits.test.images)
    first = measure(network, digits, images=50, calibration="minmax")
    assert torch.equal(torch_predictor(network.model)(digits.test.images), before)
    assert measure(network, digits, images=50, calibration="minmax") == first


def test_held_out_images_are_those_the_run_held_out(tiny_config: Callable[..., Any], digits: Dataset) -> None:
    config = tiny_config({"data.val_split": 40, "data.limit_train": 400})
    images, held_out, notes = held_out_images(config, digits, 1000)
    kept, expected = split_validation(digits.train.head(400), 40, config.seed)
    assert torch.equal(held_out.images, expected.images)
    assert torch.equal(images, kept.images[:CALIBRATION_IMAGES])
    assert notes == []


def test_without_them_the_last_training_images_are_kept_from_calibration(
    tiny_config: Callable[..., Any], digits: Dataset
) -> None:
    images, held_out, notes = held_out_images(tiny_config({"data.limit_train": 400}), digits, 1000)
    assert len(images) == len(held_out.labels) == 200
    assert torch.equal(torch.cat([images, held_out.images]), digits.train.images[:400])
    assert notes == [TRAINED_ON]


rises = st.lists(st.sampled_from([-0.01, 0.0, 0.0, 0.1, 0.25, 0.5, 2.0]), min_size=len(BITS), max_size=len(BITS))


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(1, 50), rises), min_size=1, max_size=4), st.integers(0, 100))
def test_the_chosen_bits_are_the_best_of_all(layers: list[tuple[int, list[float]]], extra: int) -> None:
    weights = {f"fc{index}": count for index, (count, _) in enumerate(layers)}
    measured = [
        Rise(name, "weight", bits, rise, 0.0)
        for name, (_, costs) in zip(weights, layers, strict=True)
        for bits, rise in zip(BITS, costs, strict=True)
    ]
    most = uniform_bytes(weights, 1) + extra
    chosen = assign_bits(Sensitivity(0.0, 1.0, 1, weights, measured), most)

    def judged(bits: tuple[int, ...]) -> tuple[float, int]:
        """The sum of rises, made to rise as bits fall; then the bytes left over."""
        total = sum(max(0.0, *costs[: BITS.index(one) + 1]) for one, (_, costs) in zip(bits, layers, strict=True))
        taken = sum(packed_bytes(count, one) for one, count in zip(bits, weights.values(), strict=True))
        return (total, -taken) if taken <= most else (float("inf"), 0)

    best = min(judged(bits) for bits in itertools.product(BITS, repeat=len(layers)))
    assert judged(tuple(chosen.values())) == pytest.approx(best)
    assert list(chosen) == list(weights)


def test_bytes_that_no_assignment_fits_are_refused(found: Sensitivity) -> None:
    least = uniform_bytes(found.weights, 1)
    assert set(assign_bits(found, least).values()) == {1}
    with pytest.raises(ConfigError, match=f"--bytes {least - 1}: .* {least:,} bytes at 1 bit"):
        assign_bits(found, least - 1)


def test_the_command_tells_rises_and_a_line_that_trains(
    main: Any, runs_dir: Path, trained: Callable[[int], Path], tmp_path: Path
) -> None:
    trained(32)
    common = ("sensitivity", "bits32", "--runs-dir", runs_dir, "--images", 100, "--calibration", "minmax")
    done = main(*common, "--like-bits", 3, "--json", "--plots", tmp_path)
    assert done.rc == 0, done
    result = json.loads(done.stdout)
    assert len(result["rises"]) == 7 * len(BITS)
    assert result["bytes"] <= result["most_bytes"] == uniform_bytes({"a": 200, "b": 3200, "c": 8192, "d": 320}, 3)
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    done = main(*common, "--bytes", result["most_bytes"])
    line = ",".join(f"{name}={bits}" for name, bits in result["layer_bits"].items())
    assert f"--layer-bits {line}\n" in done.stdout
    assert "held-out training images" in done.stdout
    again = main(
        "train",
        "--dataset",
        "digits",
        "--model",
        "lenet-nano",
        "--layer-bits",
        line,
        "--epochs",
        1,
        "--limit-train",
        64,
        "--runs-dir",
        tmp_path / "again",
        "--json",
    )
    assert again.rc == 0, again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bytes", 100, "--like-bits", 3), "--bytes 100 with --like-bits 3: give only one"),
        (("--bytes", 10), "--bytes 10: the weights take"),
        (("--calibration", "best"), "--calibration 'best': allowed: minmax"),
        (("--quantizer", "lsp"), "--quantizer 'lsp': did you mean 'lsq'"),
        (("--quantizer", "ternary"), "quantizer 'ternary' with 8 bits"),
    ],
)
def test_wrong_wishes_are_one_line(
    main: Any, runs_dir: Path, trained: Callable[[int], Path], options: tuple[Any, ...], message: str
) -> None:
    trained(32)
    done = main("sensitivity", "bits32", "--runs-dir", runs_dir, "--images", 20, *options)
    assert done.rc == 2
    assert message in done.error


def test_a_packed_file_has_no_weights_to_quantize(
    main: Any, runs_dir: Path, trained: Callable[[int], Path], tmp_path: Path
) -> None:
    trained(4)
    assert main("export", "bits4", "--to", "packed", "--runs-dir", runs_dir, "--out", tmp_path, "--no-verify").rc == 0
    done = main("sensitivity", tmp_path / "model.safetensors")
    assert done.rc == 2
    assert "has no real weights" in done.error
