"""What inspection says of a layer is what its codes say; pictures have their data, or are left out with a reason."""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_chains import Case, noise, random_case, trained

from qattrain.config import ExperimentConfig, ModelConfig, QuantConfig, bits_by_layer
from qattrain.data import ImageSet, load_dataset
from qattrain.evaluation.checkpoints import evaluate_checkpoint
from qattrain.evaluation.inspection import (
    Inspection,
    Observed,
    chain_costs,
    entropy_bits,
    inspect_network,
    integer_costs,
    layer_histogram,
    layer_report,
    observe_model,
)
from qattrain.evaluation.metrics import errors_by_class
from qattrain.evaluation.networks import Network, Packed, Trained, load_network
from qattrain.export import EXPORTERS
from qattrain.integer import ModelFacts
from qattrain.layers.network import build_model, plan_layers, weight_bytes
from qattrain.quant import QUANTIZERS
from qattrain.report.drawing import png, svg
from qattrain.report.inspection import inspection_figures, network_section
from qattrain.report.page import Tiles, render
from qattrain.runs.checkpoint import Checkpoint, load_checkpoint

CHAIN = ModelConfig(name="lenet-nano").chain
COST = ("output_shape", "weights", "total_bytes", "macs")
SMALL = ModelConfig(name="lenet", widths=(4, 4, 8))
KINDS = ("float", "qat", "mixed", "packed")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any, silent_display: Any) -> dict[str, Path]:
    """Files of networks of every kind, trained for an epoch on 200 digits."""
    from qattrain.runs.folder import LAST_FILE
    from qattrain.training import run as experiment

    folder, paths = tmp_path_factory.mktemp("networks"), {}
    settings = {"float": {"quant.bits": 32}, "qat": {"quant.bits": 3}, "mixed": {"quant.layer_bits": {"fc1": 32}}}
    for kind, given in settings.items():
        config = tiny_config(given | {"train.epochs": 1, "name": kind})
        paths[kind] = experiment.train(config, folder, folder, silent_display()).run_dir / LAST_FILE
    quantized = load_network(paths["qat"])
    paths["packed"] = folder / "model.safetensors"
    files = EXPORTERS["packed"].write(quantized.integers(), quantized.facts, "")
    paths["packed"].write_bytes(files["model.safetensors"])
    return paths


@pytest.fixture(scope="module")
def inspections(networks: dict[str, Path]) -> dict[str, Inspection]:
    test = load_dataset("digits", Path()).test
    return {kind: inspect_network(load_network(path), test) for kind, path in networks.items()}


def test_a_report_can_be_computed_by_hand() -> None:
    values = np.array([-0.9, -0.2, 0.1, 0.6, 2.0])
    codes, scale = np.array([-2, 0, 0, 1, 1]), np.array(0.5)
    seen = Observed("fc1", "weight", (5,), 2, "lsq", values, codes, scale, (-2, -1, 0, 1), 0.2)
    report = layer_report(seen, accumulator_bound=255)
    assert (report.levels, report.codes_used, report.weight_bytes) == (4, 3, 2)
    assert report.entropy_bits == pytest.approx(-(0.2 * math.log2(0.2) + 2 * 0.4 * math.log2(0.4)))
    noise = 0.1**2 + 0.2**2 + 0.1**2 + 0.1**2 + 1.5**2
    assert report.sqnr_db == pytest.approx(10 * math.log10((values**2).sum() / noise))
    assert report.accumulator_bits == 9  # -255..255 does not fit 8 bits
    assert layer_report(seen, accumulator_bound=256).accumulator_bits == 10
    histogram = layer_histogram(seen)
    assert histogram.after.tolist() == [1, 0, 2, 2]
    assert (histogram.unit, histogram.clip, histogram.step, histogram.total) == ("steps", (-2.5, 1.5), 1, 5)


def network_of(case: Case) -> Trained:
    """The network of `case`, trained for a few steps, as if it came from a checkpoint."""
    net = trained(case)
    quant = plan_layers(case.model, case.quant).quant
    names = tuple(f"class {number}" for number in range(case.classes))
    config = ExperimentConfig(model=case.model, quant=quant)
    return Trained(Checkpoint(config, names, dict(net.state_dict()), [], None, None, case.shape), net)


def noisy(case: Case, count: int = 40) -> ImageSet:
    """Random images of the case's shape with random labels."""
    labels = torch.randint(0, case.classes, (count,), generator=torch.Generator().manual_seed(1))
    return ImageSet(noise(case, count), labels)


def test_what_layers_cost_can_be_computed_by_hand() -> None:
    line = "conv 8 3x3 stride 2 bn, dw 3x3 bn, conv 16 1x1 pad 0, pool 2, avgpool, fc"
    network = network_of(Case(ModelConfig(name=line), QuantConfig(bits=3, layer_bits={"fc1": 5}), (3, 28, 20), 10))
    reports = {report.layer: report for report in inspect_network(network, None).layers}
    costs = {name: tuple(getattr(report, key) for key in COST) for name, report in reports.items()}
    assert {name: cost for name, cost in costs.items() if any(value is not None for value in cost)} == {
        "conv1": ((8, 13, 9), 216, 81 + 8 * 9, 13 * 9 * 216),
        "dw1": ((8, 11, 7), 72, 27 + 8 * 9, 11 * 7 * 72),
        "conv2": ((16, 5, 3), 128, 48 + 16 * 9, 11 * 7 * 128),  # before pooling
        "avg1": ((16, 1, 1), None, 5, 0),
        "fc1": ((10,), 160, 100 + 10 * 4, 160),
    }
    floats = dict.fromkeys(("conv1", "dw1", "conv2", "avg1", "fc1"), 32)
    placed = network.checkpoint.config.model.chain.place((3, 28, 20), 10)
    assert [cost.total_bytes for cost in chain_costs(placed, floats).values()] == [
        4 * (216 + 8), 4 * (72 + 8), 4 * (128 + 16), 0, 4 * (160 + 10)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_the_chain_and_the_integers_cost_the_same(seed: int) -> None:
    case = random_case(seed)
    network = network_of(case)
    chain, quant = case.model.chain, network.checkpoint.config.quant
    expected = integer_costs(network.integers())
    assert chain_costs(chain.place(case.shape, case.classes), bits_by_layer(quant, chain)) == expected
    found = inspect_network(network, None)
    assert found.totals["macs"] == sum(cost.macs for cost in expected.values())
    assert found.totals["weight_bytes"] == weight_bytes(network.model)


@pytest.mark.parametrize(
    ("line", "shape", "filters"),
    [
        ("conv 5 3x3 stride 2 bn, fc", (3, 9, 14), (5, 3, 3, 3)),
        ("dw 5x5, conv 4 1x1, avgpool, fc", (3, 12, 7), (3, 1, 5, 5)),
        ("conv 120 1x1, pool 3, fc", (1, 7, 9), (120, 1, 1, 1)),
        ("conv 4 3x3 groups 2, fc 6 bn, fc", (4, 7, 5), (4, 2, 3, 3)),
        ("fc 7, fc", (3, 6, 5), None),
        ("avgpool, conv 3 1x1, fc", (2, 5, 5), None),
        ("fc", (1, 5, 5), None),
    ],
)
def test_networks_of_any_shape_and_colour_are_drawn(
    line: str, shape: tuple[int, int, int], filters: tuple[int, ...] | None
) -> None:
    case = Case(ModelConfig(name=line), QuantConfig(bits=4), shape, 3)
    found = inspect_network(network_of(case), noisy(case))
    assert (None if found.filters is None else found.filters.shape) == filters
    for hard in found.hardest:
        assert hard.image.shape == (shape[1:] if shape[0] != 3 else (*shape[1:], 3))
    figures = inspection_figures(found)
    assert ("filters" in figures) == (filters is not None)
    for figure in figures.values():
        assert png(figure).startswith(b"\x89PNG")
    page = render("", "", [network_section(found, "x", "y")], "").decode()
    assert page.count("<svg") == len(found.histograms)
    errors = network_section(found, "x", "y").parts[-1].blocks
    images = [tile for block in errors if isinstance(block, Tiles) for tile in block.tiles]
    assert len(images) == len(found.hardest) > 0
    for tile, hard in zip(images, found.hardest, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2]))))
        assert np.array_equal(shown, hard.image)


def test_many_layers_and_long_names_are_drawn_side_by_side() -> None:
    line = ", ".join(["conv 2 1x1"] * 12 + ["fc"])
    case = Case(ModelConfig(name=line), QuantConfig(bits=2), (1, 4, 4), 3)
    network = network_of(case)
    names = ("a price in $ of $5", "_" * 60, "c")
    network = Trained(dataclasses.replace(network.checkpoint, class_names=names), network.model)
    figures = inspection_figures(inspect_network(network, noisy(case), title=f"$x$ {line}"))
    assert len(figures["weights"].axes) == 13
    for figure in figures.values():
        assert png(figure).startswith(b"\x89PNG")
    title = figures["weights"].get_suptitle()
    assert r"\$x\$" in title
    assert max(map(len, title.split("\n"))) <= 92


def test_entropy_is_0_for_one_code_and_b_for_all_alike() -> None:
    assert entropy_bits(np.array([7])) == 0
    assert entropy_bits(np.array([5] * 16)) == pytest.approx(4)


def test_nothing_lost_is_no_infinite_ratio() -> None:
    exact = np.array([0.5, -1.0])
    seen = Observed("fc1", "weight", (2,), 2, "pow2", exact, np.array([1, -2]), np.array(0.5), (-2, -1, 0, 1), 0.0)
    assert layer_report(seen).sqnr_db is None


def test_every_layer_of_every_kind_is_reported_and_can_be_written_as_json(inspections: dict[str, Inspection]) -> None:
    order = ["conv1", "act1", "conv2", "act2", "fc1", "act3", "fc2"]
    for kind, found in inspections.items():
        assert [report.layer for report in found.layers] == order, kind
        assert [histogram.layer for histogram in found.histograms] == order, kind
        json.dumps([dataclasses.asdict(report) for report in found.layers], allow_nan=False)


def test_histograms_count_every_value_once(inspections: dict[str, Inspection]) -> None:
    for kind, found in inspections.items():
        for data in found.histograms:
            assert data.total > 0
            if len(data.before):
                assert data.before.sum() == data.total, (kind, data.layer)
            if len(data.after):
                assert data.after.sum() == data.total, (kind, data.layer)
            assert len(data.before) or len(data.after)


def test_a_float_layer_has_bytes_and_values_but_nothing_about_codes(inspections: dict[str, Inspection]) -> None:
    for kind, layers in (("float", CHAIN.weight_layers + CHAIN.activation_layers), ("mixed", ("fc1",))):
        for report in inspections[kind].layers:
            if report.layer in layers:
                known = {key for key, value in dataclasses.asdict(report).items() if value is not None}
                assert known <= {"layer", "kind", "shape", "bits", "weight_bytes", *COST}
                if report.kind == "weight":
                    assert report.weight_bytes == 4 * math.prod(report.shape)
    quantized = {report.layer: report for report in inspections["mixed"].layers}
    assert quantized["conv2"].sqnr_db is not None
    assert quantized["conv2"].accumulator_bits is None  # the network as a whole has no integers


def test_a_packed_file_has_the_same_codes_and_says_what_it_does_not_have(inspections: dict[str, Inspection]) -> None:
    trained, packed = inspections["qat"], inspections["packed"]
    for mine, theirs in zip(packed.layers, trained.layers, strict=True):
        for key in ("levels", "codes_used", "entropy_bits", "accumulator_bits", "weight_bytes"):
            assert getattr(mine, key) == getattr(theirs, key), (mine.layer, key)
        assert (mine.scale_min, mine.clipped_share, mine.sqnr_db) == (None, None, None)
    for mine, theirs in zip(packed.histograms, trained.histograms, strict=True):
        assert mine.after.tolist() == theirs.after.tolist()
        assert (mine.unit, len(mine.before), mine.clip) == ("codes", 0, None)
    assert packed.filters.values is None
    assert np.array_equal(packed.filters.codes, trained.filters.codes)  # type: ignore[arg-type]
    assert any("holds only integers" in note for note in packed.notes)
    assert not trained.notes
    assert packed.confusion is not None
    assert trained.confusion is not None
    assert np.array_equal(packed.confusion.counts, trained.confusion.counts)


@pytest.mark.parametrize("kind", KINDS)
def test_confusions_and_hardest_images_are_those_of_the_evaluation(
    networks: dict[str, Path], inspections: dict[str, Inspection], tmp_path: Path, kind: str
) -> None:
    found, outcome = inspections[kind], evaluate_checkpoint(networks[kind], tmp_path)
    assert found.accuracy == outcome.evaluation.accuracy
    assert found.confusion is not None
    counts, errors = found.confusion.counts, errors_by_class(outcome.evaluation.predictions, outcome.test.labels, 10)
    assert [(int(row.sum() - row[i]), int(row.sum())) for i, row in enumerate(counts)] == errors
    assert found.confusion.errors == found.images - outcome.evaluation.correct
    assert 0 < len(found.hardest) <= found.confusion.errors
    chances = [image.true_probability for image in found.hardest]
    assert chances == sorted(chances)
    for image in found.hardest:
        assert image.true == str(int(outcome.test.labels[image.index]))
        assert image.predicted == str(int(outcome.evaluation.predictions[image.index])) != image.true
        assert image.true_probability < image.predicted_probability


@pytest.mark.parametrize("kind", KINDS)
def test_without_images_what_needs_them_is_left_out_and_said(networks: dict[str, Path], kind: str) -> None:
    found = inspect_network(load_network(networks[kind]), None)
    assert (found.confusion, found.hardest, found.accuracy, found.images) == (None, [], None, 0)
    assert [histogram.kind for histogram in found.histograms] == ["weight"] * 4
    assert any("left out" in note for note in found.notes)
    assert list(inspection_figures(found)) == ["weights", "filters"]
    for report in found.layers:
        assert (report.codes_used is not None) == (report.kind == "weight" and report.bits <= 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_drawn_with_titles_and_units_and_the_same_twice(
    inspections: dict[str, Inspection], kind: str
) -> None:
    figures = inspection_figures(inspections[kind])
    assert list(figures) == ["weights", "activations", "filters", "confusion", "hardest"]
    again = inspection_figures(inspections[kind])
    for name, figure in figures.items():
        assert png(figure).startswith(b"\x89PNG")
        if (kind, name) in (("qat", "weights"), ("qat", "confusion")):  # each takes a second
            assert svg(figure) == svg(again[name])
        for axes in figure.axes:
            if axes.get_visible() and axes.images:
                assert axes.get_title()
            elif axes.get_label() == "<colorbar>":
                assert "(" in axes.get_ylabel()
    for name in ("weights", "activations"):
        for axes in figures[name].axes:
            assert "(" in axes.get_xlabel()
            assert axes.get_ylabel().startswith("share of")
        assert figures[name].legends


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_grid_holds_every_code_of_every_quantizer(quantizer: str) -> None:
    torch.manual_seed(0)
    quant = QuantConfig(quantizer=quantizer)
    model = build_model(SMALL, quant, 10)
    seen = observe_model(model, torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8))
    for layer in seen:
        assert layer.codes is not None
        assert set(np.unique(layer.codes).tolist()) <= set(layer.grid), layer.layer
        report = layer_report(layer)
        assert report.levels == len(layer.grid) <= 2**layer.bits
        assert report.sqnr_db is None or report.sqnr_db > -3


def test_a_ternary_packed_file_has_three_levels() -> None:
    torch.manual_seed(0)
    quant = QuantConfig(quantizer="ternary")
    model = build_model(SMALL, quant, 10)
    model(torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8))
    from qattrain.integer.lowering import lower

    network: Network = Packed(ModelFacts("x", "digits", tuple("0123456789"), None), lower(model))
    assert {report.levels for report in inspect_network(network, None).layers if report.kind == "weight"} == {3}


def test_inspect_writes_pictures_and_json(networks: dict[str, Path], main: Callable[..., Any], tmp_path: Path) -> None:
    done = main("inspect", networks["qat"], "--plots", tmp_path / "p", "--limit-test", 100, "--json")
    assert (done.rc, done.stdout.count("\n")) == (0, 1), done
    document = json.loads(done.stdout)
    names = ("weights", "activations", "filters", "confusion", "hardest")
    assert {Path(path).name for path in document["pictures"]} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    assert all(Path(path).stat().st_size > 1000 for path in document["pictures"])
    assert (document["test_images"], document["notes"]) == (100, [])
    text = main("inspect", networks["packed"]).stdout
    for expected in ("entropy", "SQNR", "sum bits", "weight bytes", "█", "holds only integers"):
        assert expected in text


def test_every_table_is_whole_at_80_columns_and_the_totals_are_the_sums(
    networks: dict[str, Path], main: Callable[..., Any]
) -> None:
    for kind in ("float", "qat", "mixed"):
        done = main("inspect", networks[kind], "--json")
        document = json.loads(done.stdout)
        assert max(len(line.rstrip()) for line in done.stderr.splitlines() if "─" in line) <= 80
        for key, total in document["totals"].items():
            assert total == sum(layer[key] or 0 for layer in document["layers"]), key
            assert f"{total:,}" in done.stderr
        assert document["totals"]["macs"] == 24 * 24 * 200 + 8 * 8 * 3200 + 8192 + 320


def test_inspect_without_data_says_so_and_without_a_place_to_write_fails_in_one_line(
    networks: dict[str, Path], main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("not a folder")
    refused = main("inspect", networks["qat"], "--plots", tmp_path / "a-file")
    assert refused.rc == 1
    assert "a-file" in refused.error
    monkeypatch.setattr("qattrain.data.is_on_disk", lambda _name, _folder: False)
    blind = main("inspect", networks["qat"], "--plots", tmp_path / "p")
    assert blind.rc == 0
    assert "left out" in blind.stdout
    assert "--data-dir" in blind.stdout
    assert sorted(path.stem for path in (tmp_path / "p").glob("*.png")) == ["filters", "weights"]


def test_the_checkpoint_is_not_changed_by_looking(networks: dict[str, Path]) -> None:
    path = networks["qat"]
    network = load_network(path)
    inspect_network(network, load_dataset("digits", Path()).test.head(10))
    state = load_checkpoint(path).model
    for name, tensor in network.model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, state[name]), name
