"""The chain's grammar: one canonical form, names that count by kind, shapes by hand, and errors that name the part."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qattrain.config import ModelConfig
from qattrain.config.chain import (
    EXAMPLE,
    EXAMPLES,
    LARGEST,
    MAX_LAYERS,
    PRESETS,
    Layer,
    Shape,
    canonical_name,
    output_side,
    parse_chain,
)
from qattrain.errors import ConfigError

MOBILE = "conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 16 1x1 bn, avgpool, fc"


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_chain(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_line_and_keeps_its_name(name: str) -> None:
    assert parse_chain(name) == parse_chain(PRESETS[name])
    assert parse_chain(name).line == PRESETS[name]
    assert canonical_name(name) == name
    assert ModelConfig(name=name).is_preset


def test_lenet_has_the_names_it_always_had() -> None:
    chain = parse_chain("lenet")
    assert chain.weight_layers == ("conv1", "conv2", "fc1", "fc2")
    assert chain.activation_layers == ("act1", "act2", "act3")
    assert chain.average_layers == ()
    assert chain.widths == (20, 50, 500)


def test_every_word_means_what_it_says() -> None:
    line = "conv 6 5x5 stride 3 pad 2 groups 2 bn, pool 2, dw 3x3 stride 2 pad 1 bn, avgpool, fc 7 bn, fc"
    assert parse_chain(line).layers == (
        Layer("conv", "conv1", "act1", 6, 5, 3, 2, 2, True, 2),
        Layer("dw", "dw1", "act2", None, 3, 2, 1, 1, True, 1),
        Layer("avg", "avg1", "avg1"),
        Layer("fc", "fc1", "act3", 7, bn=True),
        Layer("fc", "fc2", None),
    )
    assert parse_chain("fc").layers == (Layer("fc", "fc1", None),)


def test_names_count_by_kind_and_activations_by_product() -> None:
    chain = parse_chain("conv 4 3x3, dw 3x3, conv 8 1x1, dw 3x3, avgpool, avgpool, fc 5, fc")
    assert chain.weight_layers == ("conv1", "dw1", "conv2", "dw2", "fc1", "fc2")
    assert chain.activation_layers == ("act1", "act2", "act3", "act4", "avg1", "avg2", "act5")
    assert chain.average_layers == ("avg1", "avg2")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (MOBILE, MOBILE),
        ("  conv   8  3x3 ,fc  ", "conv 8 3x3, fc"),
        ("conv 8 3x3 bn groups 1 pad 1 stride 2,fc", "conv 8 3x3 stride 2 pad 1 bn, fc"),
        ("conv 8 3x3 stride 1 pad 0, pool 1, fc", "conv 8 3x3, fc"),
        ("conv 8 5x5, pool 2, pool 3, fc", "conv 8 5x5, pool 6, fc"),
        ("conv 08 03x03, fc", "conv 8 3x3, fc"),
        ("fc", "fc"),
    ],
)
def test_there_is_one_canonical_form(text: str, canonical: str) -> None:
    assert canonical_name(text) == parse_chain(text).line == canonical
    assert parse_chain(canonical) == parse_chain(text)
    config = ModelConfig(name=text)
    assert (config.name, config.is_preset) == (canonical, False)


def test_a_preset_written_out_is_a_chain() -> None:
    config = ModelConfig(name=PRESETS["lenet"])
    assert (config.name, config.is_preset) == (PRESETS["lenet"], False)
    assert config.chain == ModelConfig(name="lenet").chain


@pytest.mark.parametrize(
    ("text", "part", "expected", "shown"),
    [
        ("conv 8 3x3", "part 1, 'conv 8 3x3'", "a chain ends in a bare fc", EXAMPLE),
        ("fc 10", "part 1, 'fc 10'", "a chain ends in a bare fc", EXAMPLE),
        ("fc bn", "part 1, 'fc bn'", "a chain ends in a bare fc", EXAMPLE),
        ("conv 8 3x3, fc 3", "part 2, 'fc 3'", "a chain ends in a bare fc", EXAMPLE),
        ("conv 8 3x3, , fc", "part 2, ''", "expected one of conv, dw, pool, avgpool, fc after the comma", EXAMPLE),
        ("conv 8 3x3, relu, fc", "part 2, 'relu'", "expected one of conv, dw, pool, avgpool, fc;", EXAMPLE),
        ("fc, fc", "part 1, 'fc'", "expected the number of outputs after fc", EXAMPLES["fc"]),
        ("conv, fc", "part 1, 'conv'", "expected the number of outputs after conv", EXAMPLES["conv"]),
        ("conv x 3x3, fc", "part 1", "'x' is not a number of outputs, a whole number from 1 to 4096", EXAMPLES["conv"]),
        ("conv 0 3x3, fc", "part 1", "'0' is not a number of outputs", EXAMPLES["conv"]),
        ("conv 4097 3x3, fc", "part 1", "'4097' is not a number of outputs", EXAMPLES["conv"]),
        ("conv ² 3x3, fc", "part 1", "'²' is not a number of outputs", EXAMPLES["conv"]),
        ("conv 8, fc", "part 1", "expected a square kernel such as 3x3", EXAMPLES["conv"]),
        ("conv 8 3, fc", "part 1", "expected a square kernel such as 3x3, found '3'", EXAMPLES["conv"]),
        ("conv 8 3x5, fc", "part 1", "expected a square kernel such as 3x3, found '3x5'", EXAMPLES["conv"]),
        ("conv 8 0x0, fc", "part 1", "'0' is not a kernel's side, a whole number from 1 to 31", EXAMPLES["conv"]),
        ("conv 8 32x32, fc", "part 1", "'32' is not a kernel's side", EXAMPLES["conv"]),
        ("dw 8 3x3, fc", "part 1", "expected a square kernel such as 3x3, found '8'", EXAMPLES["dw"]),
        ("dw, fc", "part 1", "expected a square kernel such as 3x3", EXAMPLES["dw"]),
        ("dw 3x3 groups 2, fc", "part 1", "'groups' is no option of dw; allowed: stride, pad, bn", EXAMPLES["dw"]),
        (
            "conv 8 3x3 dilation 2, fc",
            "part 1",
            "no option of conv; allowed: stride, pad, groups, bn",
            EXAMPLES["conv"],
        ),
        ("fc 8 pad 1, fc", "part 1", "'pad' is no option of fc; allowed: bn", EXAMPLES["fc"]),
        ("conv 8 3x3 bn bn, fc", "part 1", "bn is given twice", EXAMPLES["conv"]),
        ("conv 8 3x3 pad 1 pad 1, fc", "part 1", "pad is given twice", EXAMPLES["conv"]),
        ("conv 8 3x3 stride, fc", "part 1", "expected a number after stride", EXAMPLES["conv"]),
        (
            "conv 8 3x3 stride 0, fc",
            "part 1",
            "'0' is not a stride here, a whole number from 1 to 31",
            EXAMPLES["conv"],
        ),
        ("conv 8 3x3 stride 32, fc", "part 1", "'32' is not a stride here", EXAMPLES["conv"]),
        ("conv 8 3x3 pad 3, fc", "part 1", "'3' is not a pad here, a whole number from 0 to 2", EXAMPLES["conv"]),
        ("conv 8 3x3 pad -1, fc", "part 1", "'-1' is not a pad here", EXAMPLES["conv"]),
        ("conv 8 3x3 groups 9999999999, fc", "part 1", "is not a groups here", EXAMPLES["conv"]),
        ("pool 2, fc", "part 1, 'pool 2'", "pool follows conv or dw", EXAMPLES["pool"]),
        ("conv 8 3x3, avgpool, pool 2, fc", "part 3", "pool follows conv or dw", EXAMPLES["pool"]),
        ("conv 8 3x3, pool, fc", "part 2, 'pool'", "expected one number, the side of the windows", EXAMPLES["pool"]),
        ("conv 8 3x3, pool 2 2, fc", "part 2", "expected one number", EXAMPLES["pool"]),
        ("conv 8 3x3, pool 0, fc", "part 2", "'0' is not a side, a whole number from 1 to 31", EXAMPLES["pool"]),
        ("conv 8 3x3, pool 16, pool 2, fc", "part 3", "'2' makes windows of 32; allowed: at most 31", EXAMPLES["pool"]),
        ("conv 8 3x3, avgpool 2, fc", "part 2", "avgpool has no options", EXAMPLES["avgpool"]),
        ("conv 8 3x3, fc 4, conv 8 3x3, fc", "part 3", "conv needs a map of pixels, but comes after fc", ""),
        ("conv 8 3x3, fc 4, avgpool, fc", "part 3", "avgpool needs a map of pixels, but comes after fc", ""),
        ("conv 8 3x3, fc 4, pool 2, fc", "part 3", "pool needs a map of pixels, but comes after fc", ""),
    ],
)
def test_an_error_names_the_part_what_was_expected_and_an_example(
    text: str, part: str, expected: str, shown: str
) -> None:
    message = error_of(text)
    for found in (part, expected, f"for example: {shown}"):
        assert found in message


@pytest.mark.parametrize("text", ["", " ", ",", "lenet5", "resnet, fc", "Conv 8 3x3, fc", "lenet, fc"])
def test_what_is_neither_a_preset_nor_a_chain_is_told_of_both(text: str) -> None:
    message = error_of(text)
    assert repr(text) in message
    assert f"allowed: {', '.join(PRESETS)}, or a chain of layers such as '{EXAMPLE}'" in message


def test_a_chain_has_at_most_64_parts() -> None:
    assert len(parse_chain("dw 1x1, " * (MAX_LAYERS - 1) + "fc").layers) == MAX_LAYERS
    assert f"a chain of {MAX_LAYERS + 1} parts; allowed: at most {MAX_LAYERS}" in error_of(
        "dw 1x1, " * MAX_LAYERS + "fc"
    )


@given(st.text(max_size=40) | st.lists(st.sampled_from(f"{MOBILE}, pool 2 groups 0 -1 x".split(" ")), max_size=12))
@example(["conv", "\n", "8,", "fc"])
def test_any_text_is_taken_or_refused_with_one_line(words: str | list[str]) -> None:
    text = words if isinstance(words, str) else " ".join(words)
    with contextlib.suppress(ConfigError):
        line = parse_chain(text).line
        assert parse_chain(line).line == line
        return
    assert len(error_of(text).splitlines()) == 1


def test_shapes_weights_and_multiply_accumulates_by_hand() -> None:
    chain = parse_chain("conv 6 5x5 stride 2 pad 1 groups 3, pool 2, dw 3x3 bn, conv 4 1x1, avgpool, fc 5, fc")
    placed = chain.place((3, 15, 20), 7)
    assert [(p.inputs, p.outputs, p.weight_shape, p.macs) for p in placed] == [
        ((3, 15, 20), (6, 3, 4), (6, 1, 5, 5), 7 * 9 * 150),  # 7x9 before pooling, which drops a column
        ((6, 3, 4), (6, 1, 2), (6, 1, 3, 3), 2 * 54),
        ((6, 1, 2), (4, 1, 2), (4, 6, 1, 1), 2 * 24),
        ((4, 1, 2), (4, 1, 1), (), 0),
        ((4, 1, 1), (5, 1, 1), (5, 4), 20),
        ((5, 1, 1), (7, 1, 1), (7, 5), 35),
    ]
    assert [p.layer for p in placed] == list(chain.layers)


def test_lenets_numbers_are_the_published_ones() -> None:
    placed = parse_chain("lenet").place((1, 28, 28), 10)
    assert [p.weight_shape for p in placed] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert sum(p.macs for p in placed) == 24 * 24 * 500 + 8 * 8 * 25_000 + 400_000 + 5_000


def test_output_side_counts_the_windows_that_fit() -> None:
    for side, kernel, stride, padding in [(5, 5, 1, 0), (7, 3, 2, 0), (8, 3, 2, 1), (1, 3, 2, 1), (9, 1, 4, 0)]:
        starts = range(-padding, side + padding - kernel + 1, stride)
        assert output_side(side, kernel, stride, padding) == len(starts)


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("conv 8 5x5, fc", (1, 4, 9), "conv1 on a map of 4x9: its 5x5 kernel does not fit; use a smaller one, pad, or"),
        ("conv 8 3x3, pool 2, conv 8 5x5, fc", (1, 10, 10), "conv2 on a map of 4x4: its 5x5 kernel does not fit"),
        ("dw 3x3 stride 2, pool 3, fc", (1, 6, 6), "dw1 on a map of 6x6: pool 3 does not fit its output of 2x2"),
        ("conv 8 3x3 groups 2, fc", (3, 9, 9), "conv1 has groups 2, but 3 input and 8 output channels; groups must"),
        ("conv 8 3x3 groups 3, fc", (3, 9, 9), "conv1 has groups 3, but 3 input and 8 output channels"),
    ],
)
def test_images_that_do_not_fit_are_refused_by_the_layers_name(
    text: str, shape: tuple[int, int, int], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_chain(text).place(shape, 10)
    assert str(caught.value).startswith(f"--model: {expected}")


def test_other_widths_replace_the_numbers_behind_conv_and_fc_in_order() -> None:
    chain = parse_chain(f"{MOBILE[:-2]}fc 9, fc").with_widths((2, 3, 4))
    assert chain.line == "conv 2 3x3 stride 2 bn, dw 3x3 bn, conv 3 1x1 bn, avgpool, fc 4, fc"
    assert ModelConfig(name="lenet", widths=(1, 2, 3)).chain.widths == (1, 2, 3)


@pytest.mark.parametrize("widths", [(1,), (1, 2, 3, 4)])
def test_more_or_fewer_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"model.widths = .*'{PRESETS['lenet']}' has 3 widths, \[20, 50, 500\]"):
        parse_chain("lenet").with_widths(widths)


def test_the_largest_of_everything_is_taken() -> None:
    k, w = LARGEST["kernel"], LARGEST["width"]
    line = f"conv {w} {k}x{k} stride 31 pad {k - 1} groups {w}, pool 31, fc {w}, fc"
    assert parse_chain(line).line == line


def test_a_comma_at_the_end_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'conv 8 3x3, fc,' ends in a comma; leave it out"):
        parse_chain("conv 8 3x3, fc,")


@pytest.mark.parametrize(
    ("line", "shape", "text"),
    [
        (
            "conv 64 3x3, fc 4096, fc",
            (3, 256, 256),
            r"conv1 has 4,129,024 outputs before pooling; allowed: at most 1,048,576",
        ),
        ("conv 16 3x3, fc 4096, fc", (3, 256, 256), r"fc1 has 4,228,120,576 weights; allowed: at most 33,554,432"),
        ("conv 2048 1x1, conv 2048 3x3, fc", (1, 16, 16), r"conv2 has 37,748,736 weights; allowed: at most 33,554,432"),
    ],
)
def test_layers_beyond_any_memory_are_refused_by_name(line: str, shape: Shape, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_chain(line).place(shape, 10)
