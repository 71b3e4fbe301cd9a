"""A checkpoint is read back exactly, or refused with a CheckpointError; whatever the bytes, nothing in them runs."""

import contextlib
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qattrain.errors import CheckpointError
from qattrain.files import write_atomically
from qattrain.integer.lowering import lower
from qattrain.layers.network import build_model
from qattrain.runs.checkpoint import (
    _CHECKS,
    ADDED,
    DIGEST_BYTES,
    FORMAT_VERSION,
    MAGIC,
    Checkpoint,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from qattrain.runs.fields import TRAINED

CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> Path:
    """A checkpoint with a trainer's state in it, of a network small enough to be written hundreds of times."""
    settled = {"train.lr": 0.05, "train.batch_size": 32, "train.weight_decay": 0.0}
    config = tiny_config({"model.widths": [1, 1, 1], "quant.bits": 4, "quant.act_bits": 4} | settled)
    model = build_model(config.model, config.quant, 10)
    trainer = {"epoch": 1, "step": 0, "torch_rng": torch.get_rng_state(), "optimizer": {"state": {}}}
    history = [dict.fromkeys(TRAINED, 0.25) | {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.25}]
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(path, Checkpoint(config, CLASSES, dict(model.state_dict()), history, "a notice", trainer))
    return path


def sealed(body: bytes) -> bytes:
    """`body` with a valid trailer: what a forger who knows the format would write."""
    return body + MAGIC + hashlib.sha256(body + MAGIC).digest()


def body_of(path: Path) -> bytes:
    return path.read_bytes()[: -DIGEST_BYTES - len(MAGIC)]


def fields_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(body_of(path)), weights_only=True)
    return loaded


def refused(path: Path, *texts: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for text in texts:
        assert text in message
    return message


def store(path: Path, fields: object) -> Path:
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    path.write_bytes(sealed(buffer.getvalue()))
    return path


def test_everything_comes_back_as_it_was_saved(saved: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    first = load_checkpoint(saved)
    assert first.class_names == CLASSES
    assert first.notice == "a notice"
    save_checkpoint(tmp_path / "again.pt", first)
    second = load_checkpoint(tmp_path / "again.pt")
    for name in _CHECKS:
        assert_same(getattr(first, name), getattr(second, name), path=name)


def test_a_restored_model_has_the_saved_tensors(saved: Path, assert_same: Callable[..., None]) -> None:
    checkpoint = load_checkpoint(saved)
    assert_same(dict(restore_model(checkpoint, "x").state_dict()), checkpoint.model)


def test_the_trailer_is_the_documented_one(saved: Path) -> None:
    data = saved.read_bytes()
    assert data[-40:-32] == b"QATTRAIN"
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    data = saved.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.pt"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated")


def test_a_file_that_lacks_only_its_last_bytes_is_refused(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "cut.pt"
    for missing in (1, 31, 32, 33, 39, 40, 41):
        path.write_bytes(data[:-missing])
        refused(path)


@settings(max_examples=150)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), from_end=st.integers(1, 40) | st.none())
def test_any_flipped_bit_is_noticed(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, from_end: int | None
) -> None:
    data = bytearray(saved.read_bytes())
    data[-from_end if from_end else int(len(data) * position)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    path.write_bytes(data)
    refused(path)


def test_bytes_behind_the_end_are_noticed(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "longer.pt"
    path.write_bytes(saved.read_bytes() + b"\0")
    refused(path)


@settings(max_examples=150)
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_forged_byte_under_a_valid_digest_is_refused_or_harmless(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, position: float, byte: int
) -> None:
    body = bytearray(body_of(saved))
    body[int(len(body) * position)] = byte
    path = tmp_path_factory.getbasetemp() / "forged.pt"
    path.write_bytes(sealed(bytes(body)))
    with contextlib.suppress(CheckpointError):
        restore_model(load_checkpoint(path), str(path))


OPCODES = [bytes([code]) for code in b"\x80\x02\x04}]()lq.KGUXNtRobcu\x85\x86\x88a\n01"]  # of pickle


@settings(max_examples=200)
@given(body=st.binary(max_size=200) | st.lists(st.sampled_from(OPCODES), max_size=30).map(b"".join))
def test_arbitrary_bytes_under_a_valid_digest_are_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pt"
    path.write_bytes(sealed(body))
    refused(path)


class Bomb:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("container", ["zip", "pickle", "zip, as a field"])
def test_a_pickle_bomb_with_a_valid_digest_does_not_go_off(saved: Path, tmp_path: Path, container: str) -> None:
    target, path = tmp_path / "exploded", tmp_path / "bomb.pt"
    if container == "pickle":
        path.write_bytes(sealed(pickle.dumps(Bomb(target))))
    else:
        store(path, Bomb(target) if container == "zip" else fields_of(saved) | {"trainer": Bomb(target)})
    refused(path, "nothing was run")
    assert not target.exists()


def test_a_file_of_plain_torch_save_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    refused(tmp_path / "foreign.pt", "end mark")


def test_empty_text_folder_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("these are not the weights you are looking for\n" * 20)
    (tmp_path / "folder.pt").mkdir()
    for name, reason in (("empty", "0 bytes"), ("text", "end mark"), ("folder", "directory"), ("none", "No such")):
        refused(tmp_path / f"{name}.pt", reason)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_version_is_refused_by_number(saved: Path, tmp_path: Path, version: object) -> None:
    path = store(tmp_path / "version.pt", fields_of(saved) | {"format_version": version})
    refused(path, repr(version), str(FORMAT_VERSION))


@pytest.mark.parametrize("field", [field for field in _CHECKS if field not in ADDED])
def test_a_missing_field_is_refused_by_name(saved: Path, tmp_path: Path, field: str) -> None:
    fields = fields_of(saved)
    del fields[field]
    refused(store(tmp_path / "missing.pt", fields), field)


def test_an_unknown_field_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    refused(store(tmp_path / "more.pt", fields_of(saved) | {"surprise": 1}), "surprise")


@pytest.mark.parametrize("field", [name for name in _CHECKS if name != "notice"])
@pytest.mark.parametrize("value", [7, "text", [1]])
def test_a_field_of_the_wrong_type_is_refused(saved: Path, tmp_path: Path, field: str, value: object) -> None:
    path = store(tmp_path / "typed.pt", fields_of(saved) | {field: value})
    with pytest.raises(CheckpointError):
        restore_model(load_checkpoint(path), str(path))


@pytest.mark.parametrize("value", [[], ["test", 3], "text"])
def test_anything_but_a_table_of_fields_is_refused(tmp_path: Path, value: object) -> None:
    refused(store(tmp_path / "list.pt", value))


def test_a_configuration_of_another_version_is_refused_by_key(saved: Path, tmp_path: Path) -> None:
    fields = fields_of(saved)
    fields["config"]["train"]["momentun"] = 0.5
    refused(store(tmp_path / "config.pt", fields), "train.momentun")


def test_weights_that_do_not_fit_the_configuration_are_refused(saved: Path, tmp_path: Path) -> None:
    fields = fields_of(saved)
    for change in ({"widths": [2, 1, 1]}, {"widths": None}):
        broken = fields | {"config": fields["config"] | {"model": fields["config"]["model"] | change}}
        path = store(tmp_path / "weights.pt", broken)
        with pytest.raises(CheckpointError, match="do not fit") as caught:
            restore_model(load_checkpoint(path), str(path))
        assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_checkpoint_that_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, others = saved.read_bytes(), sorted(saved.parent.iterdir())

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        write_atomically(saved, b"half")
    assert saved.read_bytes() == before
    assert sorted(saved.parent.iterdir()) == others


def test_a_checkpoint_of_before_chains_gives_the_same_logits() -> None:
    """The file and its logits are of a version in which every network was a LeNet on images of 1x28x28."""
    path = Path(__file__).parent / "data" / "checkpoint-without-input-shape.pt"
    assert "input_shape" not in fields_of(path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.input_shape, checkpoint.class_names, checkpoint.finished) == ((1, 28, 28), CLASSES, True)
    assert checkpoint.config.model.widths == (3, 5, 12)
    images = (torch.arange(2 * 784) ** 2 % 251).to(torch.uint8).view(2, 1, 28, 28)
    images[1] //= 3
    model = restore_model(checkpoint, str(path)).eval()
    integers = lower(model, checkpoint.input_shape)
    expected = [[-36, 1, -36, 17, -61, 68, -70, 59, 76, 23], [-37, 31, -21, -3, -52, 33, -57, 40, 59, -1]]
    assert integers.run(images.numpy()).tolist() == expected
    assert integers.logit_scale == 0.019555325383303956
    with torch.no_grad():
        assert torch.equal(model(images), torch.tensor(expected) * torch.tensor(0.01955532468855381))
