"""Post-training quantization: choose every scale from a trained float network and what it computes on some images.

Nothing is trained. Weights get the range of their tensor, activations that of the float network's values. At 8 bits
that is enough; with fewer, rounding errors larger than any the network was trained with add up, and accuracy collapses.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qattrain.config import ExperimentConfig, PtqConfig, QuantConfig, is_float
from qattrain.data import Dataset, check_identity, load_dataset
from qattrain.errors import ConfigError, pick
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import torch_predictor
from qattrain.layers.network import (
    activation_layers,
    build_model,
    copy_weights,
    plan_layers,
    watched_activations,
    weight_layers,
)
from qattrain.quant import Quantizer, dequantize
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
from qattrain.training.health import warnings_about, watched_codes
from qattrain.training.run import new_run, prepare_torch
from qattrain.training.session import RunResult

PERCENTILE = 99.9
MSE_LARGEST_PERCENT = 150

# Takes a quantizer and the values it will see (any shape), and sets the quantizer's range.
Calibration = Callable[[Quantizer, Tensor], None]


def minmax(quantizer: Quantizer, values: Tensor) -> None:
    """The whole range, outliers included. Source: Jacob et al. 2018, section 3.1."""
    quantizer.set_range(*quantizer.extremes(values))


def percentile(quantizer: Quantizer, values: Tensor) -> None:
    """From the 0.1th to the 99.9th percentile; the rest is clipped. Source: Wu et al. 2020, section 3.3."""
    low, high = np.percentile(
        values.numpy(), [100 - PERCENTILE, PERCENTILE], axis=tuple(quantizer.shared_dims(values)), keepdims=True
    )
    quantizer.set_range(torch.from_numpy(low).view(quantizer.shape), torch.from_numpy(high).view(quantizer.shape))


def mse(quantizer: Quantizer, values: Tensor) -> None:
    """The whole percentage of the range, up to 150 %, with the smallest squared error.

    With power-of-two scales more than 100 % can be best. Source: Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", section 3.1.
    """
    low, high = quantizer.extremes(values)
    dims, keep = quantizer.shared_dims(values), bool(quantizer.shape)
    best_error = torch.full(quantizer.shape, torch.inf)
    best_share = torch.ones(quantizer.shape)
    for percentage in range(MSE_LARGEST_PERCENT, 0, -1):
        share = torch.full(quantizer.shape, percentage / 100)
        quantizer.set_range(low * share, high * share)
        error = (dequantize(quantizer(values)) - values).square().mean(dims, keepdim=keep)
        best_share = torch.where(error < best_error, share, best_share)
        best_error = torch.minimum(error, best_error)
    quantizer.set_range(low * best_share, high * best_share)


CALIBRATIONS: dict[str, Calibration] = {"minmax": minmax, "percentile": percentile, "mse": mse}


@torch.no_grad()
def calibrate(model: nn.Module, float_model: nn.Module, images: Tensor, calibrate_one: Calibration) -> None:
    """Set all scales of `model`, which has the weights of `float_model`. images: uint8 (N, C, H, W), N >= 1."""
    model.eval()
    with watched_activations(float_model.eval()) as seen:
        float_model(images)
    for layer in weight_layers(model).values():
        if layer.weight_quantizer is not None:
            calibrate_one(layer.weight_quantizer, layer.weight.contiguous())
    for name, activation in activation_layers(model).items():
        if activation.quantizer is not None:
            _, output = seen[name]
            calibrate_one(activation.quantizer, output.codes.contiguous())


def settle_ptq(
    source: ExperimentConfig, epochs: int, path: str, quant: QuantConfig, ptq: PtqConfig, name: str | None
) -> ExperimentConfig:
    """The configuration of the run `name` that quantizes the float run `source` after `epochs` epochs.

    path: of the source, named in errors. Raises ConfigError if it is not a float network.
    """
    if source.method != "float":
        raise ConfigError(
            f"{path} is already quantized ({source.quant.bits} bits); post-training quantization starts from a "
            "float checkpoint: train one with --bits 32"
        )
    pick(CALIBRATIONS, ptq.calibration, "--calibration")
    settled = plan_layers(source.model, quant).quant
    if is_float(settled, source.model.chain):
        raise ConfigError("--bits 32: nothing would be quantized; allowed: 1 to 8")
    ptq = ptq.model_copy(update={"source_epochs": epochs})
    return source.model_copy(update={"quant": settled, "ptq": ptq, "name": name})


def quantize_after_training(
    path: Path, quant: QuantConfig, ptq: PtqConfig, name: str | None, data_dir: Path, runs_dir: Path
) -> tuple[RunResult, float]:
    """Quantize the float checkpoint in `path` into a new run; also returns the float network's test accuracy.

    Raises ConfigError, CheckpointError, DataError, TrainingError.
    """
    source = load_checkpoint(path)
    config = settle_ptq(source.config, len(source.history), str(path), quant, ptq, name)
    return quantize(source, path, config, load_dataset(config.data.spec, data_dir), runs_dir)


def quantize(
    source: Checkpoint, path: Path, config: ExperimentConfig, dataset: Dataset, runs_dir: Path
) -> tuple[RunResult, float]:
    """As `quantize_after_training`; source: read from `path`, config: what `settle_ptq` returned for it."""
    assert config.ptq is not None, config
    check_identity(dataset, str(path), source.class_names, source.input_shape, config.data.digest)
    prepare_torch(config)
    model = build_model(config.model, config.quant, len(source.class_names), source.input_shape)
    copy_weights(source.model, model, str(path))
    float_model = restore_model(source, str(path))
    images = dataset.train.head(config.data.limit_train).head(config.ptq.images).images
    calibrate(model, float_model, images, CALIBRATIONS[config.ptq.calibration])
    test = dataset.test.head(config.data.limit_test)
    float_accuracy = evaluate(torch_predictor(float_model), test).accuracy
    with watched_codes(model) as single:
        result = evaluate(torch_predictor(model), test)
    measured = {"test_loss": result.loss, "test_accuracy": result.accuracy}
    record: dict[str, Any] = {"epoch": 0, "train_loss": None, **measured}
    if found := warnings_about(model, single, result, test.labels, config, 0):
        record["warnings"] = found
    checkpoint = Checkpoint(
        config, source.class_names, dict(model.state_dict()), [record], source.notice, None, source.input_shape
    )

    def save(folder: Path) -> None:
        save_checkpoint(folder / runs.LAST_FILE, checkpoint)
        runs.write_metrics(folder, checkpoint.history)

    with new_run(config, runs_dir, source.notice, save) as run_dir:
        return RunResult(run_dir, checkpoint), float_accuracy
