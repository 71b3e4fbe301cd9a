"""The packed file: every integer comes back, in the documented form, and nothing is wasted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from integer_models import KINDS, SMALL, assert_same_model, random_images, random_model

from qattrain.errors import CheckpointError
from qattrain.export import EXPORTERS
from qattrain.integer import IntegerModel, ModelFacts, unpack_codes
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
def test_a_weight_takes_its_bits_and_all_else_4_kib_and_16_bytes_a_channel(
    bits: int, widths: tuple[int, int, int], classes: int
) -> None:
    quantizer = "binary" if bits == 1 else "affine"
    model = random_model(quantizer, bits, bits, widths, classes)
    channels = sum(len(layer.codes) for layer in model.layers)
    weights = sum(layer.codes.size for layer in model.layers)
    assert len(packed(model)) <= weights * bits / 8 + 4096 + 16 * channels


@pytest.mark.parametrize("quantizer", ["lsq", "affine", "pow2", "dorefa"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_grid_comes_back(quantizer: str, bits: int) -> None:
    model = random_model(quantizer, bits, widths=SMALL, seed=bits)
    assert_same_model(load_packed(packed(model))[0], model)


def test_mixed_bits_take_each_layers_own() -> None:
    model = random_model(("lsq", "binary", "ternary", "pow2"), (8, 1, 2, 3), widths=SMALL)
    sizes = [len(safetensors.numpy.load(packed(model))[f"{layer.name}.weight"]) for layer in model.layers]
    assert sizes == [-(-layer.codes.size * layer.bits // 8) for layer in model.layers]


def test_any_safetensors_reader_finds_what_the_documentation_says() -> None:
    model = random_model(("dorefa", "binary", "ternary", "affine"), (4, 1, 2, 3), widths=SMALL)
    data = packed(model)
    tensors = safetensors.numpy.load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert list(metadata) == ["qattrain"]
    content = json.loads(metadata["qattrain"])
    assert (content["format_version"], content["logit_scale"]) == (1, model.logit_scale)
    for layer, entry in zip(model.layers, content["layers"], strict=True):
        assert (entry["name"], tuple(entry["shape"]), entry["bits"]) == (layer.name, layer.codes.shape, layer.bits)
        stored = unpack_codes(tensors[f"{layer.name}.weight"], layer.bits, 0, layer.codes.size)
        step = 2 if layer.bits == 1 or layer.quantizer == "dorefa" else 1
        assert np.array_equal((entry["lowest"] + step * stored).reshape(layer.codes.shape), layer.codes)
        assert np.array_equal(tensors[f"{layer.name}.bias"], layer.bias)
    # One bit: 0 means -1.
    first = int(tensors["conv2.weight"][0])
    assert [2 * (first >> j & 1) - 1 for j in range(8)] == model.layers[1].codes.reshape(-1)[:8].tolist()


def test_columns_take_the_smallest_type_that_holds_them() -> None:
    tensors = safetensors.numpy.load(DATA)
    assert {str(tensors[f"{layer}.shift"].dtype) for layer in ("conv1", "conv2", "fc1")} == {"uint8"}
    assert str(tensors["conv1.bias"].dtype) == "int16"
    assert "fc2.multiplier" not in tensors
    wide = safetensors.numpy.load(packed(random_model(widths=SMALL, extreme=True)))
    assert (str(wide["fc2.bias"].dtype), str(wide["fc1.multiplier"].dtype)) == ("int32", "uint32")


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
