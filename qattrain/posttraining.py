"""A float run quantized after training, as a run of its own."""

from pathlib import Path

from qattrain import runs
from qattrain.calibration import CALIBRATIONS, calibrate
from qattrain.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
from qattrain.config import FLOAT_BITS, ExperimentConfig, PtqConfig, QuantConfig
from qattrain.data import Dataset, load_dataset
from qattrain.engines import torch_predictor
from qattrain.errors import ConfigError
from qattrain.evaluation import evaluate
from qattrain.experiment import copy_weights, new_run, prepare_torch
from qattrain.model import build_model, plan_layers
from qattrain.session import RunResult


def settle_ptq(
    source: Checkpoint, path: Path, quant: QuantConfig, ptq: PtqConfig, name: str | None
) -> ExperimentConfig:
    """The configuration of the run that quantizes `source`. Raises ConfigError if `source` is not a float network."""
    return ptq_config(source.config, len(source.history), str(path), quant, ptq, name)


def ptq_config(
    source: ExperimentConfig, epochs: int, path: str, quant: QuantConfig, ptq: PtqConfig, name: str | None
) -> ExperimentConfig:
    """As `settle_ptq`, for a float run `source` of `epochs` epochs that errors call `path`."""
    layers = plan_layers(source.quant).layer_bits
    if source.ptq is not None or any(bits != FLOAT_BITS for bits in layers.values()):
        raise ConfigError(
            f"{path} is already quantized ({source.quant.bits} bits); post-training quantization starts from a "
            "float checkpoint: train one with --bits 32"
        )
    if ptq.calibration not in CALIBRATIONS:
        raise ConfigError(f"--calibration {ptq.calibration!r}: allowed: {', '.join(CALIBRATIONS)}")
    plan = plan_layers(quant)
    if plan.bits == plan.act_bits == FLOAT_BITS:
        raise ConfigError("--bits 32: nothing would be quantized; allowed: 1 to 8")
    settled = quant.model_copy(update={"bits": plan.bits, "act_bits": plan.act_bits})
    ptq = ptq.model_copy(update={"source_epochs": epochs})
    return source.model_copy(update={"quant": settled, "ptq": ptq, "name": name})


def quantize_after_training(
    path: Path, quant: QuantConfig, ptq: PtqConfig, name: str | None, data_dir: Path, runs_dir: Path
) -> tuple[RunResult, float]:
    """Quantize the float checkpoint in `path` into a new run; also returns the float network's test accuracy.

    Raises ConfigError, CheckpointError, DataError, TrainingError.
    """
    source = load_checkpoint(path)
    config = settle_ptq(source, path, quant, ptq, name)
    return quantize(source, path, config, load_dataset(config.data.dataset, data_dir), runs_dir)


def quantize(
    source: Checkpoint, path: Path, config: ExperimentConfig, dataset: Dataset, runs_dir: Path
) -> tuple[RunResult, float]:
    """Make the run `config`, which `settle_ptq` settled, from the float checkpoint `source`, read from `path`."""
    assert config.ptq is not None, config
    prepare_torch(config)
    model = build_model(config.model, config.quant, len(source.class_names))
    copy_weights(source, model, str(path))
    float_model = restore_model(source, str(path))
    images = dataset.train.head(config.data.limit_train).head(config.ptq.images).images
    calibrate(model, float_model, images, CALIBRATIONS[config.ptq.calibration])
    test = dataset.test.head(config.data.limit_test)
    float_accuracy = evaluate(torch_predictor(float_model), test).accuracy
    result = evaluate(torch_predictor(model), test)
    history = [{"epoch": 0, "train_loss": None, "test_loss": result.loss, "test_accuracy": result.accuracy}]
    checkpoint = Checkpoint(config, source.class_names, dict(model.state_dict()), history, source.notice, None)
    with new_run(config, runs_dir, source.notice) as run_dir:
        save_checkpoint(run_dir / runs.LAST_FILE, checkpoint)
        runs.write_metrics(run_dir, history)
    return RunResult(run_dir, checkpoint), float_accuracy
