"""What the machine can do is asked, never assumed."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from qattrain.errors import ConfigError
from qattrain.runs import environment
from qattrain.runs.environment import describe_environment, has_fast_bf16, pick_compile, pick_device, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_fast_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16(CPU) is fast
    assert pick_precision("auto", CPU) == ("bf16" if fast else "fp32")


def test_a_torch_that_does_not_say_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_precision("auto", CPU) == "fp32"


def test_bf16_asked_for_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(ConfigError, match=r"bf16.*allowed here: fp32"):
        pick_precision("bf16", CPU)


@pytest.mark.parametrize("asked", ["tpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_here_is_refused_by_name(asked: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        pick_device(asked)


def test_a_run_of_a_gpu_can_be_described_where_there_is_none() -> None:
    described = describe_environment(torch.device("cuda" if not torch.cuda.is_available() else "cpu"))
    assert described["gpu"] is None
    assert described["packages"]["torch"] == torch.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_source_tree_is_recorded_and_marked_if_the_package_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "qattrain" / "__init__.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(environment.qattrain, "__file__", str(source))
    assert describe_environment(CPU)["commit"] is None  # installed, no source tree
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert describe_environment(CPU)["commit"] == head
    source.write_text("changed = True")
    assert describe_environment(CPU)["commit"] == f"{head}+"


def test_auto_compiles_long_runs_where_a_compiler_is_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, enough = torch.device("cpu"), environment.IMAGES_WORTH_COMPILING
    monkeypatch.setattr(environment.native, "prepare", lambda: None)
    assert pick_compile("auto", cpu, enough) == "on"
    assert pick_compile("auto", cpu, enough - 1) == "off"
    assert pick_compile("auto", torch.device("cuda"), enough) == "off"
    assert pick_compile("on", cpu, 1) == "on"
    assert pick_compile("off", cpu, enough) == "off"


def test_without_a_compiler_auto_does_without_and_on_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ConfigError("no C compiler: none of cc")

    monkeypatch.setattr(environment.native, "prepare", fail)
    cpu, enough = torch.device("cpu"), environment.IMAGES_WORTH_COMPILING
    assert pick_compile("auto", cpu, enough) == "off"
    with pytest.raises(ConfigError, match=r"train.compile = 'on': no C compiler"):
        pick_compile("on", cpu, enough)
    with pytest.raises(ConfigError, match="for the CPU; use auto"):
        pick_compile("on", torch.device("cuda"), enough)
