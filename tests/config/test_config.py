"""The configuration: flags over --set over file over defaults, and one clear line for whatever is wrong."""

import contextlib
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qattrain.config import DataConfig, ExperimentConfig, ModelConfig, parse_config, parse_spec, short_name
from qattrain.config.sources import (
    assigned_settings,
    build_config,
    parse_assignment,
    parse_layer_bits,
    parse_values,
    read_config_file,
)
from qattrain.errors import ConfigError
from qattrain.files import cache_dir

WEIGHT_LAYERS, ACTIVATION_LAYERS = ModelConfig().chain.weight_layers, ModelConfig().chain.activation_layers

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = {"fp32", "w8a8", "w4a4", "w2a2", "w1a2", "pow2-4bit", "affine-8bit"}
config_files = pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, name: str = "experiment.toml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refused(make: Callable[[], object], *texts: object) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for text in texts:
        assert str(text) in message


def test_flags_win_over_set_over_file_over_defaults(file: Callable[[str], Path]) -> None:
    path = file("seed = 1\n[train]\nepochs = 1\nlr = 0.1\nmomentum = 0.1\n")
    built = build_config(path, ["train.epochs=2", "train.lr=0.2"], {("train", "lr"): 0.3})
    assert (built.seed, built.train.momentum, built.train.epochs, built.train.lr) == (1, 0.1, 2, 0.3)
    assert built.train.warmup == ExperimentConfig().train.warmup
    assert built.train.model_fields_set == {"epochs", "lr", "momentum"}
    assert build_config(None, [], {}) == ExperimentConfig()
    assert build_config(None, ["seed=1", "seed=2"], {}).seed == 2


def test_only_what_was_said_is_assigned(file: Callable[[str], Path]) -> None:
    path = file("[train]\nepochs = 1\n[quant.layer_bits]\nconv1 = 8\n")
    assigned = assigned_settings(path, ["model.widths=[1, 2, 3]"], {("seed",): 5})
    assert assigned == {
        ("train", "epochs"): 1,
        ("quant", "layer_bits"): {"conv1": 8},
        ("model", "widths"): [1, 2, 3],
        ("seed",): 5,
    }


WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"epochs": 3}, ("unknown key 'epochs'; did you mean 'train.epochs'?", "train", "seed")),
    ({"train": {"epoch": 3}}, ("unknown key 'train.epoch'; did you mean 'train.epochs'?", "epochs", "momentum")),
    ({"train": {"inti": 3}}, ("unknown key 'train.inti'; did you mean 'train.init'?", "epochs")),
    ({"train": {"bits": 3}}, ("unknown key 'train.bits'; did you mean 'quant.bits'?", "epochs")),
    ({"train": {"xyz": 3}}, ("unknown key 'train.xyz'; allowed: epochs",)),
    ({"ptq": {"image": 3}}, ("unknown key 'ptq.image'; did you mean 'ptq.images'?", "calibration", "images")),
    ({"seed": -1}, ("seed = -1", "0")),
    ({"seed": 1.5}, ("seed = 1.5", "integer")),
    ({"seed": True}, ("seed = true", "integer")),
    ({"train": 3}, ("train = 3",)),
    ({"train": {"epochs": 0}}, ("train.epochs = 0", "1")),
    ({"train": {"epochs": "ten"}}, ("train.epochs", '"ten"', "integer")),
    ({"train": {"epochs": 2.0}}, ("train.epochs = 2.0", "integer")),
    ({"train": {"lr": 0}}, ("train.lr = 0", "greater than 0")),
    ({"train": {"lr": float("nan")}}, ("train.lr = NaN", "finite")),
    ({"train": {"lr": float("inf")}}, ("train.lr = Infinity", "finite")),
    ({"train": {"lr": "fast"}}, ("train.lr", '"fast"', "number", "'auto'")),
    ({"train": {"batch_size": 0}}, ("train.batch_size = 0", "1")),
    ({"train": {"batch_size": "big"}}, ("train.batch_size", '"big"', "integer", "'auto'")),
    ({"train": {"precision": "fp16"}}, ("train.precision", '"fp16"', "'auto'", "'fp32'", "'bf16'")),
    ({"train": {"momentum": 1}}, ("train.momentum = 1", "less than 1")),
    ({"train": {"grad_clip": 0}}, ("train.grad_clip = 0", "greater than 0")),
    ({"train": {"threads": 0}}, ("train.threads = 0", "1")),
    ({"data": {"val_split": -1}}, ("data.val_split = -1", "0")),
    ({"data": {"limit_test": 0}}, ("data.limit_test = 0", "1")),
    ({"data": {"image_size": "28"}}, ("data.image_size", '"28"', "HEIGHTxWIDTH", "28x28")),
    ({"data": {"image_size": "3x28"}}, ("data.image_size", '"3x28"', "4 to 256")),
    ({"data": {"image_size": "28x257"}}, ("data.image_size", '"28x257"', "4 to 256")),
    ({"data": {"image_size": "028x28"}}, ("data.image_size", '"028x28"', "28x28")),
    ({"data": {"image_size": [28, 28]}}, ("data.image_size", "[28, 28]", "string")),
    ({"data": {"color": 1}}, ("data.color = 1", "boolean")),
    ({"model": {"ops": "mine"}}, ("model.ops", '"mine"', "'explicit'")),
    ({"model": {"widths": [1, 2]}}, ("model.widths",)),
    ({"model": {"widths": [1, 2, 0]}}, ("model.widths", "[1, 2, 0]", "at least 1")),
    ({"model": {"widths": [1, 2, "x"]}}, ("model.widths", '"x"', "integer")),
    ({"quant": {"n": 21}}, ("quant.n = 21", "20")),
    ({"quant": {"layer_bits": {"nosuch": 4}}}, ("quant.layer_bits", "nosuch", *WEIGHT_LAYERS, *ACTIVATION_LAYERS)),
    ({"quant": {"layer_bits": {"conv1": 9}}}, ("conv1=9", "1 to 8", "32")),
    ({"quant": {"layer_bits": {"conv1": "x"}}}, ("quant.layer_bits", '"x"', "integer")),
    ({"name": "a/b"}, ("name", '"a/b"', "slashes")),
    ({"name": ".."}, ("name", "slashes")),
    ({"name": ""}, ("name", "slashes")),
]


@pytest.mark.parametrize(("values", "texts"), WRONG, ids=[json.dumps(values) for values, _ in WRONG])
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_allowed(
    values: dict[str, Any], texts: tuple[str, ...]
) -> None:
    refused(lambda: parse_config(values, "the source"), "the source", *texts)


@pytest.mark.parametrize("key", ["bits", "act_bits"])
@pytest.mark.parametrize("bits", [0, 9, 33, -1, 16, 31])
def test_bits_are_1_to_8_or_32(key: str, bits: int) -> None:
    refused(lambda: build_config(None, [f"quant.{key}={bits}"], {}), f"quant.{key} = {bits}", "1 to 8", "32")


@pytest.mark.parametrize("bits", [*range(1, 9), 32])
def test_allowed_bits_are_kept(bits: int) -> None:
    quant = build_config(None, [f"quant.bits={bits}"], {("quant", "layer_bits"): {"act3": bits}}).quant
    assert (quant.bits, quant.layer_bits) == (bits, {"act3": bits})


def test_layer_bits_are_read_and_refused_by_part() -> None:
    assert parse_layer_bits("conv1=8, act2=4") == {"conv1": 8, "act2": 4}
    for text, found in (("conv1", "conv1"), ("conv1=", "conv1="), ("=4", "=4"), ("conv1=-1", "conv1=-1")):
        refused(lambda text=text: parse_layer_bits(text), text, f"'{found}' is not LAYER=BITS", "conv1=8,act2=4")
    for text in ("", "conv1=4,", "conv1=4=5", "conv1=four", "conv1=4;conv2=4"):
        refused(lambda text=text: parse_layer_bits(text), "--layer-bits", "LAYER=BITS")
    refused(lambda: parse_layer_bits("conv1=4,conv1=8"), "conv1", "twice")


LISTS: list[tuple[str, list[Any]]] = [
    ("[clipped,identity]", ["clipped", "identity"]),
    ("[0.02,0.05]", [0.02, 0.05]),
    ("[ auto , 0.05 ]", ["auto", 0.05]),
    ("['clipped', \"identity\"]", ["clipped", "identity"]),
    ("['conv 8 3x3, fc', lenet-nano]", ["conv 8 3x3, fc", "lenet-nano"]),
    ('["a,]b", c]', ["a,]b", "c"]),
    ("[[8,16],[4,8]]", [[8, 16], [4, 8]]),
    ("[[a,b],[c]]", [["a", "b"], ["c"]]),
    ("[{conv1=8},{}]", [{"conv1": 8}, {}]),
    ("[folder:a/b-c_1.x,CIFAR-10,\u00e9\U0001f600]", ["folder:a/b-c_1.x", "CIFAR-10", "\u00e9\U0001f600"]),
    ("[true,yes,-1,1e-3,32x32]", [True, "yes", -1, 1e-3, "32x32"]),
    ("[a,]", ["a"]),
    ("[]", []),
]
NO_LISTS = ("[a", "[a,,b]", "[,a]", "[a] b", "[conv 8 3x3, fc]", "[it's]", "[a=b]", '["a]', "[[a]", "[{a}]")


@pytest.mark.parametrize(("text", "expected"), LISTS)
def test_in_a_list_words_need_no_quotes(text: str, expected: list[Any]) -> None:
    assert parse_assignment(f"key={text}")[1] == expected
    assert parse_values(text, "model") == expected


@pytest.mark.parametrize("text", NO_LISTS)
def test_a_list_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    refused(lambda: parse_assignment(f"key={text}"), repr(f"key={text}"), "--set", "['conv 8 3x3, fc', 'lenet']")
    refused(lambda: parse_values(text, "act_bits"), f"--act-bits {text!r}", "not a valid list", "[A,B]")


def test_assignments_read_toml_values_and_else_strings() -> None:
    for text, expected in (
        ("train.lr=0.1", (["train", "lr"], 0.1)),
        ("train.lr = 1e-3", (["train", "lr"], 1e-3)),
        ("model.widths=[4, 8, 16]", (["model", "widths"], [4, 8, 16])),
        ("quant.surrogate=tanh", (["quant", "surrogate"], "tanh")),
        ('name="a b"', (["name"], "a b")),
        ("name=a=b", (["name"], "a=b")),
        ("quant.layer_bits.conv1=8", (["quant", "layer_bits", "conv1"], 8)),
    ):
        assert parse_assignment(text) == expected
    assert build_config(None, ["quant.layer_bits.conv1=8", "train.lr=auto"], {}).quant.layer_bits == {"conv1": 8}
    for text in ("train.lr", "=3", "train..lr=3", ".=3", ""):
        refused(lambda text=text: parse_assignment(text), "--set", repr(text), "KEY=VALUE")
    refused(lambda: build_config(None, ["seed=1", "seed.x=2"], {}), "seed.x", "value, not a table")


@given(text=st.text(max_size=40))
def test_any_assignment_is_taken_or_refused_with_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        build_config(None, [text], {})


@given(
    seed=st.integers(0, 2**63 - 1),
    bits=st.sampled_from([None, 1, 4, 8, 32]),
    widths=st.none() | st.tuples(*[st.integers(1, 999)] * 3),
    lr=st.just("auto") | st.floats(min_value=1e-30, max_value=1e30),
    ptq=st.none() | st.just({"images": 7}),
)
def test_a_config_survives_json(seed: int, bits: object, widths: object, lr: object, ptq: object) -> None:
    values = {"seed": seed, "quant": {"bits": bits, "layer_bits": {"fc2": 8}}, "model": {"widths": widths}, "ptq": ptq}
    config = parse_config(values | {"train": {"lr": lr}}, "test")
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json"))), "test") == config


@pytest.mark.parametrize(
    ("data", "spec", "parts", "short"),
    [
        ({"dataset": "mnist"}, "mnist", (None, "mnist", None, False), "mnist"),
        ({"dataset": "folder:a/pets"}, "folder:a/pets", ("folder", "a/pets", None, False), "pets"),
        (
            {"dataset": "folder:pets", "image_size": "32x16"},
            "folder:pets@32x16",
            ("folder", "pets", (32, 16), False),
            "pets",
        ),
        ({"dataset": "folder:pets", "color": True}, "folder:pets@color", ("folder", "pets", None, True), "pets"),
        (
            {"dataset": "folder:/x/my p\u00e9ts/", "image_size": "8x8", "color": True},
            "folder:/x/my p\u00e9ts/@8x8,color",
            ("folder", "/x/my p\u00e9ts/", (8, 8), True),
            "my-p-ts",
        ),
        ({"dataset": "npz:~/a.npz"}, "npz:~/a.npz", ("npz", "~/a.npz", None, False), "a"),
        ({"dataset": "folder:a@b"}, "folder:a@b", ("folder", "a@b", None, False), "a-b"),
        ({"dataset": "folder:a@8x8/"}, "folder:a@8x8/", ("folder", "a@8x8/", None, False), "a-8x8"),
        ({"dataset": "folder:.."}, "folder:..", ("folder", "..", None, False), "folder"),
        ({"dataset": f"folder:{'x' * 99}"}, f"folder:{'x' * 99}", ("folder", "x" * 99, None, False), "x" * 40),
    ],
)
def test_a_dataset_is_one_string_that_can_be_taken_apart(
    data: dict[str, Any], spec: str, parts: tuple[Any, ...], short: str
) -> None:
    config = DataConfig.model_validate(data)
    assert (config.spec, tuple(parse_spec(spec))) == (spec, parts)
    assert parse_spec(spec).dataset == data["dataset"]
    assert short_name(data["dataset"]) == short_name(spec) == short


@given(text=st.text(max_size=30))
def test_any_text_is_a_specification_and_has_a_short_name(text: str) -> None:
    parts = parse_spec(text)
    assert text.startswith(parts.dataset)
    if parts.kind is not None:
        assert re.fullmatch(r"[\w.-]{1,40}", short_name(text), re.ASCII)


def test_a_config_cannot_be_changed() -> None:
    for section, key in ((ExperimentConfig(), "seed"), (ExperimentConfig().train, "epochs")):
        with pytest.raises(pydantic.ValidationError):
            setattr(section, key, 3)


def test_files_that_cannot_be_read_are_refused_by_name(file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    refused(lambda: read_config_file(tmp_path / "none.toml"), "none.toml", "No such file", "TOML")
    refused(lambda: read_config_file(tmp_path), tmp_path, "directory")
    refused(lambda: read_config_file(tmp_path / "binary.toml"), "binary.toml")
    refused(lambda: read_config_file(file("epochs = = 3")), "experiment.toml", "not valid TOML", "line 1")
    refused(lambda: read_config_file(file("[train\n")), "not valid TOML")
    refused(lambda: read_config_file(file("{", "c.json")), "c.json", "not valid JSON")
    for text in ("[]", "3", '{"config": [1]}'):
        refused(lambda text=text: read_config_file(file(text, "c.json")), "c.json", "not a table")
    refused(lambda: build_config(file("[quant]\nbit = 4"), [], {}), "experiment.toml", "quant.bit", "act_bits")


def test_a_runs_config_json_is_a_config_file(tiny: Callable[..., Any]) -> None:
    result = tiny({"train.epochs": 1, "quant.layer_bits": {"conv1": 8}, "model.widths": [2, 3, 4]})
    assert build_config(result.run_dir / "config.json", [], {}) == result.checkpoint.config
    assert build_config(result.run_dir / "config.json", ["seed=3"], {}).seed == 3


def test_the_published_configurations_are_there() -> None:
    assert {path.stem for path in CONFIGS.glob("*.toml")} >= PUBLISHED


@config_files
def test_a_configuration_file_lists_only_differences_from_the_defaults(path: Path) -> None:
    values = tomllib.loads(path.read_text())
    if values.pop("sweep", None) is None:  # what lies beside a sweep's axes is tested with sweeps
        build_config(path, [], {})
    defaults = ExperimentConfig().model_dump(mode="json")

    def check(values: dict[str, Any], default: dict[str, Any], key: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and isinstance(default[name], dict):
                assert value, f"{key}{name} is empty"
                check(value, default[name], f"{key}{name}.")
            else:
                assert value != default[name], f"{key}{name} = {value!r} is the default"

    check(values, defaults, "")


def test_data_lie_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "qattrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "qattrain"
