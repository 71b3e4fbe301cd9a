"""The packed file as described at the top of `packed.py`: a reader written from that alone computes the same logits.

And files of older versions, whose logits were computed by the qattrain that wrote them.
"""

import hashlib
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from integer_models import KINDS, SMALL, assert_same_model, random_images, random_model
from random_chains import noise, random_case, trained

from qattrain.errors import CheckpointError
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts, Requantization, packed_v1
from qattrain.integer.lowering import lower
from qattrain.integer.packed import load_packed, write_packed

ODD_NAMES = ("Äpfel", '"0"', "0" * 64, "苹果", "a, b", "\\", "")
VERSION_1 = Path(__file__).parent / "data" / "packed-version-1.safetensors"  # affine weights of 8, 3, 1 and 3 bits

OWN = ("name", "shape", "pixels", "stride", "padding", "groups", "pool")  # of one layer alone

# --- a reader written from the description --------------------------------------------------------------------------


def weights_of(stream: np.ndarray, layer: dict[str, Any]) -> np.ndarray:
    bits, lowest = layer["bits"], layer["lowest"]
    ones = [int(stream[j // 8]) >> (j % 8) & 1 for j in range(int(np.prod(layer["shape"])) * bits)]
    index = np.array([sum(ones[i + j] << j for j in range(bits)) for i in range(0, len(ones), bits)])
    return (lowest + (2 if lowest == 1 - 2**bits else 1) * index - layer["zero_point"]).reshape(layer["shape"])


def convolved(x: np.ndarray, w: np.ndarray, layer: dict[str, Any]) -> np.ndarray:
    (down, right), (top, left) = (np.broadcast_to(layer.get(name, d), 2) for name, d in (("stride", 1), ("padding", 0)))
    x = np.pad(x, ((0, 0), (top, top), (left, left)))
    outputs, inputs, rows, columns = w.shape
    height, width = (x.shape[1] - rows) // down + 1, (x.shape[2] - columns) // right + 1
    acc = np.zeros((outputs, height, width), np.int64)
    for d, i, j in product(range(outputs), range(height), range(width)):
        first = d * layer.get("groups", 1) // outputs * inputs
        seen = x[first : first + inputs, i * down : i * down + rows, j * right : j * right + columns]
        acc[d, i, j] = (seen * w[d]).sum()
    return acc


def read_and_run(data: bytes, image: np.ndarray) -> list[int]:
    length = int.from_bytes(data[:8], "little")
    content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["qattrain"])
    blank = data.replace(content["digest"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(blank).hexdigest() == content["digest"]
    tensors = safetensors.numpy.load(data)
    taken = dict.fromkeys(tensors, 0)

    def take(name: str, count: int) -> np.ndarray:
        taken[name] += count
        return tensors[name][taken[name] - count : taken[name]].astype(np.int64)

    assert list(image.shape) == content["input_shape"]
    x, before = image.astype(np.int64), {"zero_point": 0, "once": []}
    for entry in content["layers"]:
        before |= {name: value for name, value in entry.items() if name not in OWN}
        layer = before | entry
        if "pixels" in layer:
            assert layer["pixels"] == x[0].size
            acc, count, once = x.sum((1, 2), keepdims=True), 1, []
        else:
            count, once = layer["shape"][0], layer["once"]
            w = weights_of(take("weights", -(-int(np.prod(layer["shape"])) * layer["bits"] // 8)), layer)
            acc = convolved(x, w, layer) if w.ndim == 4 else (w @ x.reshape(-1))[:, None, None]
            pool = layer.get("pool", 1)
            height, width = acc.shape[1] // pool, acc.shape[2] // pool
            acc = acc[:, : height * pool, : width * pool].reshape(count, height, pool, width, pool).max((2, 4))
            acc = acc + take("biases", 1 if "biases" in once else count)[:, None, None]
        if layer["name"] == content["layers"][-1]["name"]:
            assert taken == {name: len(tensor) for name, tensor in tensors.items()}
            return acc.reshape(-1).tolist()
        m, k = (take(n, 1 if n in once else count)[:, None, None] for n in ("multipliers", "shifts"))
        x = np.clip((acc * m + 2 ** (k - 1)) >> k, 0, 2 ** layer["activation_bits"] - 1)
    raise AssertionError


# --- the tests ------------------------------------------------------------------------------------------------------


def facts_for(classes: int) -> ModelFacts:
    return ModelFacts("a chain", "noise", tuple(ODD_NAMES[i % 7] for i in range(classes)), None)


@pytest.mark.parametrize("seed", range(12))
def test_a_reader_written_from_the_description_computes_the_logits_of_any_chain(seed: int) -> None:
    case = random_case(seed)
    model, images = lower(trained(case, seed), case.shape), noise(case, 3).numpy()
    data = write_packed(model, facts_for(model.classes))
    assert [read_and_run(data, image) for image in images] == model.run(images).tolist()
    assert np.array_equal(load_packed(data)[0].run(images), model.run(images))


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_it_reads_every_grid(arguments: dict[str, Any]) -> None:
    model, images = random_model(**{"widths": SMALL, "seed": 5} | arguments), random_images(2)
    data = write_packed(model, facts_for(model.classes))
    assert [read_and_run(data, image) for image in images] == model.run(images).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_every_integer_of_any_chain_comes_back(seed: int) -> None:
    case = random_case(seed)
    model = lower(trained(case, seed), case.shape)
    facts = facts_for(model.classes)
    loaded, found = load_packed(write_packed(model, facts))
    assert_same_model(loaded, model)
    assert found == facts
    assert write_packed(loaded, found) == write_packed(model, facts)


def test_strides_and_padding_may_differ_by_direction() -> None:
    codes = np.arange(2 * 4).reshape(2, 1, 1, 4) - 4
    how = Requantization(np.array([2**30, 2**29]), np.array([32, 31]), 3)
    conv = IntegerLayer("conv1", "conv", codes, 4, "lsq", -8, 0, np.array([1, -1]), 255, how, (1, 2), (0, 3))
    model = random_model(widths=SMALL)
    head = replace(model.layers[-1], codes=np.ones((10, 2 * 5 * 6), np.int64), input_max=7)
    model = IntegerModel((conv, head), 0.1, (1, 5, 9))
    image = random_images(3)[2, :, :5, :9]
    data = write_packed(model, facts_for(10))
    assert read_and_run(data, image) == model.run(image[None])[0].tolist()
    assert_same_model(load_packed(data)[0], model)


# --- older versions -------------------------------------------------------------------------------------------------


def test_version_1_is_read_to_the_same_logits() -> None:
    images = (np.arange(2 * 784) ** 2 % 251).astype(np.uint8).reshape(2, 1, 28, 28)
    images[1] //= 3
    model, facts = load_packed(VERSION_1)
    assert model.run(images).tolist() == [[9, 3, 6, 7, 8, 10, 3, 1, 4, 14], [-2, -1, 8, 9, 1, 7, 3, 2, -5, 7]]
    assert facts == ModelFacts("lenet-nano", "digits", tuple("0123456789"), 0.6166666666666667)
    assert model.logit_scale == 0.1205419846551905
    assert_same_model(load_packed(write_packed(model, facts))[0], model)
    assert len(write_packed(model, facts)) < VERSION_1.stat().st_size - 800


def test_every_flipped_bit_of_version_1_is_found() -> None:
    for position in range(VERSION_1.stat().st_size):
        data = bytearray(VERSION_1.read_bytes())
        data[position] ^= 1 << (position * 5 % 8)
        with pytest.raises(CheckpointError):
            load_packed(bytes(data))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _content, tensors: tensors.pop("fc1.shift"), "no tensor 'fc1.shift'"),
        (lambda _content, tensors: tensors.update(extra=np.zeros(1)), "15 tensors for 4 layers"),
        (lambda _content, tensors: tensors.update({"fc1.bias": np.zeros(16, np.int8)}), "fc1.bias has another shape"),
        (lambda content, _tensors: content["layers"].pop(), "14 tensors for 3 layers"),
        (lambda content, _tensors: content["layers"][0].update(shape=[]), "conv1.bias has another shape"),
        (lambda content, _tensors: content.update(layers=5), "layers"),
        (lambda content, _tensors: content.update(facts=[]), "facts"),
        (lambda content, _tensors: content["facts"].update(more=1), "more"),
        (lambda content, _tensors: content["facts"].pop("dataset"), "dataset"),
        (lambda content, _tensors: content["layers"][3].update(activation_bits=4), "fc2"),
    ],
)
def test_a_version_1_that_makes_no_sense_is_refused(change: Any, text: str) -> None:
    data = VERSION_1.read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["qattrain"])
    tensors = safetensors.numpy.load(data)
    change(content, tensors)
    content["digest"] = packed_v1._digest(content, tensors)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_packed(safetensors.numpy.save(tensors, {"qattrain": json.dumps(content)}))
    assert len(str(caught.value).splitlines()) == 1
