"""Our own training as `qattrain train` runs it: its model, its Trainer, augmentation included."""

from collections.abc import Callable

import torch

from qattrain.benchmark.contender import CLASSES, SEED, Ready, Workload
from qattrain.config import DataConfig, ModelConfig, QuantConfig, TrainConfig
from qattrain.experiment import AUTO_BATCH
from qattrain.model import build_model, plan_layers
from qattrain.optimization import OPTIMIZERS
from qattrain.quant import native
from qattrain.training import Trainer


class Silent:
    """Shows nothing, reads no loss."""

    def on_step(self, epoch: int, step: int, steps: int, loss: Callable[[], float]) -> None: ...


def own_training(workload: Workload, quant: QuantConfig, compiles: bool) -> dict[int, Ready]:
    """Epochs of the Trainer with the settings that `qattrain train` settles for MNIST.

    Raises ConfigError where kernels are to be compiled and cannot be.
    """
    if compiles:
        native.prepare()
    torch.manual_seed(SEED)
    model = build_model(ModelConfig(), quant, CLASSES)
    optimizer = OPTIMIZERS["sgd"]
    config = TrainConfig(
        epochs=workload.rounds,
        batch_size=AUTO_BATCH,
        lr=optimizer.one_bit_lr if "binary" in plan_layers(quant).weight_quantizer else optimizer.lr,
        weight_decay=optimizer.weight_decay,
        precision="bf16" if workload.precision == "bf16" else "fp32",
        compile="on" if compiles else "off",
        device="cpu",
    )
    trainer = Trainer(model, workload.training, config, DataConfig().augment, SEED)

    def epoch() -> float:
        result = trainer.train_epoch(Silent(), lambda: False)
        assert result is not None
        return result.images_per_second

    return {AUTO_BATCH: Ready(epoch, model)}
