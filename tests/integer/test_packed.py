"""The packed file: every integer comes back, in the documented form, and nothing is wasted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from integer_models import (
    KINDS,
    SMALL,
    assert_same_model,
    random_images,
    random_model,
    with_layer,
    with_requantization,
)

from qattrain.errors import CheckpointError, ExportError
from qattrain.export import EXPORTERS
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.packed import FILE_NAME, is_packed, load_packed

PACKED = EXPORTERS["packed"]


def facts_of(model: IntegerModel) -> ModelFacts:
    return ModelFacts("lenet-nano", "digits", tuple(str(label) for label in range(model.classes)), 0.987)


def packed(model: IntegerModel) -> bytes:
    files = PACKED.write(model, facts_of(model), "")
    assert list(files) == [FILE_NAME]
    return files[FILE_NAME]


DATA = packed(random_model(widths=SMALL, seed=1))


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_every_integer_and_fact_comes_back(tmp_path: Path, arguments: dict[str, Any]) -> None:
    model = random_model(**{"widths": SMALL, "seed": 3} | arguments)
    data = packed(model)
    (tmp_path / "renamed.bin").write_bytes(data)
    for source in (data, tmp_path / "renamed.bin"):
        loaded, facts = load_packed(source)
        assert_same_model(loaded, model)
        assert facts == facts_of(model)
    assert packed(loaded) == data
    images = random_images(5)
    with PACKED.run({FILE_NAME: data}) as run:
        assert np.array_equal(run(images), model.run(images))


@pytest.mark.parametrize("classes", [10, 47])
@pytest.mark.parametrize("widths", [(20, 50, 500), (8, 16, 32)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_weight_takes_its_bits_and_all_else_1_kib_and_9_bytes_a_channel(
    bits: int, widths: tuple[int, int, int], classes: int
) -> None:
    quantizer = "binary" if bits == 1 else "affine"
    model = random_model(quantizer, bits, bits, widths, classes)
    channels = sum(len(layer.codes) for layer in model.layers)
    weights = sum(layer.codes.size for layer in model.layers)
    assert len(packed(model)) <= weights * bits / 8 + 1024 + 9 * channels + 9 * (classes - 10)


@pytest.mark.parametrize("quantizer", ["lsq", "affine", "pow2", "dorefa"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_grid_comes_back(quantizer: str, bits: int) -> None:
    model = random_model(quantizer, bits, widths=SMALL, seed=bits)
    assert_same_model(load_packed(packed(model))[0], model)


def test_mixed_bits_take_each_layers_own() -> None:
    model = random_model(("lsq", "binary", "ternary", "pow2"), (8, 1, 2, 3), widths=SMALL)
    sizes = [-(-layer.codes.size * layer.bits // 8) for layer in model.products]
    assert len(safetensors.numpy.load(packed(model))["weights"]) == sum(sizes)


def test_columns_take_the_smallest_type_that_holds_them() -> None:
    types = {name: str(tensor.dtype) for name, tensor in safetensors.numpy.load(DATA).items()}
    assert types == {"weights": "uint8", "biases": "int16", "multipliers": "uint32", "shifts": "uint8"}
    wide = safetensors.numpy.load(packed(random_model(widths=SMALL, extreme=True)))
    assert (str(wide["biases"].dtype), str(wide["multipliers"].dtype)) == ("int32", "uint32")


def test_what_repeats_is_stored_once() -> None:
    model, equal = random_model(widths=(20, 50, 500)), {"multipliers": [2**30, 3], "shifts": [40, 41]}
    for index in range(3):
        values = [equal["multipliers"][index % 2]], [equal["shifts"][index % 2]]
        model = with_requantization(model, index, *values)
    tensors = safetensors.numpy.load(packed(model))
    assert tensors["multipliers"].tolist() == [2**30, 3, 2**30]
    assert tensors["shifts"].tolist() == [40, 41, 40]
    assert_same_model(load_packed(packed(model))[0], model)
    model = with_layer(model, 2, bias=np.full(500, -7, np.int64))
    assert len(safetensors.numpy.load(packed(model))["biases"]) == 20 + 50 + 1 + 10
    assert_same_model(load_packed(packed(model))[0], model)


def test_maps_that_no_reader_takes_are_not_written() -> None:
    model = random_model(widths=SMALL)
    model = with_layer(model, 0, stride=(250, 250), padding=(3000, 3000))
    with pytest.raises(ExportError, match=r"conv1 takes 36336784 numbers.*; use smaller images"):
        packed(model)


def test_what_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            load_packed(path)
        with pytest.raises(CheckpointError, match=str(path)):
            is_packed(path)


def test_a_packed_file_is_known_by_its_content_or_its_name(tmp_path: Path) -> None:
    cases = {"a.bin": (DATA, True), "b.pt": (b"PK\x03\x04" + bytes(9), False), "c.safetensors": (b"", True)}
    for name, (data, expected) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert is_packed(tmp_path / name) == expected
