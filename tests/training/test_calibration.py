"""Post-training quantization: ranges are what they claim to be, 8 bits keep the accuracy, the result is a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qattrain.config import ModelConfig, PtqConfig, QuantConfig
from qattrain.data import load_dataset
from qattrain.errors import ConfigError
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.evaluation.inspection import layer_report, observe_model
from qattrain.quant import QUANTIZERS, Quantizer, activation_quantizer, dequantize, weight_quantizer
from qattrain.runs.checkpoint import load_checkpoint, restore_model
from qattrain.runs.folder import LAST_FILE, list_runs
from qattrain.training import run as experiment
from qattrain.training.ptq import CALIBRATIONS, mse, percentile, quantize_after_training
from qattrain.training.session import RunResult

WEIGHT_LAYERS, ACTIVATION_LAYERS = ModelConfig().chain.weight_layers, ModelConfig().chain.activation_layers

FREE = ("lsq", "affine", "pow2")  # quantizers whose range can be set; the others' scale is a closed form


@pytest.fixture(scope="module")
def float_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> RunResult:
    """A float network that has learned the digits, so that a lost point would show."""
    folder = tmp_path_factory.mktemp("float")
    config = tiny_config({"quant.bits": 32, "data.limit_train": None, "train.epochs": 6})
    result = experiment.train(config, folder, folder, Silent())
    assert result.checkpoint.history[-1]["test_accuracy"] > 0.9
    return result


class Silent:
    def on_start(self, *_args: object) -> None: ...

    def on_step(self, *_args: object) -> None: ...

    def on_epoch(self, *_args: object) -> None: ...


@pytest.fixture
def ptq(float_run: RunResult, tmp_path: Path) -> Callable[..., RunResult]:
    def quantize(
        calibration: str = "minmax", source: Path = float_run.run_dir / LAST_FILE, **quant: Any
    ) -> tuple[RunResult, float]:
        settings = PtqConfig(calibration=calibration, images=256)
        return quantize_after_training(source, QuantConfig(**quant), settings, None, tmp_path, tmp_path / "runs")

    return quantize


def squared_error(quantizer: Quantizer, values: Tensor) -> Tensor:
    with torch.no_grad():
        error = (dequantize(quantizer(values)) - values).square()
        return error.mean(quantizer.shared_dims(values), keepdim=bool(quantizer.shape))


def make(name: str, role: str, bits: int, channels: int = 3) -> tuple[Quantizer, Callable[[Tensor], Tensor]]:
    """A quantizer in evaluation mode, and what turns any tensor into one it may see."""
    if role == "activation":
        quantizer = activation_quantizer(name, bits)
        assert quantizer is not None
        return quantizer.eval(), torch.relu
    quantizer = weight_quantizer(name, bits, (channels, 1))
    assert quantizer is not None
    return quantizer.eval(), lambda x: x


cases = pytest.mark.parametrize("role", ["weight", "activation"])
names = pytest.mark.parametrize("name", FREE)


@names
@cases
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), tail=st.floats(0, 3), offset=st.floats(-1, 1))
def test_mse_is_never_worse_than_minmax_and_minmax_clips_nothing(
    name: str, role: str, seed: int, bits: int, tail: float, offset: float
) -> None:
    quantizer, prepare = make(name, role, bits)
    noise = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    values = prepare(noise * noise.abs().pow(tail) + offset)
    CALIBRATIONS["minmax"](quantizer, values)
    reference = squared_error(quantizer, values)
    with torch.no_grad():
        codes = quantizer(values)
        # Every value lies within half a step of its code: nothing was cut off (pow2: at most the documented 30 %).
        cut = 0.3 * values.abs().amax() if name == "pow2" else torch.tensor(0.0)
        assert bool(((dequantize(codes) - values).abs() <= torch.maximum(codes.scale * 0.5001, cut)).all())
    mse(quantizer, values)
    assert bool((squared_error(quantizer, values) <= reference * (1 + 1e-5)).all())


@names
def test_mse_clips_an_outlier_that_minmax_keeps(name: str) -> None:
    quantizer, _ = make(name, "weight", 4, channels=1)
    values = torch.linspace(-1, 1, 1000).view(1, -1).clone()
    values[0, 0] = -8
    CALIBRATIONS["minmax"](quantizer, values)
    reference = squared_error(quantizer, values)
    mse(quantizer, values)
    assert squared_error(quantizer, values).item() < 0.7 * reference.item()


def test_minmax_and_percentile_take_the_ranges_they_name() -> None:
    values = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    affine, _ = make("affine", "weight", 8)
    CALIBRATIONS["minmax"](affine, values)
    assert (affine.low.item(), affine.high.item()) == (values.min().item(), values.max().item())
    percentile(affine, values)
    expected = np.percentile(values.numpy(), [0.1, 99.9])
    assert [affine.low.item(), affine.high.item()] == pytest.approx(expected.tolist(), rel=1e-5)
    lsq, _ = make("lsq", "weight", 8)
    percentile(lsq, values)
    low, high = np.percentile(values.numpy(), [0.1, 99.9], axis=1)
    assert lsq.scale.flatten().tolist() == pytest.approx(np.maximum(high / 127, low / -128).tolist(), rel=1e-5)


@pytest.mark.parametrize("name", [*FREE, "dorefa", "pact"])
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_8_bits_stay_within_a_point_of_the_float_network(
    ptq: Callable[..., Any], float_run: RunResult, name: str, calibration: str
) -> None:
    result, float_accuracy = ptq(calibration, quantizer=name, bits=8)
    assert float_accuracy == float_run.checkpoint.history[-1]["test_accuracy"]
    assert abs(result.checkpoint.history[-1]["test_accuracy"] - float_accuracy) <= 0.01


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantized_run_is_a_run_like_any_other(
    ptq: Callable[..., Any], float_run: RunResult, tmp_path: Path, silent_display: Any, name: str
) -> None:
    before = (float_run.run_dir / LAST_FILE).read_bytes()
    result, _ = ptq(quantizer=name)
    path, record = result.run_dir / LAST_FILE, result.checkpoint.history[-1]
    evaluation = evaluate_checkpoint(path, tmp_path).evaluation
    assert (evaluation.accuracy, evaluation.loss) == (record["test_accuracy"], record["test_loss"])
    (listed,) = list_runs(tmp_path / "runs")
    assert (listed.name, listed.method, listed.quantizer) == (result.run_dir.name, "ptq", name)
    assert listed.accuracy == evaluation.accuracy
    seen = observe_model(restore_model(load_checkpoint(path), "x"), load_dataset("digits", tmp_path).test.images)
    reports = [layer_report(layer) for layer in seen]
    assert {report.layer for report in reports} == {*WEIGHT_LAYERS, *ACTIVATION_LAYERS}
    assert all(report.codes_used is not None and report.codes_used <= (report.levels or 0) for report in reports)
    resumed = experiment.resume(str(result.run_dir), tmp_path, tmp_path / "runs", silent_display(), {}, None)
    assert resumed.checkpoint.history == result.checkpoint.history
    assert (float_run.run_dir / LAST_FILE).read_bytes() == before
    with pytest.raises(ConfigError, match="already quantized"):
        ptq(source=path, bits=8)


def test_weights_are_those_of_the_float_network_and_layers_left_out_stay_float(
    ptq: Callable[..., Any], float_run: RunResult
) -> None:
    result, _ = ptq(bits=4, act_bits=8, layer_bits={"fc2": 32, "act1": 32})
    for name, tensor in float_run.checkpoint.model.items():
        assert torch.equal(result.checkpoint.model[name], tensor), name
    model = restore_model(result.checkpoint, "x")
    assert [getattr(model, name).bits for name in WEIGHT_LAYERS] == [4, 4, 4, 32]
    assert [getattr(model, name).bits for name in ACTIVATION_LAYERS] == [32, 8, 8]


def test_what_cannot_be_quantized_is_refused_by_name(
    ptq: Callable[..., Any], tiny: Callable[..., RunResult], tmp_path: Path
) -> None:
    trained = tiny({"train.epochs": 1}, runs_dir=tmp_path / "qat")
    for arguments, text in (
        ({"bits": 8, "source": trained.run_dir / LAST_FILE}, "already quantized"),
        ({"bits": 32}, "--bits 32"),
        ({"bits": 8, "calibration": "entropy"}, "minmax, percentile, mse"),
        ({"bits": 8, "quantizer": "dorefax"}, "lsq"),
        ({"bits": 8, "quantizer": "binary"}, "binary"),
    ):
        with pytest.raises(ConfigError) as caught:
            ptq(**arguments)
        assert text in str(caught.value)
    assert not (tmp_path / "runs").exists()
