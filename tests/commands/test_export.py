"""`qattrain export`, and eval and inspect of the exported files: the same numbers, and one-line errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain.evaluation.checkpoints import default_folder
from qattrain.export import EXPORTERS
from qattrain.export.base import NOISE_IMAGES, Exporter
from qattrain.runs.folder import LAST_FILE
from qattrain.training import run as experiment

EXPORT_FIELDS = ["files", "bytes", "verified_images", "logit_mismatches"]
SAME = ("dataset", "total", "correct", "accuracy", "accuracy_ci95", "loss")
TEST_IMAGES = 360  # of the digits


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return experiment.train(tiny_config({"quant.bits": 3}), folder, folder, silent_display()).run_dir


@pytest.fixture
def document(main: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        done = main(*arguments, "--json")
        assert done.rc == 0, done
        assert done.stdout.count("\n") == 1
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.parametrize("to", EXPORTERS)
def test_every_exporter_writes_verified_files_and_says_so(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], document: Callable[..., Any], to: str
) -> None:
    for layout in EXPORTERS[to].layouts or (None,):
        given = ["export", run_dir, "--to", to, "--out", tmp_path / to]
        exported = document(*given, *(["--layout", layout] if layout else []))
        assert list(exported) == EXPORT_FIELDS
        assert exported["bytes"] == {Path(path).name: Path(path).stat().st_size for path in exported["files"]}
        assert sorted(map(Path, exported["files"])) == sorted((tmp_path / to).iterdir())
        assert (exported["verified_images"], exported["logit_mismatches"]) == (TEST_IMAGES + NOISE_IMAGES, 0)
    text = main(*given)
    assert (text.rc, text.stderr) == (0, "")
    assert f"{TEST_IMAGES + NOISE_IMAGES} images" in text.stdout
    assert "0 logits differ" in text.stdout


def test_a_prefix_names_the_c_files(run_dir: Path, tmp_path: Path, document: Callable[..., Any]) -> None:
    given = ("export", run_dir, "--to", "c", "--out", tmp_path, "--verify-images", 3)
    for prefix in ("cats", "dogs"):
        assert list(document(*given, "--prefix", prefix)["bytes"])[:2] == [f"{prefix}.c", f"{prefix}.h"]
    assert b"cats_predict" in (tmp_path / "cats.c").read_bytes()


def test_the_default_folder_belongs_to_the_run(run_dir: Path, document: Callable[..., Any]) -> None:
    first = document("export", run_dir.name, "--to", "packed", "--runs-dir", run_dir.parent)
    (path,) = first["files"]
    assert Path(path) == run_dir / "export" / "model.safetensors"
    before = Path(path).read_bytes()
    assert document("export", path, "--to", "packed") == first  # a packed file is exported to its own place, unchanged
    assert Path(path).read_bytes() == before
    assert default_folder(Path("model.safetensors")) == Path("export")


def test_a_packed_file_evaluates_as_the_integers_it_came_from(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], document: Callable[..., Any]
) -> None:
    (path,) = document("export", run_dir, "--to", "packed", "--out", tmp_path / "out")["files"]
    moved = Path(path).rename(tmp_path / "anything.bin")
    expected, found = document("eval", run_dir, "--engine", "integer"), document("eval", moved)
    assert list(found) == list(expected)
    assert [found[key] for key in SAME] == [expected[key] for key in SAME]
    assert (found["engine"], found["prediction_mismatches"], found["logit_mismatches"]) == ("integer", 0, 0)
    assert document("eval", moved, "--limit-test", 100)["total"] == 100
    refused = main("eval", moved, "--engine", "torch")
    assert (refused.rc, "only integers" in refused.error) == (2, True)


def test_inspecting_a_packed_file_shows_the_same_integers(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], document: Callable[..., Any]
) -> None:
    (path,) = document("export", run_dir, "--to", "packed", "--out", tmp_path)["files"]
    expected, found = document("inspect", run_dir)["layers"], document("inspect", path)["layers"]
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        for key in ("layer", "kind", "shape", "bits", "levels", "codes_used", "accumulator_bound"):
            assert mine[key] == theirs[key], (mine["layer"], key)
        assert mine["scale_min"] is None
        assert (mine["accumulator_bound"] is None) == (mine["kind"] == "activation")
    text = main("inspect", path)
    assert (text.rc, "lenet-nano on digits" in text.stdout) == (0, True)
    assert f"{found[0]['accumulator_bound']:,}" in text.stdout


def test_fewer_images_or_none_are_verified_on_request_and_said(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], document: Callable[..., Any]
) -> None:
    given = ("export", run_dir, "--to", "packed", "--out", tmp_path)
    assert document(*given, "--verify-images", 7)["verified_images"] == 7 + NOISE_IMAGES
    unverified = document(*given, "--no-verify", "--data-dir", tmp_path / "none")
    assert (unverified["verified_images"], unverified["logit_mismatches"]) == (0, None)
    assert "NOT VERIFIED" in main(*given, "--no-verify").stdout


def test_what_cannot_be_exported_is_one_clear_line_and_leaves_nothing(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], tiny: Callable[..., Any]
) -> None:
    float_run = tiny({"quant.layer_bits": {"fc1": 32}, "train.epochs": 1}).run_dir
    packed = tmp_path / "model.safetensors"
    assert main("export", run_dir, "--to", "packed", "--out", tmp_path / "good").rc == 0
    data = bytearray((tmp_path / "good" / packed.name).read_bytes())
    packed.write_bytes(data[:-1])
    data[-1] ^= 1
    (tmp_path / "flipped.bin").write_bytes(data)
    out = tmp_path / "out"
    other = tmp_path / "others"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    last = run_dir / LAST_FILE
    cases: list[tuple[list[object], int, tuple[str, ...]]] = [
        ([last, "--to", "tflite"], 2, ("tflite", *EXPORTERS)),
        ([last], 2, ("--to",)),
        ([last, "--to", "packed", "--layout", "int8"], 2, ("int8", "leave it out")),
        ([last, "--to", "packed", "--prefix", "cats"], 2, ("--prefix 'cats'", "only with --to c")),
        ([last, "--to", "c", "--prefix", "2nd"], 2, ("--prefix '2nd'", "a letter first")),
        ([last, "--to", "packed", "--verify-images", "0"], 2, ("--verify-images", "0")),
        ([last, "--to", "packed", "--verify-images", "5", "--no-verify"], 2, ("--verify-images 5", "--no-verify")),
        (["nosuch", "--to", "packed"], 1, ("nosuch",)),
        ([float_run, "--to", "packed"], 1, ("'fc1' (QuantLinear): 32 bits",)),
        ([packed, "--to", "packed"], 1, ("model.safetensors", "truncated")),
        ([tmp_path / "flipped.bin", "--to", "packed"], 1, ("flipped.bin", "altered")),
    ]
    for arguments, code, texts in cases:
        result = main("export", *arguments, "--out", out)
        assert result.rc == code, result
        assert [text for text in texts if text not in result.error] == []
        assert not out.exists()
    for folder, text in ((other, "thesis.txt"), (packed, "is a file")):
        assert text in main("export", last, "--to", "packed", "--out", folder).error
    for command in ("eval", "inspect"):
        assert "truncated" in main(command, packed).error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_packed_file_cannot_be_trained_on_compared_or_quantized(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    packed = tmp_path / "out" / "model.safetensors"
    assert main("export", run_dir, "--to", "packed", "--out", packed.parent).rc == 0
    for arguments in (
        ("train", "--dataset", "digits", "--init", packed),
        ("compare", "qat", "vs", packed, "--dataset", "digits"),
        ("ptq", packed, "--bits", 4),
    ):
        result = main(*arguments, "--runs-dir", tmp_path / "runs")
        assert result.rc == 1
        assert str(packed) in result.error
    assert not list((tmp_path / "runs").glob("*"))


def test_a_differing_logit_exits_1_and_leaves_nothing(
    run_dir: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, out = EXPORTERS["packed"], tmp_path / "out"

    def write(model: Any, facts: Any, layout: str) -> dict[str, bytes]:
        model.layers[0].bias[0] += 40_000
        try:
            return packed.write(model, facts, layout)
        finally:
            model.layers[0].bias[0] -= 40_000

    monkeypatch.setitem(EXPORTERS, "packed", Exporter(write, packed.run))
    result = main("export", run_dir, "--to", "packed", "--out", out)
    assert result.rc == 1
    assert f"of {TEST_IMAGES + NOISE_IMAGES} images have different logits" in result.error
    assert not out.exists()


def test_help_names_every_exporter(main: Callable[..., Any]) -> None:
    text = main("export", "--help").stdout
    assert [name for name in EXPORTERS if name not in text] == []
