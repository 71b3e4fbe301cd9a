"""Checkpoints with a valid digest that make no sense are refused with one line, by every command that reads them."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import Fields, fields_of, forge, rezipped, sealed, store
from torch import Tensor

from qattrain.errors import CheckpointError, TrainingError
from qattrain.evaluation import networks
from qattrain.runs.archive import MOST_BYTES, MOST_STEPS, check_pickle
from qattrain.runs.checkpoint import load_checkpoint, save_checkpoint
from qattrain.training import run as experiment

NAN = float("nan")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], silent_display: Any) -> Path:
    """The checkpoint of a run that was stopped after its second of three epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = {"model.widths": [2, 2, 4], "quant.bits": 4, "data.limit_train": 64, "train.epochs": 3}
    return experiment.train(tiny_config(settings), folder, folder, silent_display(), 2).run_dir / "last.pt"


def put(*path: Any, value: Any) -> Callable[[Fields], None]:
    """Sets what lies at `path`; value: new, or a function of the old."""

    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value(fields[path[-1]]) if callable(value) else value

    return change


def drop(*path: Any) -> Callable[[Fields], None]:
    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        del fields[path[-1]]

    return change


def nested() -> list[Any]:
    """A list that would have 2^40 entries, written out; in a pickle it is small."""
    found: list[Any] = ["x"]
    for _ in range(40):
        found = [found, found]
    return found


def first_state(fields: Fields) -> dict[str, Tensor]:
    state: dict[str, Tensor] = fields["trainer"]["optimizer"]["state"][0]
    return state


def rename_state(fields: Fields) -> None:
    for kept in fields["trainer"]["optimizer"]["state"].values():
        kept["exp_avg"] = kept.pop("momentum_buffer")


WRONG: dict[str, tuple[Callable[[Fields], object], str]] = {
    "history without values": (put("history", value=[{}]), "is of epoch None, not 1"),
    "history of text": (put("history", 0, "test_accuracy", value="x"), "test_accuracy in record 1"),
    "history of NaN": (put("history", 1, "test_loss", value=NAN), "test_loss in record 2"),
    "history of epoch -3": (put("history", 0, "epoch", value=-3), "is of epoch -3, not 1"),
    "history without speed": (drop("history", 1, "images_per_second"), "has no images_per_second"),
    "history with escapes": (put("history", 0, "\x1b[2J", value=1.0), r"a value named '\x1b[2J'"),
    "history of an accuracy of 7": (put("history", 0, "test_accuracy", value=7.0), "allowed: 0 to 1"),
    "warnings of text": (put("history", 0, "warnings", value="x"), "warnings in record 1"),
    "warnings without end": (put("history", 0, "warnings", value=nested()), "warnings in record 1"),
    "history too long": (put("history", value=lambda history: history * 9), "has 18 records, its run 3"),
    "no history": (put("history", value=[]), "another epoch than its history"),
    "training at epoch -3": (put("trainer", "epoch", value=-3), "another epoch than its history"),
    "NaN weight": (put("model", "conv1.weight", value=lambda t: t * NAN), "conv1: its weight is not finite"),
    "infinite scale": (put("model", "act1.quantizer.scale", value=lambda t: t / 0), "act1: its quantizer scale"),
    "negative scale": (put("model", "fc1.weight_quantizer.scale", value=lambda t: -t), "fc1: its weight quantizer"),
    "zero scale": (put("model", "act2.quantizer.scale", value=lambda t: t * 0), "act2: its quantizer scale is 0"),
    "huge scale": (put("model", "act2.quantizer.scale", value=lambda t: t * 1e37), "up to 2^40"),
    "number as a key": (lambda fields: fields["model"].update({3: torch.zeros(1)}), "is named 3"),
    "number as a field": (lambda fields: fields.update({3: 1}), "has fields 3, class_names"),
    "missing bias": (drop("model", "fc1.bias"), "it has no fc1.bias"),
    "missing scale": (drop("model", "conv1.weight_quantizer.scale"), "it has no conv1.weight_quantizer.scale"),
    "extra tensor": (lambda fields: fields["model"].update(z=torch.zeros(1)), "the network has no z"),
    "wrong type": (put("model", "fc1.bias", value=lambda t: t.double()), "expected torch.float32"),
    "integers": (put("model", "fc1.weight", value=lambda t: t.long()), "expected torch.float32"),
    "wrong shape": (put("model", "fc1.weight", value=lambda t: t[1:]), "fc1.weight has shape"),
    "terabytes": (put("model", "fc1.weight", value=torch.zeros(1).expand(10**6, 10**6)), "claim more bytes than"),
    "tensor without data": (
        lambda fields: fields["model"].update(x=torch.zeros(9, device="meta")),
        "asks for torch._utils",
    ),
    "other class count": (put("class_names", value=["a", "b"]), "fc2.weight has shape"),
    "no classes": (put("class_names", value=[]), "has 0 class names"),
    "classes of numbers": (put("class_names", value=[1] * 10), "'class_names' is not"),
    "notice of a table": (put("notice", value={}), "'notice' is not"),
    "version of a tensor": (put("format_version", value=torch.zeros(3)), "format version a Tensor"),
    "version True": (put("format_version", value=True), "format version True"),
    "setting without a name": (lambda fields: fields["config"].update({1: 2}), "text as its name"),
    "setting of another type": (put("config", "train", "epochs", value="x"), "train.epochs"),
    "section that is a list": (put("config", "model", value=[1]), "model = [1]"),
    "section without end": (put("config", "model", value=nested()), "configuration is too large"),
    "setting of a tensor": (put("config", "seed", value=torch.zeros(3)), "has a Tensor in it"),
    "setting of 500 digits": (put("config", "seed", value=10**500), "more than 64 bits"),
    "open bits": (put("config", "quant", "bits", value=None), "leaves quant.bits open"),
    "open learning rate": (put("config", "train", "lr", value="auto"), "leaves train.lr open"),
    "a billion threads": (
        put("config", "train", "threads", value=10**9),
        "train.threads = 1000000000: input should be",
    ),
    "60 large layers": (
        put("config", "model", value={"name": "conv 2 1x1, " + "fc 4096, " * 60 + "fc"}),
        "conv1.weight has shape",
    ),
    "unknown quantizer": (put("config", "quant", "quantizer", value="nope"), "quantizer 'nope'"),
    "images of 10^12 pixels": (put("input_shape", value=[1, 10**6, 10**6]), "its images would be"),
}
WRONG_TRAINING: dict[str, tuple[Callable[[Fields], object], str]] = {
    "none": (put("trainer", value=None), "has no optimizer state"),
    "step beyond the epoch": (put("trainer", "step", value=10**9), "step 1000000000"),
    "no step": (drop("trainer", "step"), "it has no step"),
    "time of NaN": (put("trainer", "seconds", value=NAN), "nan seconds"),
    "no optimizer": (put("trainer", "optimizer", value=None), "training state does not fit"),
    "nothing kept": (put("trainer", "optimizer", "state", value={}), "not that of 15 parameters"),
    "one missing": (drop("trainer", "optimizer", "state", 3), "not that of 15 parameters"),
    "of another optimizer": (rename_state, "is not momentum_buffer"),
    "another shape": (lambda fields: first_state(fields).update(momentum_buffer=torch.zeros(1)), "no torch.float32"),
    "NaN kept": (lambda fields: first_state(fields)["momentum_buffer"].fill_(NAN), "cannot be"),
    "no groups": (put("trainer", "optimizer", "param_groups", value=[]), "other parameters"),
    "rate of NaN": (put("trainer", "optimizer", "param_groups", 0, "lr", value=NAN), "learning rate"),
    "other losses": (put("trainer", "losses", value=torch.zeros(9)), "its losses"),
    "random state too short": (put("trainer", "torch_rng", value=torch.zeros(3)), "training state does not fit"),
    "random state of text": (put("trainer", "augmentation_rng", value="x"), "training state does not fit"),
    "without end": (put("trainer", "optimizer", value={"state": nested(), "param_groups": []}), "other parameters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_eval_refuses_what_no_run_writes(stopped: Path, tmp_path: Path, main: Callable[..., Any], name: str) -> None:
    change, text = WRONG[name]
    done = main("eval", forge(tmp_path / "bad" / "last.pt", stopped, change))
    assert done.rc == 1
    assert text in done.error
    assert "weights_only=False" not in done.error


@pytest.mark.parametrize("name", WRONG_TRAINING)
def test_resume_refuses_another_training_state(
    stopped: Path, tmp_path: Path, main: Callable[..., Any], name: str
) -> None:
    change, text = WRONG_TRAINING[name]
    done = main("train", "--resume", forge(tmp_path / "bad" / "last.pt", stopped, change).parent)
    assert done.rc == 1
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("change", ["negative scale", "NaN weight"])
def test_every_command_refuses_a_broken_network_by_its_layer(
    stopped: Path, tmp_path: Path, main: Callable[..., Any], change: str
) -> None:
    path = forge(tmp_path / "bad" / "last.pt", stopped, WRONG[change][0])
    text = WRONG[change][1]
    new = ("train", "--model", "lenet-nano", "--dataset", "digits", "--epochs", 1, "--runs-dir", tmp_path)
    new = (*new, "--bits", 4, "--set", "model.widths=[2,2,4]")
    for command in (
        ("eval", path),
        ("inspect", path),
        ("predict", path, "picture.png"),
        ("export", path, "--to", "c", "--out", tmp_path / "out"),
        ("report", path, "--out", tmp_path / "page.html"),
        ("compare", path, "vs", stopped, "--runs-dir", tmp_path),
        (*new, "--init", path),
        *([("train", "--resume", path.parent)] if change == "NaN weight" else []),
    ):
        done = main(*command)
        assert done.rc == 1, command
        assert text in done.stderr.splitlines()[-1], command
    assert not (tmp_path / "out").exists()


def test_a_run_whose_scale_crossed_zero_is_resumed(stopped: Path, tmp_path: Path, main: Callable[..., Any]) -> None:
    """It may recover: training takes the smallest scale instead."""
    path = forge(tmp_path / "run" / "last.pt", stopped, WRONG["zero scale"][0])
    done = main("train", "--resume", path.parent)
    assert done.rc == 0, done
    lines = (done.stdout + done.stderr).splitlines()
    is_usable = main("eval", path).rc == 0
    assert is_usable == any("evaluate it again with" in line for line in lines)


def test_a_network_that_eval_refuses_is_not_said_to_be_evaluated_again(
    stopped: Path, tmp_path: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forge(tmp_path / "run" / "last.pt", stopped, dict)

    def refuse(*_: object) -> None:
        raise CheckpointError("conv1: its scale is -1")

    monkeypatch.setattr(networks, "restore_model", refuse)
    done = main("train", "--resume", path.parent)
    assert done.rc == 0, done
    assert "evaluate it again with" not in done.stdout
    assert "It can be neither evaluated again nor exported: conv1: its scale is -1" in done.stderr


PICKLES = {
    "half a million steps more": b"\x80\x02" + b"]" * (MOST_STEPS + 1) + b".",
    "another class": b"\x80\x02cbuiltins\nbytearray\n.",
    "unknown step": b"\x80\x02\xff.",
    "without end": b"\x80\x02X\xff\xff\xff\xff.",
    "name without end": b"\x80\x02ctorch",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_looked_at_before_torch_runs_it(name: str) -> None:
    with pytest.raises(ValueError, match="its pickle"):
        check_pickle(PICKLES[name])


def test_archives_that_are_more_than_they_seem_are_refused(
    stopped: Path, tmp_path: Path, main: Callable[..., Any]
) -> None:
    path = tmp_path / "last.pt"
    for text, body in (
        ("is compressed", rezipped(stopped, lambda _, content: content, zipfile.ZIP_DEFLATED)),
        ("more than 4,096 parts", rezipped(stopped, lambda _, content: content, more=5000)),
        ("zip file is damaged", rezipped(stopped, lambda _, content: content)[:-30]),
    ):
        path.write_bytes(sealed(body))
        assert text in main("eval", path).error


def cost(*arguments: object) -> tuple[int, float, float]:
    """Exit code, processor seconds and megabytes of a command in a process of its own."""
    command = [sys.executable, "-m", "qattrain", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def test_refusing_costs_little(stopped: Path, tmp_path: Path) -> None:
    """At most 2 s and 500 MB more than the same command on a small valid file."""
    code, seconds, megabytes = cost("inspect", stopped)
    assert code == 0
    zeros = bytes(300_000_000)
    body = rezipped(stopped, lambda name, old: zeros if name.endswith("data/0") else old, zipfile.ZIP_DEFLATED)
    (tmp_path / "unpacks.pt").write_bytes(sealed(body))
    assert len(body) < 10**6
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.truncate(8 * 10**9)
    many = b"\x80\x02" + b"]" * (MOST_STEPS - 2) + b"."
    body = rezipped(stopped, lambda name, old: many if name.endswith("data.pkl") else old)
    (tmp_path / "steps.pt").write_bytes(sealed(body))
    for name in ("unpacks.pt", "sparse.safetensors", "steps.pt"):
        refused = cost("inspect", tmp_path / name)
        assert refused[0] == 1, name
        assert refused[1] < seconds + 2, name
        assert refused[2] < megabytes + 500, name


def test_a_run_whose_checkpoint_could_not_be_read_is_refused_at_once(stopped: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(stopped)
    weights = {"fc1.weight": torch.empty(MOST_BYTES // 8)}
    with pytest.raises(TrainingError, match="bytes of weights"):
        save_checkpoint(tmp_path / "last.pt", type(checkpoint)(**(vars(checkpoint) | {"model": weights})))
    assert not (tmp_path / "last.pt").exists()


def test_what_a_run_writes_is_read(stopped: Path, tmp_path: Path) -> None:
    assert load_checkpoint(store(tmp_path / "same.pt", fields_of(stopped))).history == load_checkpoint(stopped).history
