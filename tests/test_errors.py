"""A mistyped name is answered with the nearest one there is, whatever table it is picked from."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qattrain.config.chain import PRESETS
from qattrain.data import AUGMENTATIONS, DATASETS
from qattrain.errors import ConfigError, TrainingError, did_you_mean, nearest, pick, write_errors
from qattrain.evaluation.networks import ENGINES
from qattrain.explain import TOPICS
from qattrain.export import EXPORTERS
from qattrain.quant import QUANTIZERS, SURROGATES
from qattrain.runs import folder as runs
from qattrain.training.optimization import OPTIMIZERS, SCHEDULES


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("FashionMNIST", DATASETS, "fashion-mnist"),
        ("CIFAR-10", DATASETS, "cifar10"),
        ("mnst", DATASETS, "mnist"),
        ("EMNIST letters", DATASETS, "emnist-letters"),
        ("LeNet", PRESETS, "lenet"),
        ("ds_cnn", PRESETS, "ds-cnn"),
        ("DoReFa", QUANTIZERS, "dorefa"),
        ("one_cycle", SCHEDULES, "one-cycle"),
        ("adam", OPTIMIZERS, "adamw"),
        ("fashion", DATASETS, "fashion-mnist"),
        ("conv", ["fc1", "conv1", "conv2"], "conv1"),
        ("lenet", PRESETS, "lenet"),
        ("di", DATASETS, None),
        ("a_b", ["a-b", "a_b"], "a_b"),
        ("imagenet", SURROGATES, None),
        ("", DATASETS, None),
        ("--", DATASETS, None),
        ("mnist", [], None),
    ],
)
def test_the_nearest_name_is_the_one_that_differs_in_case_and_punctuation_or_else_looks_alike(
    name: str, known: Iterable[str], expected: str | None
) -> None:
    assert nearest(name, known) == expected
    assert did_you_mean(name, known) == ("" if expected is None else f"did you mean {expected!r}? ")


def test_what_is_picked_from_a_table_is_there_or_refused_with_what_is() -> None:
    assert pick({"one": 1}, "one", "number") == 1
    with pytest.raises(ConfigError, match=r"^number 'oen': did you mean 'one'\? allowed: one, two; see there$"):
        pick({"one": 1, "two": 2}, "oen", "number", also="; see there")
    with pytest.raises(ConfigError, match=r"^number 'x': allowed: one, two$"):
        pick({"one": 1, "two": 2}, "x", "number")


MISTYPED: list[tuple[tuple[object, ...], str, Iterable[str]]] = [
    (("train", "--dataset", "FashionMNIST"), "fashion-mnist", DATASETS),
    (("train", "--dataset", "digits", "--quantizer", "LSQ"), "lsq", QUANTIZERS),
    (("train", "--dataset", "digits", "--surrogate", "poly"), "polynomial", SURROGATES),
    (("train", "--model", "lenet-smal"), "lenet-small", PRESETS),
    (("train", "--model", "conv 8 3x3 strid 2, fc"), "stride", ["stride, pad, groups, bn"]),
    (("train", "--model", "conv 8 3x3, avgpol, fc"), "avgpool", ["conv, dw, pool, avgpool, fc"]),
    (("train", "--layer-bits", "conv-1=4"), "conv1", ["fc2", "act3"]),
    (("train", "--dataset", "digits", "--augment", "shfit"), "shift", AUGMENTATIONS),
    (("train", "--dataset", "digits", "--set", "train.optimizer=adam"), "adamw", OPTIMIZERS),
    (("train", "--dataset", "digits", "--set", "train.schedule=onecycle"), "one-cycle", SCHEDULES),
    (("train", "--set", "lr=0.1"), "train.lr", ["train", "quant"]),
    (("train", "--set", "train.batchsize=8"), "train.batch_size", ["momentum"]),
    (("train", "--set", "train.surrogate=tanh"), "quant.surrogate", ["momentum"]),
    (("train", "--dataset", "digits", "--device", "CPU"), "cpu", ["cuda:N"]),
    (("explain", "Batch Norm"), "batchnorm", TOPICS),
    (("export", "mine", "--to", "ONNX"), "onnx", EXPORTERS),
    (("export", "mine", "--to", "c", "--layout", "int-8"), "int8", ["packed"]),
    (("eval", "mine", "--engine", "integers"), "integer", ENGINES),
    (("eval", "mien"), "mine", ["mine"]),
    (("bench", "--only", "LSQ-4x4"), "lsq-w4a4", ["plain"]),
    (("sweep", "--name", "studdy", "--report-only"), "study", ["study"]),
    (("sweep", "--bits", "2", "--set", "quantt.surrogate=[clipped,tanh]"), "quant", ["model"]),
    (("trian",), "train", ["--help"]),
]


@pytest.mark.parametrize(("line", "expected", "allowed"), MISTYPED, ids=[" ".join(map(str, m[0])) for m in MISTYPED])
def test_every_command_answers_a_mistyped_name_with_the_nearest(
    main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Callable[..., Any],
    line: tuple[object, ...], expected: str, allowed: Iterable[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    settled = tiny_config({"quant.bits": 4, "quant.act_bits": 4}).model_dump(mode="json")
    runs.write_config(tmp_path / "runs" / "mine", settled, {})
    (tmp_path / "runs" / "mine" / "last.pt").touch()
    (tmp_path / "runs" / "study").mkdir()
    (tmp_path / "runs" / "study" / "plan.json").touch()
    error = main(*line).error
    assert f"did you mean '{expected}'?" in error.replace("Did", "did")
    assert [name for name in allowed if name not in error] == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free space there, or choose another place"),
        (errno.EDQUOT, "Disk quota exceeded; free space there, or choose another place"),
        (errno.ENOENT, "its folder is not there, or was removed; make it, or choose another place"),
        (errno.EROFS, "what is there can only be read; choose another place"),
        (errno.EACCES, "allow writing there, or choose another place"),
        (errno.EISDIR, "a folder has that name; remove it, or choose another place"),
        (errno.EIO, "Input/output error; choose another place"),
    ],
)
def test_what_to_do_fits_why_nothing_could_be_written(number: int, remedy: str) -> None:
    with (
        pytest.raises(TrainingError, match=rf"^cannot write: .*{remedy}$"),
        write_errors(TrainingError, "cannot write", "choose another place"),
    ):
        raise OSError(number, os.strerror(number))
