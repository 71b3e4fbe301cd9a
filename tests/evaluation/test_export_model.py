"""export_model: a chain trained in a loop of one's own becomes verified files, and what differs is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qattrain
from qattrain.data import is_on_disk
from qattrain.errors import ConfigError, ExportError
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.export.base import NOISE_IMAGES
from qattrain.integer.packed import FILE_NAME, load_packed

SHAPE = (3, 14, 14)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    """A network as in the README: padding, stride, groups, batch normalization, both poolings; trained a little."""
    torch.manual_seed(0)
    net = nn.Sequential(
        qattrain.PixelInput(),
        qattrain.QuantConv2d(3, 8, 3, padding=1, bn=True),
        qattrain.BatchNorm(8),
        qattrain.QuantReLU(),
        nn.MaxPool2d(2),
        qattrain.QuantConv2d(8, 16, 3, stride=2, groups=4),
        qattrain.QuantReLU(),
        qattrain.QuantAvgPool2d(),
        nn.Flatten(),
        qattrain.QuantLinear(16, 4, per_channel=False),
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for seed in range(10):
        loss = F.cross_entropy(net(images(32, seed)), torch.arange(32) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("kind", ["tensor", "array", "read-only"])
def test_a_network_of_ones_own_is_written_verified_and_compared(net: nn.Sequential, tmp_path: Path, kind: str) -> None:
    given: Any = images(200, 99) if kind == "tensor" else images(200, 99).numpy()
    if kind == "read-only":
        given.flags.writeable = False
    exported = qattrain.export_model(net, "packed", tmp_path / "out", images=given, class_names=("a", "b", "c", "d"))
    path = exported.folder / FILE_NAME
    assert exported.sizes == {FILE_NAME: path.stat().st_size}
    assert exported.verified_images == 200 + NOISE_IMAGES
    model, facts = load_packed(path)
    assert (facts.name, facts.class_names, facts.test_accuracy) == ("network", ("a", "b", "c", "d"), None)
    assert np.array_equal(model.run(images(200, 99).numpy()), exported.integers.run(images(200, 99).numpy()))
    assert exported.mismatches is not None
    assert (exported.mismatches.predictions, exported.mismatches.logits) == (0, 0)
    assert exported.mismatches.codes is not None
    assert exported.mismatches.codes <= 2
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_packed_file_is_evaluated_if_it_was_told_its_images(
    net: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = images(20, 99).numpy(), np.arange(20) % 4
    np.savez(tmp_path / "own.npz", x_train=x.transpose(0, 2, 3, 1), y_train=y, x_test=x.transpose(0, 2, 3, 1), y_test=y)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = qattrain.export_model(net, "packed", "told", images=x, dataset="npz:own.npz")
    outcome = evaluate_checkpoint(told.folder / FILE_NAME, tmp_path)
    assert np.array_equal(outcome.evaluation.predictions.numpy(), told.integers.run(x).argmax(1))
    silent = qattrain.export_model(net, "packed", "silent", images=x)
    assert "IntegerModel" not in repr(silent)
    assert not is_on_disk(load_packed(silent.folder / FILE_NAME)[1].dataset, tmp_path)  # so inspect does without images
    with pytest.raises(
        ConfigError, match=r"does not say what its images were.*allowed: predict, inspect.*dataset='npz:"
    ):
        evaluate_checkpoint(silent.folder / FILE_NAME, tmp_path)


def test_without_images_it_needs_their_shape_and_is_verified_on_noise(net: nn.Sequential, tmp_path: Path) -> None:
    exported = qattrain.export_model(net, "packed", str(tmp_path / "out"), input_shape=SHAPE, name="mine")
    assert (exported.verified_images, exported.mismatches) == (NOISE_IMAGES, None)
    facts = load_packed(exported.folder / FILE_NAME)[1]
    assert (facts.name, facts.class_names) == ("mine", ("0", "1", "2", "3"))


def test_the_counts_of_a_converted_batch_normalization_are_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.bias)
    net = nn.Sequential(
        qattrain.PixelInput(), qattrain.QuantConv2d(3, 6, 3, bits=8), norm, qattrain.QuantReLU(8), nn.MaxPool2d(2),
        nn.Flatten(), qattrain.QuantLinear(216, 4, bits=8, per_channel=False),
    )  # fmt: skip
    for seed in range(5):
        net(images(16, seed))
    mismatches = qattrain.export_model(net, "packed", tmp_path, images=images(50)).mismatches
    assert mismatches is not None
    assert mismatches.codes is not None
    assert mismatches.codes > 0
    assert mismatches.logits > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"to": "tflite"}, r"^to = 'tflite': allowed: packed, onnx, c, page$"),
        ({"images": images(2).float()}, r"images: float32 of shape \(2, 3, 14, 14\); allowed: uint8 \(N, C, H, W\)"),
        ({"images": images(2)[0]}, r"images: uint8 of shape \(3, 14, 14\); allowed: uint8 \(N, C, H, W\)"),
        ({"images": [[1, 2]]}, r"images: int64 of shape \(1, 2\); allowed: uint8"),
        ({"images": None}, r"^export_model needs images, or input_shape=\(C, H, W\)$"),
        ({"images": None, "input_shape": (14, 14)}, r"input_shape = \(14, 14\); allowed: three numbers"),
        ({"images": None, "input_shape": (3, 0, 14)}, r"input_shape = \(3, 0, 14\); allowed: three numbers"),
        (
            {"input_shape": (1, 28, 28)},
            r"input_shape = \(1, 28, 28\), but images have \(3, 14, 14\); leave",
        ),
        ({"class_names": ["a", "b"]}, "class_names has 2 names, the network 4 logits; name each"),
        ({"layout": "nchw"}, "--layout 'nchw': allowed with this --to: none: leave it out"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    net: nn.Sequential, tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        qattrain.export_model(net, **{"to": "packed", "folder": tmp_path / "out", "images": images(2)} | arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_fit_and_networks_that_are_no_chain_are_refused(net: nn.Sequential, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'1' \(QuantConv2d\): it does not fit images of 1x14x14"):
        qattrain.export_model(net, "packed", tmp_path / "out", images=images(2)[:, :1])
    with pytest.raises(ExportError, match=r"Linear is no nn\.Sequential"):
        qattrain.export_model(nn.Linear(2, 3), "packed", tmp_path / "out", images=images(2))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_needs_force(net: nn.Sequential, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds other files \(notes\.txt\)"):
        qattrain.export_model(net, "packed", tmp_path, images=images(2))
    qattrain.export_model(net, "packed", tmp_path, images=images(2), force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
