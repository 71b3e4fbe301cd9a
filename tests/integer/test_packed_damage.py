"""Anything but what qattrain wrote is refused with one line: flipped bits, truncated, foreign, forged."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_models import SMALL, random_model

from qattrain.errors import CheckpointError
from qattrain.export import EXPORTERS
from qattrain.integer import ModelFacts
from qattrain.integer.packed import FILE_NAME, KEY, Header, _metadata, load_packed

FACTS = ModelFacts("lenet-nano", "digits", tuple("0123456789"), 0.987)
DATA = EXPORTERS["packed"].write(random_model(widths=SMALL), FACTS, "")[FILE_NAME]
HEADER_BYTES = 8 + int.from_bytes(DATA[:8], "little")


def refused(data: bytes, *texts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_packed(data)
    assert len(str(caught.value).splitlines()) == 1
    for text in (FILE_NAME, *texts):
        assert text in str(caught.value)


@settings(max_examples=300)
@given(position=st.integers(0, len(DATA) - 1) | st.integers(0, HEADER_BYTES - 1), bit=st.integers(0, 7))
@example(position=8, bit=0)
@example(position=len(DATA) - 1, bit=7)
def test_every_flipped_bit_is_found(position: int, bit: int) -> None:
    data = bytearray(DATA)
    data[position] ^= 1 << bit
    refused(bytes(data))


def test_every_flipped_bit_of_the_header_is_found() -> None:
    for position in range(HEADER_BYTES):
        data = bytearray(DATA)
        data[position] ^= 1 << (position * 5 % 8)
        refused(bytes(data))


@given(length=st.integers(0, len(DATA) - 1))
@example(length=0)
@example(length=7)
@example(length=8)
@example(length=HEADER_BYTES)
def test_every_truncation_is_found(length: int) -> None:
    refused(DATA[:length], "truncated")


@given(extra=st.binary(min_size=1, max_size=20))
def test_bytes_too_many_are_found(extra: bytes) -> None:
    refused(DATA + extra)


@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: DATA[:HEADER_BYTES] + tail))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    refused(data)


TENSORS = safetensors.numpy.load(DATA)
CONTENT = json.loads(json.loads(DATA[8:HEADER_BYTES])["__metadata__"][KEY])


def forged(content: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> bytes:
    """A file with a valid digest over something that qattrain never writes."""
    plain = {name: value for name, value in (CONTENT | (content or {})).items() if name != "digest"}
    kept = {name: tensor for name, tensor in (TENSORS | (tensors or {})).items() if tensor is not None}
    text = _metadata(Header.model_validate_json(json.dumps(plain)), kept)
    return safetensors.numpy.save(kept, {KEY: text})


def layers(index: int, **changes: Any) -> dict[str, Any]:
    found = [dict(layer) for layer in CONTENT["layers"]]
    found[index] |= changes
    return {"layers": found}


def test_forging_nothing_is_accepted() -> None:
    assert forged() == DATA


@pytest.mark.parametrize(
    ("content", "tensors", "text"),
    [
        ({}, {"conv1.weight": None}, "no tensor 'conv1.weight'"),
        ({}, {"fc1.shift": None}, "no tensor 'fc1.shift'"),
        ({}, {"extra": np.zeros(1, np.uint8)}, "extra"),
        ({}, {"conv1.bias": np.zeros(3, np.int8)}, "conv1.bias has another shape"),
        ({}, {"conv1.bias": np.zeros(2, np.float32)}, "conv1.bias has another shape"),
        ({}, {"conv1.bias": np.array([-(2**31), 0], np.int32)}, "conv1.bias has values outside"),
        ({}, {"conv1.shift": np.array([0, 63], np.uint8)}, "conv1.shift has values outside 1..62"),
        ({}, {"fc1.multiplier": np.full(5, -1, np.int8)}, "fc1.multiplier has values outside 0..2147483647"),
        ({}, {"conv1.weight": np.zeros(24, np.uint8)}, "conv1.weight has another size"),
        ({}, {"conv1.weight": np.zeros(25, np.int8)}, "conv1.weight has another size"),
        ({}, {"fc2.bias": np.full(10, 2**31 - 1, np.int32)}, "beyond int32"),
        (layers(0, shape=[2, 1, 25, 1]), {}, "is not a valid network"),
        (layers(0, shape=[50, 1]), {}, "is not a valid network"),
        (layers(0, shape=[10**400, 1, 5, 5]), {}, "conv1.weight has another size"),
        (layers(0, name="conv2"), {}, "is not a valid network"),
        (layers(1, shape=[6, 1, 5, 5]), {}, "is not a valid network"),
        (layers(2, activation_bits=None), {}, "does not give logits"),
        (layers(3, shape=[5, 10], name="fc1", activation_bits=4), {}, "is not a valid network"),
        ({"layers": CONTENT["layers"][:2]}, {}, "is not a valid network"),
        ({"facts": CONTENT["facts"] | {"class_names": ["a", "b"]}}, {}, "10 logits for 2 classes"),
    ],
    ids=str,
)
def test_a_file_with_the_right_digest_that_makes_no_sense_is_refused(
    content: dict[str, Any], tensors: dict[str, Any], text: str
) -> None:
    refused(forged(content, tensors), text)


def rewritten(text: str) -> bytes:
    return safetensors.numpy.save(TENSORS, {KEY: text})


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_named(version: Any) -> None:
    refused(rewritten(json.dumps(CONTENT | {"format_version": version})), f"version {version!r}", "reads 1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logit_scale": float("nan")}, "logit_scale"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"layers": []}, "layers"),
        ({"more": 1}, "more"),
        ({"facts": None}, "facts"),
        (layers(0, bits=9), "bits"),
        (layers(0, shape=[1, 2, 3]), "shape"),
        (layers(0, shape=[10**400, 2]), "altered"),
        ({"logit_scale": 0.5}, "altered"),
        ({"digest": "0" * 64}, "altered"),
        ({"digest": None}, "altered"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_metadata_are_refused_by_name(change: dict[str, Any], text: str) -> None:
    refused(rewritten(json.dumps(CONTENT | change)), text)


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{", "{}", "1", "[" * 100_000, "9" * 10_000])
def test_metadata_that_are_no_object_are_refused(text: str) -> None:
    refused(rewritten(text), "from another program")


def test_files_of_others_are_refused() -> None:
    refused(safetensors.numpy.save({"a": np.zeros(3)}), "another program")
    refused(safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"}), "another program")
    refused(b"PK\x03\x04" + bytes(100), "another program")
