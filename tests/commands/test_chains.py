"""A chain on the command line: trained, evaluated in every engine, exported, swept; old configurations; wrong lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.evaluation.networks import ENGINES
from qattrain.export import EXPORTERS
from qattrain.training import run as experiment

CHAIN = "conv 6 5x5 stride 2 bn, dw 3x3 pad 1 bn, pool 2, conv 8 1x1, avgpool, fc 9 bn, fc"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    settings = {"model.name": CHAIN, "quant.layer_bits": {"dw1": 8, "avg1": 4, "act2": 5}}
    return experiment.train(tiny_config(settings), folder, folder, silent_display()).run_dir


def test_every_engine_evaluates_a_chain_to_the_same_numbers(run_dir: Path, main: Callable[..., Any]) -> None:
    found = [json.loads(main("eval", run_dir, "--engine", engine, "--json").stdout) for engine in ENGINES]
    assert {document["total"] for document in found} == {360}
    integers = [document for document in found if document["engine"] != "torch"]
    assert len(integers) == len(ENGINES) - 1
    assert len({(document["correct"], document["loss"]) for document in integers}) == 1
    assert {document["prediction_mismatches"] for document in found} == {0}


@pytest.mark.parametrize("to", EXPORTERS)
def test_every_exporter_writes_a_chain_and_proves_it(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], to: str
) -> None:
    for layout in EXPORTERS[to].layouts or (None,):
        asked = ["export", run_dir, "--to", to, "--out", tmp_path / f"{to}-{layout}", "--json"]
        document = json.loads(main(*asked, *(["--layout", layout] if layout else [])).stdout)
        assert document["verified_images"] == 360 + 256
        assert document["logit_mismatches"] == 0


def test_a_packed_chain_is_evaluated_and_inspected_like_its_run(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    main("export", run_dir, "--to", "packed", "--out", tmp_path / "packed")
    packed = tmp_path / "packed" / "model.safetensors"
    by_run, by_file = (
        json.loads(main("eval", path, "--engine", "integer", "--json").stdout) for path in (run_dir, packed)
    )
    assert [by_run[key] for key in ("correct", "loss")] == [by_file[key] for key in ("correct", "loss")]
    layers = [[layer["layer"] for layer in json.loads(main("inspect", path, "--json").stdout)["layers"]]
              for path in (run_dir, packed)]  # fmt: skip
    assert layers[0] == layers[1] == ["conv1", "act1", "dw1", "act2", "conv2", "act3", "avg1", "fc1", "act4", "fc2"]


def test_the_default_name_of_a_chain_is_short_and_the_same_for_the_same_chain(
    tmp_path: Path, main: Callable[..., Any]
) -> None:
    names = []
    for line in ("conv 4 5x5 bn stride 3, fc", " conv 4  5x5 stride 3 bn ,fc"):
        asked = [
            "train",
            "--dataset",
            "digits",
            "--limit-train",
            40,
            "--limit-test",
            10,
            "--epochs",
            1,
            "--model",
            line,
        ]
        names.append(Path(json.loads(main(*asked, "--runs-dir", tmp_path, "--json").stdout)["run_dir"]).name)
    assert names[1] == names[0] + "-2"
    assert names[0].startswith("chain-")
    assert len(names[0]) == len("chain-12345678-w4a4-lsq-digits-s0")


def test_a_sweep_takes_chains_as_a_list(tmp_path: Path, main: Callable[..., Any]) -> None:
    common = ["--dataset", "digits", "--limit-train", 40, "--epochs", 1, "--threads", 1, "--workers", 1, "--json"]
    lines = ["conv 4 5x5 stride 3 bn, fc", "fc"]
    asked = ["sweep", "--model", json.dumps(lines), *common, "--runs-dir", tmp_path]
    document = json.loads(main(*asked, "--name", "s").stdout)
    assert [row["model"] for row in document["rows"]] == lines
    (tmp_path / "chains.toml").write_text(f"[sweep]\nmodel.name = {json.dumps(lines)}\n")
    again = json.loads(main("sweep", "--config", tmp_path / "chains.toml", *common, "--runs-dir", tmp_path).stdout)
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in document["rows"]]
    refused = main("sweep", "--model", lines[0], *common[:-1])
    assert refused.rc == 2
    assert "give them as a list" in refused.error


def test_widths_replace_the_numbers_of_any_chain(tmp_path: Path, main: Callable[..., Any]) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[model]\nname = "conv 4 5x5 stride 3, fc 7, fc"\nwidths = [3, 5]\n')
    asked = ["train", "--config", config, "--dataset", "digits", "--limit-train", 40, "--epochs", 1]
    run_dir = json.loads(main(*asked, "--runs-dir", tmp_path, "--json").stdout)["run_dir"]
    layers = json.loads(main("inspect", run_dir, "--json").stdout)["layers"]
    assert [layer["shape"][0] for layer in layers if layer["kind"] == "weight"] == [3, 5, 10]
    refused = main(*asked, "--set", "model.widths=[3,5,6]")
    assert refused.rc == 2
    assert "has 2 widths" in refused.error


WRONG = [
    ("conv 8 3x3 strid 2, fc", ("part 1", "'strid' is no option of conv", "stride, pad, groups, bn", "for example")),
    ("conv 8 3x3, fc 10", ("part 2", "bare fc")),
    ("pool 2, fc", ("part 1", "follows conv or dw")),
    ("conv 8 3x4, fc", ("part 1", "square kernel", "3x4")),
    ("conv 8 29x29, fc", ("conv1", "28x28", "does not fit")),
    ("conv 8 3x3 groups 3, fc", ("conv1", "groups 3", "1 input and 8 output channels")),
    ("conv 8 25x25, pool 5, fc", ("conv1", "pool 5", "4x4")),
]


@pytest.mark.parametrize(("line", "texts"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_chain_is_one_line_with_the_part_and_what_is_allowed(
    main: Callable[..., Any], line: str, texts: tuple[str, ...]
) -> None:
    done = main("train", "--dataset", "digits", "--model", line)
    assert done.rc == 2
    assert [text for text in texts if text not in done.error] == []
