"""Whatever a file or an option says, it is refused at once, on one line, or taken."""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.config import MOST_EPOCHS, parse_config
from qattrain.config.sources import build_config, parse_assignment, parse_layer_bits, parse_values, read_config_file
from qattrain.errors import ConfigError

TRAIN = ("train", "--dataset", "digits", "--model", "lenet-nano", "--limit-train", 64)
NINES = {digits: "9" * digits for digits in (20, 401, 5000)}


def refused(make: Callable[[], Any], *texts: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        make()
    assert time.monotonic() - begin < 2
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1500
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("large.toml", "a = 1\n" * 9_000_000, "more than 262,144 bytes"),
        ("large.json", " " * 60_000_000 + "{}", "more than 262,144 bytes"),
        ("lists.toml", "seed = " + "[" * 100_000, "nested more than 16 deep"),
        ("lists.json", "[" * 100_000, "nested more than 16 deep"),
        ("tables.toml", "seed = " + "{a=" * 50_000, "nested more than 16 deep"),
        ("tables.json", '{"seed":' * 25_000, "nested more than 16 deep"),
        ("whole.toml", "seed = " + "[" * 40 + "]" * 40, "nested more than 16 deep"),
        ("whole.json", '{"seed":' * 40 + "1" + "}" * 40, "nested more than 16 deep"),
        ("keys.toml", ".".join(["a"] * 100_000) + " = 1", "more than 100 dots"),
        ("keys-in-keys.toml", "seed = {" + '"\x85".a.' * 20_000 + "a = 1}", "more than 100 dots"),
        ("headers.toml", "[" + ".".join(["1"] * 100_000) + "]", "more than 100 dots"),
        ("digits.toml", f"seed = {NINES[5000]}", "digits"),
        ("digits.json", f'{{"seed": {NINES[5000]}}}', "digits"),
        ("hex.toml", f"seed = 0x{NINES[5000]}", "digits"),
        ("long.toml", f"seed = {NINES[401]}", "digits"),
        ("many.toml", "".join(f"k{number} = 1\n" for number in range(20_000)), "unknown key"),
        ("key.toml", f"{'k' * 200_000} = 1", "unknown key"),
        ("text.toml", f"model.name = '{'x' * 200_000}'", "characters"),
        ("chain.toml", f"model.name = 'conv {'x' * 200_000}, fc'", "characters"),
        ("binary.toml", "\0\0\0", "not valid TOML"),
        ("null.json", "null", "NoneType"),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_files_without_bounds_are_refused_in_two_seconds(tmp_path: Path, name: str, content: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    refused(lambda: build_config(path, [], {}), str(path), text)


def test_a_pipe_a_device_and_a_folder_are_no_configuration(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    refused(lambda: read_config_file(pipe), str(pipe), "not a regular file")
    refused(lambda: read_config_file(Path("/dev/zero")), "not a regular file")
    refused(lambda: read_config_file(tmp_path), "directory")


@pytest.mark.parametrize(
    "text",
    [
        f"seed={NINES[5000]}",
        f"seed=0x{NINES[5000]}",
        f"seed={NINES[20]}",
        "seed=" + "[" * 100_000,
        "seed=" + "{a=" * 40_000,
        "seed=" + "[[" * 20 + "]]" * 20,
        "seed=[" + "x," * 20 + "[" * 50_000,
        ".".join(["a"] * 60_000) + "=1",
        "seed={" + ".".join(["a"] * 60_000) + "=1}",
        "seed",
        "x" * 100_000,
        "x" * 100_000 + "=1",
    ],
    ids=lambda value: value[:12],
)
def test_assignments_without_bounds_are_refused_in_two_seconds(text: str) -> None:
    refused(lambda: build_config(None, [text], {}))


def test_texts_that_look_odd_are_still_texts() -> None:
    path = "/".join(["a.b"] * 40)
    assert parse_assignment(f"train.init={path}") == (["train", "init"], path)
    rates = ",".join(["0.25"] * 300)  # dots in numbers nest nothing
    assert parse_assignment(f"train.lr=[{rates}]")[1] == [0.25] * 300
    assert len(parse_values(rates, "lr")) == 300


def test_layer_bits_without_end_are_refused() -> None:
    for text in (f"conv1={NINES[5000]}", "x" * 100_000, "conv1=" * 50_000):
        refused(lambda text=text: parse_layer_bits(text), "LAYER=BITS")
    refused(lambda: parse_layer_bits(f"{'x' * 50_000}=1,{'x' * 50_000}=1"), "given twice")


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("train.epochs", 20_000),
        ("train.batch_size", 10**6),
        ("train.threads", 1024),
        ("data.val_split", 10**9),
        ("data.limit_train", 10**9),
        ("data.limit_test", 10**9),
        ("ptq.images", 10**9),
        ("ptq.source_epochs", 20_000),
        ("model.widths", 2**25),
        ("seed", 2**63 - 1),
    ],
)
def test_every_whole_number_has_an_end(key: str, most: int) -> None:
    section, _, name = key.rpartition(".")
    for value, allowed in ((most, True), (most + 1, False), (10**400, False), (-(10**400), False)):
        inner: dict[str, Any] = {name: [value] * 3 if name == "widths" else value}
        values = {section: inner} if section else inner
        if allowed:
            parse_config(values, "test")
        else:
            refused(lambda values=values: parse_config(values, "test"), key)
    refused(lambda: parse_config({"model": {"widths": [1] * 65}}, "test"), "model.widths")


@pytest.mark.parametrize(
    "options",
    [
        ("--epochs", NINES[401]),
        ("--batch-size", NINES[401]),
        ("--seed", NINES[401]),
        ("--threads", 1_000_000),
        ("--epochs", MOST_EPOCHS + 1),
        ("--limit-train", NINES[401]),
        ("--val-split", NINES[401]),
        ("--set", "model.widths=[10000000,8,8]"),
        ("--set", f"model.widths=[{NINES[401]}]"),
        ("--set", f"seed={NINES[5000]}"),
        ("--set", "seed=" + "[" * 60_000),
        ("--image-size", "1000000x1000000"),
        ("--model", "conv 9999999 3x3, fc"),
        ("--model", "x" * 100_000),
        ("--model", "conv 8 3x3, " * 5000 + "fc"),
        ("--layer-bits", f"conv1={NINES[401]}"),
    ],
    ids=lambda value: str(value)[:14],
)
def test_the_command_says_it_in_one_line_and_makes_no_run(
    options: tuple[str, str], tmp_path: Path, main: Callable[..., Any]
) -> None:
    done = (
        main(*TRAIN, *options, "--epochs", 1, "--runs-dir", tmp_path / "runs")
        if options[0] != "--epochs"
        else main(*TRAIN, *options, "--runs-dir", tmp_path / "runs")
    )
    assert done.rc == 2
    assert len(done.error) < 1500
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_damaged_configuration_is_refused_or_read_as_what_it_now_says(tmp_path: Path, suffix: str) -> None:
    config = parse_config({"train": {"epochs": 3, "lr": 0.125}, "quant": {"bits": 4}}, "test").model_dump(mode="json")
    text = {
        "json": json.dumps({"config": config}, indent=2),
        "toml": "seed = 3\n[train]\nepochs = 3\nlr = 0.125\n[quant]\nbits = 4\nlayer_bits = { conv1 = 8 }\n",
    }[suffix]
    intact, rng, path = text.encode(), random.Random(11), tmp_path / f"config.{suffix}"
    damaged = [intact[: rng.randrange(len(intact))] for _ in range(50)]
    for bit in rng.choices(range(8 * len(intact)), k=200):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(ConfigError):  # any other error is a bug
            build_config(path, [], {})
