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
from qattrain.integer.packed import FILE_NAME, KEY, _signed, load_packed

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
    kept = {name: tensor for name, tensor in (TENSORS | (tensors or {})).items() if tensor is not None}
    return _signed(CONTENT | {"digest": "0" * 64} | (content or {}), kept)


def layers(index: int, **changes: Any) -> dict[str, Any]:
    found = [dict(layer) for layer in CONTENT["layers"]]
    found[index] |= changes
    found[index] = {name: value for name, value in found[index].items() if value is not None}
    return {"layers": found}


def test_forging_nothing_is_accepted() -> None:
    assert forged() == DATA


@pytest.mark.parametrize(
    ("content", "tensors", "text"),
    [
        ({}, {"weights": None}, "no tensor 'weights'"),
        ({}, {"shifts": None}, "no tensor 'shifts'"),
        ({}, {"extra": np.zeros(1, np.uint8)}, "extra"),
        ({}, {"biases": np.zeros(3, np.int8)}, "biases has shape (3,), not (20,)"),
        ({}, {"biases": np.zeros((4, 5), np.int8)}, "biases has shape (4, 5), not (20,)"),
        ({}, {"biases": np.zeros(20, np.float32)}, "biases: float32"),
        ({}, {"biases": np.full(20, -(2**31), np.int32)}, "biases has values outside"),
        ({}, {"shifts": np.full_like(TENSORS["shifts"], 63)}, "shifts has values outside 1..62"),
        ({}, {"shifts": np.zeros_like(TENSORS["shifts"])}, "shifts has values outside 1..62"),
        ({}, {"multipliers": np.full(10, -1, np.int8)}, "multipliers has values outside 0..2147483647"),
        ({}, {"multipliers": np.full(10, 2**31, np.uint32)}, "multipliers has values outside 0..2147483647"),
        ({}, {"weights": TENSORS["weights"][1:]}, "weights has shape"),
        ({}, {"weights": TENSORS["weights"].astype(np.int8)}, "weights: int8"),
        ({}, {"biases": np.full(20, 2**31 - 1, np.int32)}, "beyond int32"),
        (layers(0, shape=[2, 1, 25, 1]), {}, "is not a valid network"),
        (layers(0, shape=[50, 1], pool=None), {}, "comes after a matrix product"),
        (layers(0, shape=[50, 1]), {}, "conv1 is no convolution, but has stride, padding, groups, pool"),
        (layers(0, shape=[10**400, 1, 5, 5]), {}, "is not a valid network: weights has shape"),
        (layers(0, shape=[2**31, 2**31, 5, 5]), {}, "is not a valid network: weights has shape"),
        (layers(0, shape=None), {}, "conv1 needs a shape or pixels"),
        (layers(0, pixels=3), {}, "conv1 needs a shape or pixels"),
        (layers(1, shape=[6, 1, 5, 5]), {}, "is not a valid network"),
        (layers(0, bits=None), {}, "conv1 has no bits"),
        (layers(0, quantizer=None), {}, "conv1 has no quantizer"),
        (layers(0, lowest=None), {}, "conv1 has no lowest"),
        (layers(0, activation_bits=None), {}, "conv1 has no activation_bits"),
        (layers(3, activation_bits=4), {}, "does not give logits"),
        (layers(3, shape=[10, 5, 1, 1]), {}, "does not give logits"),
        (layers(2, once=["multipliers"]), {}, "multipliers has shape (10,), not (6,)"),
        (layers(0, lowest=-7), {}, "has weights beyond 7"),
        (layers(0, stride=2), {}, "is not a valid network: fc1 takes 48 inputs, not 3"),
        (layers(0, stride=[1, 10**400]), {}, "is not a valid network: conv1 does not fit"),
        (layers(0, padding=10**7, stride=869_566), {}, "conv1 takes 400001120000784 numbers"),
        (layers(0, padding=[0, 10**400]), {}, "is not a valid network"),
        (layers(0, groups=2), {}, "is not a valid network"),
        (layers(0, pool=25), {}, "is not a valid network: conv1 does not fit"),
        (layers(0, pool=3), {}, "is not a valid network"),
        (
            {"input_shape": [1, 10**9, 10**9]} | layers(0, stride=4 * 10**7),
            {},
            "conv1 takes 1000000000000000000 numbers",
        ),
        ({"input_shape": [3, 28, 28]}, {}, "is not a valid network"),
        ({"layers": CONTENT["layers"][:2]}, {}, "is not a valid network"),
        ({"class_names": ["a", "b"]}, {}, "10 logits for 2 classes"),
    ],
    ids=str,
)
def test_a_file_with_the_right_digest_that_makes_no_sense_is_refused(
    content: dict[str, Any], tensors: dict[str, Any], text: str
) -> None:
    refused(forged(content, tensors), text)


def rewritten(text: str) -> bytes:
    return safetensors.numpy.save(TENSORS, {KEY: text})


@pytest.mark.parametrize("version", [0, "1", None, True, 2.0])
def test_another_version_is_named(version: Any) -> None:
    text = json.dumps(CONTENT | {"format_version": version})
    refused(rewritten(text), f"version {version!r}", "reads versions 1 and 2")


def test_a_newer_version_is_said_to_be_newer() -> None:
    text = json.dumps({"format_version": 3, "digest": "", "anything": "else"})
    refused(rewritten(text), "format version 3, newer than this qattrain", "reads versions 1 and 2", "update qattrain")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logit_scale": float("nan")}, "logit_scale"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"test_accuracy": float("inf")}, "test_accuracy"),
        ({"layers": []}, "layers"),
        ({"more": 1}, "more"),
        ({"name": None}, "name"),
        ({"input_shape": [1, 28]}, "input_shape"),
        ({"input_shape": [1, 28, 0]}, "input_shape"),
        (layers(0, bits=9), "bits"),
        (layers(0, shape=[1, 2, 3]), "shape"),
        (layers(0, shape=[0, 1, 5, 5]), "shape"),
        (layers(0, stride=0), "stride"),
        (layers(0, padding=-1), "padding"),
        (layers(0, groups=1.5), "groups"),
        (layers(0, pool=0), "pool"),
        (layers(0, lowest=-256), "lowest"),
        (layers(0, zero_point=256), "zero_point"),
        (layers(0, once=["weights"]), "once"),
        (layers(0, name=""), "name"),
        (layers(0, more=1), "more"),
        (layers(0, shape=[10**400, 2]), "altered"),
        ({"logit_scale": 0.5}, "altered"),
        ({"digest": "0" * 64}, "altered"),
        ({"digest": ""}, "altered"),
        ({"digest": None}, "digest"),
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
