"""Every engine gives the logits of the same network, and the same report."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from integer_models import random_images

from qattrain.errors import ConfigError, ExportError
from qattrain.evaluation.networks import ENGINES, Packed, Trained, exported_engine, load_network
from qattrain.export import EXPORTERS
from qattrain.runs.folder import LAST_FILE

IMAGES = torch.from_numpy(random_images(20, 1))
SAME = ("dataset", "total", "correct", "accuracy", "accuracy_ci95")


@pytest.fixture
def network(tiny: Callable[..., Any]) -> Trained:
    found = load_network(tiny({"quant.quantizer": "pow2", "train.epochs": 1}).run_dir / LAST_FILE)
    assert isinstance(found, Trained)
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_logits_of_the_integers(network: Trained, name: str) -> None:
    integers = network.integers()
    with ENGINES[name](network) as predict:
        logits = predict(IMAGES).double() / integers.logit_scale
    assert torch.equal(torch.round(logits), torch.from_numpy(integers.run(IMAGES.numpy())).double())


@pytest.mark.parametrize("name", EXPORTERS)
def test_the_files_of_every_exporter_are_an_engine(network: Trained, name: str) -> None:
    integers = network.integers()
    with partial(exported_engine, EXPORTERS[name])(network) as predict:
        logits = predict(IMAGES)
    assert torch.equal(logits, torch.from_numpy(integers.run(IMAGES.numpy())).double() * integers.logit_scale)


def test_a_packed_file_runs_on_every_engine_but_torch(network: Trained) -> None:
    packed = Packed(network.facts, network.integers())
    with ENGINES["integer"](packed) as predict:
        assert predict(IMAGES).shape == (20, 10)
    with pytest.raises(ConfigError, match=r"only integers.*--engine integer"), ENGINES["torch"](packed):
        pass


def test_a_float_network_has_no_integer_engine(tiny: Callable[..., Any]) -> None:
    network = load_network(tiny({"quant.bits": 32, "train.epochs": 1}).run_dir / LAST_FILE)
    assert not network.quantized
    with pytest.raises(ExportError, match=r"'conv1' \(QuantConv2d\): 32 bits"), ENGINES["integer"](network):
        pass


@pytest.mark.parametrize("quantizer", ["lsq", "pow2"])
def test_eval_reports_the_same_fields_for_every_engine(
    tiny: Callable[..., Any], main: Callable[..., Any], quantizer: str
) -> None:
    path = tiny({"quant.quantizer": quantizer, "train.epochs": 1}).run_dir / LAST_FILE
    default, *others = [
        json.loads(main("eval", path, *given, "--json").stdout) for given in ((), *(("--engine", e) for e in ENGINES))
    ]
    assert default["engine"] == "torch"
    assert [other["engine"] for other in others] == list(ENGINES)
    for other in others:
        assert list(other) == list(default)
        assert [other[key] for key in SAME] == [default[key] for key in SAME]
        assert other["loss"] == pytest.approx(default["loss"], rel=1e-5)
        counts = [other[f"{kind}_mismatches"] for kind in ("prediction", "logit")]
        assert counts == [0, 0]
        assert other["code_mismatches"] == (0 if other["engine"] == "torch" else None)


def test_eval_shows_both_accuracies_side_by_side(tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    run_dir = tiny({"train.epochs": 1}).run_dir
    shown = main("eval", run_dir)
    assert shown.rc == 0, shown
    first, second = shown.stdout.splitlines()[:2]
    assert "engine torch" in first
    assert second.startswith("the integer network:")
    accuracy = json.loads(main("eval", run_dir, "--json").stdout)["accuracy"]
    assert f"accuracy {100 * accuracy:.2f} %" in first
    assert f"accuracy {100 * accuracy:.2f} %" in second


def test_eval_of_a_float_network_counts_nothing_and_has_no_integers(
    tiny: Callable[..., Any], main: Callable[..., Any]
) -> None:
    run_dir: Path = tiny({"quant.bits": 32, "train.epochs": 1}).run_dir
    counted = json.loads(main("eval", run_dir, "--json").stdout)
    assert [counted[f"{kind}_mismatches"] for kind in ("prediction", "code", "logit")] == [None] * 3
    refused = main("eval", run_dir, "--engine", "integer")
    assert (refused.rc, "'conv1' (QuantConv2d): 32 bits" in refused.error) == (1, True)


def test_an_unknown_engine_is_refused(tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    refused = main("eval", tiny({"train.epochs": 1}).run_dir, "--engine", "tpu")
    assert refused.rc == 2
    assert [name for name in ("tpu", *ENGINES) if name not in refused.error] == []


def test_help_names_every_engine(main: Callable[..., Any]) -> None:
    text = main("eval", "--help").stdout
    assert [name for name in ENGINES if name not in text] == []


def test_a_run_without_a_finished_epoch_says_so_wherever_it_is_used(
    tiny: Callable[..., Any], silent_display: Any, main: Callable[..., Any]
) -> None:
    run_dir = tiny(display=silent_display(interrupt_at=1)).run_dir
    for command in ("eval", "inspect"):
        done = main(command, run_dir)
        assert done.rc == 0, done
        assert "first epoch of this run was never finished" in " ".join(done.stderr.replace("│", " ").split())


def test_eval_lists_the_errors_of_every_class(tiny: Callable[..., Any], main: Callable[..., Any]) -> None:
    document = json.loads(main("eval", tiny({"train.epochs": 1}).run_dir, "--json").stdout)
    assert [one["class"] for one in document["classes"]] == list("0123456789")
    assert sum(one["errors"] for one in document["classes"]) == document["total"] - document["correct"]
    assert sum(one["images"] for one in document["classes"]) == document["total"]
