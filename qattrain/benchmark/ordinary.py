"""The net in ordinary PyTorch, float32: the usual example, and a plain loop over images that lie in memory."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.benchmark.contender import CLASSES, SEED, Ready, Workload
from qattrain.config import TrainConfig
from qattrain.data import ImageSet, batch_slices
from qattrain.data.torchvision_sets import import_torchvision_datasets
from qattrain.experiment import AUTO_BATCH
from qattrain.model import PRESETS
from qattrain.optimization import OPTIMIZERS

EXAMPLE_BATCH = 64
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # MNIST's, as every example has them


class PlainLeNet(nn.Module):
    """The preset `lenet` from torch's own layers: float32 (N, 1, 28, 28) -> logits (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, features = PRESETS["lenet"]
        self.conv1 = nn.Conv2d(1, c1, 5)
        self.conv2 = nn.Conv2d(c1, c2, 5)
        self.fc1 = nn.Linear(c2 * 4 * 4, features)
        self.fc2 = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the defaults of our training, as an example would write it."""
    lr, momentum = OPTIMIZERS["sgd"].lr, TrainConfig().momentum
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=True)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Forward, backward and update on float images (B, 1, 28, 28)."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def timed(images: int, work: Callable[[], None]) -> float:
    """Images per second of `work`, which handles that many."""
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def resident_loop(model: nn.Module, data: ImageSet, step: Callable[[Tensor, Tensor], None]) -> dict[int, Ready]:
    """Epochs over all `data` in batches of float images from 0 to 1, in a new order each."""
    count = len(data.labels)

    def epoch() -> None:
        order = torch.randperm(count)
        for part in batch_slices(count, AUTO_BATCH):
            batch = order[part]
            step(data.images[batch].float() / 255, data.labels[batch])

    return {AUTO_BATCH: Ready(lambda: timed(count, epoch), model)}


def plain_loop(workload: Workload) -> dict[int, Ready]:
    torch.manual_seed(SEED)
    model = PlainLeNet()
    optimizer = nesterov(model)
    return resident_loop(model, workload.training, lambda x, y: train_step(model, optimizer, x, y))


def ordinary_example(workload: Workload) -> dict[int, Ready]:
    """torchvision's MNIST class, which makes a PIL image of each sample, behind transforms and a DataLoader."""
    data = workload.training
    datasets: Any = import_torchvision_datasets()
    from torchvision import transforms

    class Synthetic(datasets.MNIST):  # type: ignore[misc]
        """All of torchvision's class but its files."""

        def __init__(self, transform: Any) -> None:
            datasets.VisionDataset.__init__(self, root="", transform=transform)
            self.data, self.targets = data.images[:, 0], data.labels

    normalize = transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))
    dataset = Synthetic(transforms.Compose([transforms.ToTensor(), normalize]))
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=EXAMPLE_BATCH, shuffle=True)
    torch.manual_seed(SEED)
    model = PlainLeNet()
    optimizer = nesterov(model)

    def epoch() -> None:
        for images, labels in loader:
            train_step(model, optimizer, images, labels)

    return {EXAMPLE_BATCH: Ready(lambda: timed(len(data.labels), epoch), model)}
