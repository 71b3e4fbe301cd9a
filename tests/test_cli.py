"""The command line as a user meets it: exit codes, one clear line, JSON alone on stdout, Ctrl-C and kill -9."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qattrain import __version__
from qattrain.commands import COMMANDS
from qattrain.commands.options import listed
from qattrain.config.chain import PRESETS
from qattrain.data import AUGMENTATIONS, DATASETS
from qattrain.evaluation.metrics import evaluate
from qattrain.evaluation.networks import ENGINES
from qattrain.explain import TOPICS
from qattrain.export import EXPORTERS
from qattrain.quant import QUANTIZERS, SURROGATES
from qattrain.runs import folder as runs
from qattrain.runs.checkpoint import load_checkpoint
from qattrain.training import run as experiment
from qattrain.training.ptq import CALIBRATIONS

README = Path(__file__).parents[1] / "README.md"
SMALL = ("--dataset", "digits", "--model", "lenet-nano", "--limit-train", "200", "--epochs", "2", "--threads", "1")
TRAIN_FIELDS = (
    "run_dir checkpoint dataset model bits act_bits quantizer weight_quantizer epochs seed train_loss test_loss "
    "test_accuracy epoch_seconds images_per_second warnings"
)
EVAL_FIELDS = (
    "checkpoint dataset engine total correct accuracy accuracy_ci95 loss prediction_mismatches code_mismatches "
    "logit_mismatches classes"
)
ROW_FIELDS = "method run_dir bits act_bits accuracy accuracy_ci95 delta mcnemar_p loss weight_bytes images_per_second"

# Arguments, exit code, and what the one line must say. Refused before torch is loaded: a process of their own.
EARLY: list[tuple[str, int, tuple[str, ...]]] = [
    ("train --bits 0", 2, ("bits = 0", "1 to 8", "32")),
    ("train --bits 9", 2, ("bits = 9", "1 to 8")),
    ("train --bits four", 2, ("--bits", "integer", "--help")),
    ("train --epochs -1", 2, ("epochs = -1", "1")),
    ("train --layer-bits nosuch=4", 2, ("nosuch", "conv1", "act3")),
    ("train --model nosuch", 2, ("nosuch", *PRESETS, "chain")),
    ("train --model conv", 2, ("part 1, 'conv'", "ends in a bare fc")),
    ("train --model fc --layer-bits conv1=4", 2, ("conv1", "allowed: fc1")),
    ("train --layer-bits conv1", 2, ("conv1", "LAYER=BITS", "conv1=8")),
    ("train --set train.lrr=1", 2, ("train.lrr", "momentum")),
    ("train --config broken.toml", 2, ("broken.toml", "TOML", "line 1")),
    ("train --config wrong.toml", 2, ("wrong.toml", "train.epochs", '"ten"', "integer")),
    ("train --nosuch 1", 2, ("--nosuch", "--help")),
    ("nosuch", 2, ("nosuch", "--help")),
    ("ptq x.pt --bits 0", 2, ("bits = 0", "1 to 8")),
]
# The same in this process, because each would load torch.
LATE: list[tuple[str, int, tuple[str, ...]]] = [
    ("train --dataset digits --quantizer nosuch", 2, ("nosuch", *QUANTIZERS)),
    ("train --dataset nosuch", 2, ("nosuch", "auto", *DATASETS)),
    ("train --dataset digits --model nosuch", 2, ("nosuch", *PRESETS)),
    ("train --dataset digits --augment nosuch", 2, ("nosuch", *AUGMENTATIONS)),
    ("train --dataset digits --device nosuch", 2, ("nosuch", "cpu", "cuda")),
    ("train --dataset digits --quantizer ternary --bits 3", 2, ("ternary", "3", "2")),
    ("train --resume nosuch", 1, ("nosuch",)),
    ("train --dataset digits --teacher nosuch", 1, ("nosuch", "checkpoint")),
    ("train --set distill.weight=2", 2, ("distill.weight = 2", "less than or equal to 1")),
    ("train --set model.dropout=1", 2, ("model.dropout = 1", "less than 1")),
    ("train --dataset digits --runs-dir a-file", 1, ("a-file", "--runs-dir")),
    ("compare fp32 vs nosuch", 1, ("nosuch",)),
    ("compare fp32", 2, ("two", "ptq")),
    ("compare fp32 vs qat --dataset digits --bits 32", 2, ("--bits 32", "1 to 8")),
    ("eval nosuch", 1, ("nosuch",)),
    ("eval garbage.pt", 1, ("garbage.pt", "end mark")),
    ("eval truncated.pt", 1, ("truncated.pt", "truncated")),
    ("eval flipped.pt", 1, ("flipped.pt", "altered")),
    ("eval good.pt --engine nosuch", 2, ("nosuch", "torch")),
    ("inspect truncated.pt", 1, ("truncated.pt",)),
    ("ptq good.pt --bits 8", 2, ("good.pt", "already quantized", "--bits 32")),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of every wrong kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("epochs = = 3\n")
    (tmp_path / "wrong.toml").write_text('[train]\nepochs = "ten"\n')
    (tmp_path / "garbage.pt").write_bytes(b"\x80\x02garbage" * 100)
    (tmp_path / "a-file").write_text("not a folder")
    return tmp_path


def check(result: Any, code: int, texts: tuple[str, ...]) -> None:
    assert result.rc == code, result
    for text in texts:
        assert text in result.error


def test_wrong_input_is_one_clear_line_and_leaves_nothing(folder: Path, qattrain: Callable[..., Any]) -> None:
    before = sorted(folder.rglob("*"))
    for line, code, texts in [*EARLY, ("eval garbage.pt", 1, ("garbage.pt", "end mark"))]:
        check(qattrain(*line.split()), code, texts)
    assert sorted(folder.rglob("*")) == before


def test_wrong_input_found_later_is_one_clear_line_and_leaves_no_run(
    folder: Path, main: Callable[..., Any], tiny: Callable[..., Any]
) -> None:
    good = tiny(runs_dir=folder / "elsewhere", settings={"train.epochs": 1}).run_dir / runs.LAST_FILE
    data = bytearray(good.read_bytes())
    (folder / "good.pt").write_bytes(data)
    (folder / "truncated.pt").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 4
    (folder / "flipped.pt").write_bytes(data)
    for line, code, texts in LATE:
        check(main(*line.split()), code, texts)
    assert not list(folder.glob("runs/*"))


def test_debug_shows_the_traceback(qattrain: Callable[..., Any]) -> None:
    result = qattrain("train", "--bits", 0, "--debug")
    assert result.rc == 1  # Python's own, for an exception
    assert "Traceback" in result.stderr


def test_train_eval_inspect_runs_speak_json_alone_on_stdout_and_agree(
    tmp_path: Path, qattrain: Callable[..., Any], main: Callable[..., Any]
) -> None:
    trained = qattrain("train", *SMALL, "--json")
    assert trained.rc == 0, trained
    assert trained.stdout.count("\n") == 1
    train = json.loads(trained.stdout)
    assert " ".join(train) == TRAIN_FIELDS
    expected = ("digits", "lenet-nano", 4, 4, "lsq", "lsq", 2, 0)
    assert tuple(train[key] for key in TRAIN_FIELDS.split()[2:10]) == expected
    assert len(train["epoch_seconds"]) == 2
    assert "epoch   2" in trained.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    evaluated = qattrain("eval", tmp_path / train["checkpoint"], "--json", cwd=elsewhere)
    assert evaluated.stdout.count("\n") == 1
    evaluation = json.loads(evaluated.stdout)
    assert " ".join(evaluation) == EVAL_FIELDS
    assert evaluation["accuracy"] == train["test_accuracy"]
    assert evaluation["loss"] == train["test_loss"]
    assert (evaluation["total"], evaluation["correct"]) == (360, round(360 * evaluation["accuracy"]))
    low, high = evaluation["accuracy_ci95"]
    assert low < evaluation["accuracy"] < high
    assert not any(elsewhere.iterdir())

    # Text goes to stdout, also where that is no terminal; with --json to stderr.
    for command in (("eval", train["run_dir"]), ("inspect", train["run_dir"]), ("runs",)):
        arguments = [tmp_path / part if part == train["run_dir"] else part for part in command]
        plain = main(*arguments, "--runs-dir", tmp_path / "runs")
        assert (plain.rc, "digits" in plain.stdout) == (0, True)
        assert "accuracy" not in plain.stderr
        asked = main(*arguments, "--runs-dir", tmp_path / "runs", "--json")
        assert isinstance(json.loads(asked.stdout), dict)
        assert asked.stdout.count("\n") == 1
        assert "digits" in asked.stderr


def test_ptq_and_compare_speak_json_alone_on_stdout(tmp_path: Path, main: Callable[..., Any]) -> None:
    place = ("--runs-dir", tmp_path / "runs", "--json")
    float_run = json.loads(main("train", *SMALL, "--bits", 32, *place).stdout)
    assert (float_run["bits"], float_run["quantizer"], float_run["weight_quantizer"]) == (32, "lsq", "float")
    quantized = main("ptq", float_run["run_dir"], "--bits", 8, *place)
    assert quantized.stdout.count("\n") == 1
    summary = json.loads(quantized.stdout)
    assert " ".join(summary) == TRAIN_FIELDS
    assert (summary["bits"], summary["quantizer"], summary["epochs"], summary["epoch_seconds"]) == (8, "affine", 0, [])
    compared = main("compare", float_run["run_dir"], "vs", summary["run_dir"], *place)
    assert compared.rc == 0, compared
    document = json.loads(compared.stdout)
    assert list(document) == ["baseline", "rows"]
    assert [" ".join(row) for row in document["rows"]] == [ROW_FIELDS, ROW_FIELDS]
    assert (document["rows"][0]["delta"], document["rows"][0]["mcnemar_p"]) == (0, 1)


def test_ctrl_c_while_the_last_epoch_is_evaluated_exits_130_or_reports(
    tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr("qattrain.training.session.evaluate", interrupted)
    result = main("train", *SMALL, "--epochs", 1, "--runs-dir", tmp_path, "--json")
    assert result.rc == 130 or json.loads(result.stdout)["epochs"] == 1, result


def started(arguments: list[str], cwd: Path, until: str) -> subprocess.Popen[str]:
    """A run in a process of its own, in mid-epoch: a while after its stderr said `until`."""
    command = [sys.executable, "-m", "qattrain", *arguments]
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if until in line:
            time.sleep(0.3)
            return process
    raise AssertionError(f"{command} ended without saying {until!r}")


def test_a_run_stopped_by_ctrl_c_and_by_kill_9_in_mid_epoch_equals_the_uninterrupted_one(
    tmp_path: Path, tiny: Callable[..., Any], silent_display: Any, assert_same: Callable[..., None]
) -> None:
    slow = {"data.limit_train": 1400, "train.batch_size": 1, "train.epochs": 2}
    whole = tiny(slow, runs_dir=tmp_path / "whole").run_dir
    arguments = ["train", *SMALL, "--limit-train", "1400", "--batch-size", "1"]
    process = started(arguments, tmp_path, "1 thread")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    state = load_checkpoint(run_dir / runs.LAST_FILE).trainer
    assert state is not None
    assert (state["epoch"], 0 < state["step"] < 1400) == (0, True)
    match = re.search(r"to continue:  qattrain (.*)$", stdout.strip())
    assert match is not None, stdout

    process = started(shlex.split(match[1]), tmp_path, "epoch   1")
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(load_checkpoint(run_dir / runs.LAST_FILE).history) == 1
    experiment.resume(run_dir.name, tmp_path, tmp_path / "runs", silent_display(), {}, None)
    one, other = load_checkpoint(whole / runs.LAST_FILE), load_checkpoint(run_dir / runs.LAST_FILE)
    assert_same(one.model, other.model)
    assert_same(one.trainer, other.trainer, ignore=("seconds",))


def test_help_names_everything_there_is_to_choose_from(main: Callable[..., Any]) -> None:
    root = main("--help")
    assert root.rc == 0
    for name, command in COMMANDS.items():
        assert name in root.stdout
        assert command.__doc__
        text = main(name, "--help").stdout
        assert "Example" in text
        assert f"qattrain {name}" in text
    train = "".join(main("train", "--help").stdout.split())  # a line may end inside a name
    assert [c for c in (*QUANTIZERS, *DATASETS, *PRESETS, *AUGMENTATIONS, "auto") if c not in train] == []
    ptq = main("ptq", "--help").stdout
    assert [c for c in (*QUANTIZERS, *CALIBRATIONS) if c not in ptq] == []


@pytest.mark.parametrize(
    ("module", "table", "names", "command"),
    [
        ("quant/__init__.py", "QUANTIZERS", QUANTIZERS, "train"),
        ("quant/__init__.py", "QUANTIZERS", QUANTIZERS, "ptq"),
        ("quant/surrogates.py", "SURROGATES", SURROGATES, "train"),
        ("quant/surrogates.py", "SURROGATES", SURROGATES, "compare"),
        ("quant/surrogates.py", "SURROGATES", SURROGATES, "sweep"),
        ("config/chain.py", "PRESETS", PRESETS, "train"),
        ("data/__init__.py", "DATASETS", DATASETS, "compare"),
        ("data/augment.py", "AUGMENTATIONS", AUGMENTATIONS, "sweep"),
        ("training/ptq.py", "CALIBRATIONS", CALIBRATIONS, "ptq"),
        ("evaluation/networks.py", "ENGINES", ENGINES, "eval"),
        ("export/__init__.py", "EXPORTERS", EXPORTERS, "export"),
        ("explain/__init__.py", "TOPICS", TOPICS, "explain"),
    ],
)
def test_help_lists_the_names_of_a_table_as_its_source_has_them(
    main: Callable[..., Any], module: str, table: str, names: dict[str, Any], command: str
) -> None:
    *others, last = names
    assert listed(module, table) == f"{', '.join(others)} or {last}"
    assert "".join(listed(module, table).split()) in "".join(main(command, "--help").stdout.split())


def test_a_table_that_is_not_there_is_a_bug_that_is_named() -> None:
    with pytest.raises(AssertionError, match="NOSUCH"):
        listed("quant/__init__.py", "NOSUCH")


def test_version_and_bare_call(qattrain: Callable[..., Any]) -> None:
    version = qattrain("--version")
    assert (version.rc, version.stdout) == (0, f"qattrain {__version__}\n")
    bare = qattrain()
    assert "Usage" in bare.stdout + bare.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_mentions_every_command(name: str) -> None:
    assert f"qattrain {name}" in README.read_text()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal_and_its_sentences_are_whole(
    command: str, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = main(*command.split(), "--help").stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if line.endswith("...") and not line.startswith("Usage:")] == []
