"""The training contenders: the usual PyTorch programs, our own training, and Brevitas, all on the same LeNet.

Source of the Brevitas network: https://xilinx.github.io/brevitas/getting_started, the low-precision LeNet. To Brevitas'
advantage, pooling comes before the activation, as in our net, and biases stay float. Its image quantizer learns a
scale, so gradients must reach the image; the speed without that quantizer is measured too.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.benchmark.rounds import CLASSES, SEED, Contender, Ready, Workload
from qattrain.config import FLOAT_BITS, DataConfig, ModelConfig, QuantConfig, TrainConfig
from qattrain.config.chain import MNIST_SHAPE
from qattrain.data import ImageSet, batch_slices
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import optional_package
from qattrain.layers.network import build_model, plan_layers
from qattrain.quant import QUANTIZERS, native
from qattrain.training.loop import Trainer
from qattrain.training.optimization import AUTO_BATCH, OPTIMIZERS, settle_training

EXAMPLE_BATCH = 64
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of MNIST, as in every example


def built_of(conv: Callable[..., nn.Module], relu: Callable[[], nn.Module], linear: Callable[..., nn.Module]) -> Any:
    """The preset `lenet` as an nn.Sequential of such layers: float32 (N, C, H, W) -> logits (N, classes)."""
    modules: list[nn.Module] = []
    for placed in ModelConfig().chain.place(MNIST_SHAPE, CLASSES):
        outputs, inputs, *kernel = placed.weight_shape
        if kernel:
            modules += [conv(inputs, outputs, kernel[0]), nn.MaxPool2d(placed.layer.pool)]
        else:
            modules += [] if any(isinstance(module, nn.Flatten) for module in modules) else [nn.Flatten()]
            modules.append(linear(inputs, outputs))
        modules += [relu()] if placed.layer.activation else []
    return nn.Sequential(*modules)


def plain_net() -> nn.Sequential:
    """LeNet from torch's own layers, with random weights."""
    torch.manual_seed(SEED)
    net: nn.Sequential = built_of(nn.Conv2d, nn.ReLU, nn.Linear)
    return net


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the defaults of our training, written as in any example."""
    lr, momentum = OPTIMIZERS["sgd"].lr, TrainConfig().momentum
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=True)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Forward, backward and update on float images (B, C, H, W)."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def timed(images: int, work: Callable[[], None]) -> float:
    """Images per second of `work`, which processes `images` of them."""
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def resident_loop(model: nn.Module, data: ImageSet, step: Callable[[Tensor, Tensor], None]) -> dict[int, Ready]:
    """Epochs over all `data` in batches of float images in 0 to 1, reshuffled for each epoch."""
    count = len(data.labels)

    def epoch() -> None:
        order = torch.randperm(count)
        for part in batch_slices(count, AUTO_BATCH):
            batch = order[part]
            step(data.images[batch].float() / 255, data.labels[batch])

    return {AUTO_BATCH: Ready(lambda: timed(count, epoch), model)}


def plain_loop(workload: Workload) -> dict[int, Ready]:
    model = plain_net()
    optimizer = nesterov(model)
    return resident_loop(model, workload.training, lambda x, y: train_step(model, optimizer, x, y))


def ordinary_example(workload: Workload) -> dict[int, Ready]:
    """torchvision's MNIST class, which makes a PIL image of each sample, with transforms and a DataLoader."""
    data = workload.training
    datasets: Any = import_torchvision_datasets()
    from torchvision import transforms

    class Synthetic(datasets.MNIST):  # type: ignore[misc]
        """torchvision's class without its files."""

        def __init__(self, transform: Any) -> None:
            datasets.VisionDataset.__init__(self, root="", transform=transform)
            self.data, self.targets = data.images[:, 0], data.labels

    normalize = transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))
    dataset = Synthetic(transforms.Compose([transforms.ToTensor(), normalize]))
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=EXAMPLE_BATCH, shuffle=True)
    model = plain_net()
    optimizer = nesterov(model)

    def epoch() -> None:
        for images, labels in loader:
            train_step(model, optimizer, images, labels)

    return {EXAMPLE_BATCH: Ready(lambda: timed(len(data.labels), epoch), model)}


def own_training(workload: Workload, quant: QuantConfig, compiles: bool) -> dict[int, Ready]:
    """Epochs of the Trainer with the settings that `qattrain train` uses for MNIST.

    Raises ConfigError if kernels should be compiled and cannot be.
    """
    if compiles:
        native.prepare()
    torch.manual_seed(SEED)
    model = build_model(ModelConfig(), quant, CLASSES)
    config = TrainConfig(
        epochs=workload.rounds,
        batch_size=AUTO_BATCH,
        precision="bf16" if workload.precision == "bf16" else "fp32",
        compile="on" if compiles else "off",
        device="cpu",
    )
    config = settle_training(config, plan_layers(ModelConfig(), quant), len(workload.training.labels))
    trainer = Trainer(model, workload.training, config, DataConfig().augment, SEED)

    def epoch() -> float:
        result = trainer.train_epoch(None, lambda: False)
        assert result is not None
        return result.images_per_second

    return {AUTO_BATCH: Ready(epoch, model)}


BITS = 4
IMAGE_BITS = 8


def brevitas_training(workload: Workload, tuned: bool, quantized_image: bool) -> dict[int, Ready]:
    """The plain loop on Brevitas' layers. tuned: with our memory format and our precision.

    Raises TrainingError if Brevitas is not installed.
    """
    torch.manual_seed(SEED)
    model = _net(quantized_image)
    optimizer = nesterov(model)
    bf16 = tuned and workload.precision == "bf16"
    if tuned:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(images: Tensor, labels: Tensor) -> None:
        if tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            train_step(model, optimizer, images, labels)

    return resident_loop(model, workload.training, step)


def _net(quantized_image: bool) -> nn.Module:
    with optional_package("bench", "brevitas"):
        import brevitas.nn as qnn
        from brevitas.inject.enum import ScalingImplType
        from brevitas.quant import Int8WeightPerChannelFloat
    weights: dict[str, Any] = {
        "weight_bit_width": BITS,
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
    }
    conv, linear = (partial(layer, bias=True, **weights) for layer in (qnn.QuantConv2d, qnn.QuantLinear))
    net: nn.Sequential = built_of(conv, partial(qnn.QuantReLU, bit_width=BITS), linear)
    image = qnn.QuantIdentity(bit_width=IMAGE_BITS) if quantized_image else nn.Identity()
    return nn.Sequential(image, *net)


COMPARED_QUANTIZERS = ("lsq", "affine", "pow2", "ternary", "binary")  # whose speeds are published
COMPARED_BITS = (8, 4, 2, 1)  # measured for every quantizer that allows them
EAGER = "-eager"  # ends the names of those without compiled kernels


def _own(name: str, quantizer: str, bits: int, eager: bool = True) -> list[Contender]:
    """Our training with compiled kernels, and, if `eager`, also without."""
    quant = QuantConfig(quantizer=quantizer, bits=bits)
    command = f"qattrain train --bits {bits}" + ("" if quantizer == "lsq" else f" --quantizer {quantizer}")
    rows = [Contender(name, command, (AUTO_BATCH,), partial(own_training, quant=quant, compiles=True))]
    if eager:
        what, build = f"{command} --set train.compile=off", partial(own_training, quant=quant, compiles=False)
        rows.append(Contender(name + EAGER, what, (AUTO_BATCH,), build))
    return rows


def _quantized() -> list[Contender]:
    rows = []
    for name in COMPARED_QUANTIZERS:
        # Every width of lsq: does speed depend on the bits?
        widths = range(8, 0, -1) if name == "lsq" else [b for b in COMPARED_BITS if b in QUANTIZERS[name].weight_bits]
        for bits in widths:
            rows += _own(f"{name}-w{bits}a{bits}", name, bits, bits in COMPARED_BITS)
    return rows


TRAINING: tuple[Contender, ...] = (
    Contender(
        "example",
        "the ordinary PyTorch example: torchvision MNIST, ToTensor, Normalize, DataLoader, fp32, batch 64",
        (EXAMPLE_BATCH,),
        ordinary_example,
    ),
    Contender("plain", "the float net in plain PyTorch, images resident in memory, fp32", (AUTO_BATCH,), plain_loop),
    *_own("float", "lsq", FLOAT_BITS),
    *_quantized(),
    *(
        Contender(f"brevitas-w4a4{name}", what, (AUTO_BATCH,), partial(brevitas_training, tuned=t, quantized_image=q))
        for name, what, t, q in (
            ("", "Brevitas, 4-bit weights and activations, in the plain loop, fp32", False, True),
            ("-tuned", "the same with our memory layout (channels last) and our precision", True, True),
            ("-raw", "brevitas-w4a4 with the image left as it is", False, False),
            ("-raw-tuned", "brevitas-w4a4-tuned with the image left as it is", True, False),
        )
    ),
)
