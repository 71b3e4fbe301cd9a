"""A QTensor is no tuple and no Tensor: what makes sense on codes works, every other use is one clear ConfigError."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qattrain.errors import ConfigError
from qattrain.layers import PixelInput
from qattrain.quant import QTensor, dequantize
from qattrain.quant.grid import CODE_FUNCTIONS

CODES = torch.arange(2 * 3 * 6 * 5).view(2, 3, 6, 5).float().roll(7) % 16
Q = QTensor(CODES, torch.tensor(0.25))
SHIFTED = QTensor(CODES, torch.tensor(0.25), 3)
PIXELS = PixelInput()(torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8))

WORKING: dict[str, Callable[[Any], Any]] = {
    "MaxPool2d": nn.MaxPool2d(2),
    "MaxPool2d with a stride": nn.MaxPool2d(3, stride=1),
    "MaxPool2d with dilation": nn.MaxPool2d((2, 1), dilation=2),
    "F.max_pool2d": lambda q: F.max_pool2d(q, 2),
    "torch.max_pool2d": lambda q: torch.max_pool2d(q, 2),
    "AvgPool2d": nn.AvgPool2d(2),
    "AvgPool2d of one side in a tuple": nn.AvgPool2d((2,)),  # type: ignore[arg-type]
    "AvgPool2d of a rectangle": nn.AvgPool2d((2, 3), stride=(1, 2)),
    "F.avg_pool2d": lambda q: F.avg_pool2d(q, 3, 2),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d(1),
    "AdaptiveAvgPool2d of a tuple": nn.AdaptiveAvgPool2d((1, 1)),
    "Flatten": nn.Flatten(),
    "flatten": lambda q: q.flatten(1),
    "torch.flatten": lambda q: torch.flatten(q, 1),
    "view": lambda q: q.view(2, -1),
    "reshape": lambda q: q.reshape(6, 30),
    "torch.reshape": lambda q: torch.reshape(q, (6, 30)),
    "Dropout in evaluation": nn.Dropout(0.5).eval(),
}


@pytest.mark.parametrize("q", [Q, SHIFTED, QTensor(CODES, None), PIXELS], ids=["codes", "shifted", "float", "pixels"])
@pytest.mark.parametrize("name", WORKING)
def test_what_makes_sense_on_codes_gives_the_codes_of_the_result(name: str, q: QTensor) -> None:
    found = WORKING[name](q)
    assert isinstance(found, QTensor)
    expected = WORKING[name](dequantize(q).contiguous())
    torch.testing.assert_close(dequantize(found), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.codes, found.codes.round()) or q.scale is None
    assert found.shape == expected.shape


def test_shape_size_and_dim_are_those_of_the_codes() -> None:
    assert (Q.shape, Q.size(), Q.dim(), Q.size(-1)) == (CODES.shape, CODES.shape, 4, 5)


def test_dropout_zeroes_and_enlarges_codes_in_training_and_passes_the_gradient() -> None:
    codes = CODES.clone().requires_grad_()
    torch.manual_seed(0)
    found = nn.Dropout(0.5)(QTensor(codes, torch.tensor(0.25)))
    kept = found.codes != 0
    assert torch.equal(found.codes, torch.where(kept, 2 * codes, 0.0))
    assert 0.3 < float(kept.float().mean()) < 0.6
    found.codes.sum().backward()
    assert codes.grad is not None
    assert set(codes.grad.unique().tolist()) == {0.0, 2.0}


REFUSED: dict[str, Callable[[Any], Any]] = {
    "__add__": lambda q: q + q,
    "__radd__": lambda q: 1 + q,
    "__iadd__": lambda q: q.__iadd__(1),
    "add": lambda q: torch.ones(1) + q,
    "__sub__": lambda q: q - 1,
    "__mul__": lambda q: q * 2,
    "__rmul__": lambda q: 2 * q,
    "__truediv__": lambda q: q / 2,
    "__matmul__": lambda q: q @ q,
    "__pow__": lambda q: q**2,
    "__neg__": lambda q: -q,
    "__abs__": abs,
    "__gt__": lambda q: q > 0,
    "__le__": lambda q: q <= 0,
    "__and__": lambda q: q & q,
    "__getitem__": lambda q: q[0],
    "__setitem__": lambda q: q.__setitem__(0, 1),
    "__iter__": list,
    "__contains__": lambda q: 1 in q,
    "__len__": len,
    "__bool__": bool,
    "__float__": float,
    "__int__": int,
    "__round__": round,
    "__array__": np.asarray,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "cat": lambda q: torch.cat([q, q]),
    "conv2d": nn.Conv2d(3, 2, 3),
    "linear": nn.Linear(5, 2),
    "batch_norm": nn.BatchNorm2d(3),
    "softmax": lambda q: F.softmax(q, 1),
    "mean": lambda q: q.mean(),
    "sum": torch.sum,
    "permute": lambda q: q.permute(0, 2, 3, 1),
    "dtype": lambda q: q.dtype,
    "to": lambda q: q.to("cpu"),
    "max_pool2d on codes with padding=1": nn.MaxPool2d(2, padding=1),
    "max_pool2d on codes with padding=0, ceil_mode=True": nn.MaxPool2d(2, ceil_mode=True),
    "avg_pool2d on codes with padding=1": nn.AvgPool2d(2, padding=1),
    "avg_pool2d on codes with padding=0, ceil_mode=True": nn.AvgPool2d(2, ceil_mode=True),
    "avg_pool2d on codes with padding=0, ceil_mode=False, divisor_override=3": nn.AvgPool2d(2, divisor_override=3),
    "adaptive_avg_pool2d on codes with output_size=2": nn.AdaptiveAvgPool2d(2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_by_name_with_what_to_do(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        REFUSED[name](Q)
    message = str(caught.value)
    assert message.startswith(name)
    assert "allowed: " in message
    assert "\n" not in message


def test_max_pooling_with_indices_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_pool2d"):
        nn.MaxPool2d(2, return_indices=True)(Q)


def test_a_residual_sum_is_no_longer_a_tuple_of_six() -> None:
    with pytest.raises(ConfigError, match="__add__ does not work on the codes of a QTensor; allowed: max_pool2d"):
        Q + Q


def test_it_is_no_tuple_and_what_no_tensor_has_is_an_attribute_error() -> None:
    assert not isinstance(Q, tuple | Tensor)
    with pytest.raises(AttributeError, match="QTensor has no nonsense"):
        Q.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ConfigError, match=r"^relu does not work"):
        Q.relu()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["flatten", "view", "reshape"])
def test_codes_with_a_scale_per_channel_keep_their_shape(name: str) -> None:
    q = QTensor(CODES, torch.ones(1, 3, 1, 1))
    arguments: tuple[int, ...] = (1,) if name == "flatten" else (2, -1)
    with pytest.raises(ConfigError, match=f"cannot {name} a QTensor with 3 scales; only one scale can be kept"):
        getattr(q, name)(*arguments)
    assert torch.equal(dequantize(nn.MaxPool2d(2)(q)), F.max_pool2d(dequantize(q), 2))


def test_every_entry_of_the_table_is_tried() -> None:
    assert set(CODE_FUNCTIONS) - {"_max_pool2d", "size"} == {
        "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "flatten", "view", "reshape",
    }  # fmt: skip


def test_a_sum_of_branches_is_told_that_networks_are_chains() -> None:
    q = QTensor(torch.ones(2, 3), torch.tensor(0.5))
    for add in (lambda: q + q, lambda: torch.add(q, q), lambda: torch.ones(2, 3) + q):  # type: ignore[operator, call-overload]
        with pytest.raises(ConfigError, match="sums of branches have no integer form: networks are chains"):
            add()
