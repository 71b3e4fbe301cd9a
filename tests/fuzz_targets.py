"""Every reader of the tool, as a function of bytes: what a stranger's file may do to it.

Each `Target` writes the bytes where its reader looks for them and reads. The reader may accept them, or refuse them
with a QattrainError; anything else is a finding: another exception, more than MOST_SECONDS, more than MOST_BYTES. Files
with a digest are tried twice: raw, and with the digest made valid for whatever they hold.
"""

import contextlib
import copy
import hashlib
import io
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qattrain.config import ExperimentConfig
from qattrain.errors import QattrainError

MOST_SECONDS, MOST_BYTES = 2.0, 500_000_000
CHAIN = "conv 2 5x5 stride 3, pool 2, fc"
ODD: tuple[Any, ...] = (None, True, False, 0, -1, 1, 255, 256, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"))
ODD += (
    float("inf"),
    "",
    "x",
    "\x1b[2J",
    "\x00",
    "../x",
    "a" * 5000,
    "1",
    "NaN",
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    "9" * 400,
)


@dataclass(frozen=True)
class Target:
    """read: takes the bytes and a folder of its own. seeds: valid inputs. json: they are JSON, and changed as such."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    json: bool = False


def tried(target: Target, data: bytes, folder: Path) -> str | None:
    """The finding, or None: the reader took the bytes, or refused them as it should."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        target.read(data, folder)
    except QattrainError as error:
        if not str(error).strip():
            return f"says nothing: {type(error).__name__}"
    seconds = time.process_time() - started
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if seconds > MOST_SECONDS:
        return f"took {seconds:.1f} s"
    return f"took {grown:,} bytes" if grown > MOST_BYTES else None


def mutated(data: bytes, seed: int) -> bytes:
    """JSON with one to three values replaced, removed or doubled; other bytes as they are."""
    chance = random.Random(seed)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(chance.randint(1, 3)):
        tree = _changed(tree, chance)
    return json.dumps(tree).encode()


def _changed(tree: Any, chance: random.Random) -> Any:
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.1:
        return copy.deepcopy(chance.choice(ODD))
    key = chance.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    what = chance.random()
    if what < 0.1:
        del tree[key]
    elif what < 0.15 and isinstance(tree, dict):
        tree[str(chance.choice(ODD))[:50]] = copy.deepcopy(tree[key])
    elif what < 0.2 and isinstance(tree, list):
        tree.append(copy.deepcopy(tree[key]))
    else:
        tree[key] = _changed(tree[key], chance)
    return tree


# --- what they are given ----------------------------------------------------------------------------------------------


def _config() -> ExperimentConfig:
    from qattrain.config.sources import build_config
    from qattrain.training.run import resolve

    settings = ["data.dataset=digits", "train.epochs=1", "train.threads=1", "data.limit_train=24", "data.limit_test=8"]
    settings += [f"model.name='{CHAIN}'", "quant.bits=4", "name=r"]
    return resolve(build_config(None, settings, {}), Path())[0]


def _checkpoint() -> Any:
    from qattrain.layers.network import build_model
    from qattrain.runs.checkpoint import Checkpoint

    config = _config()
    torch.manual_seed(0)
    model = build_model(config.model, config.quant, 10, (1, 28, 28)).train()
    model(torch.randint(0, 256, (8, 1, 28, 28)).to(torch.uint8))  # finds the scales of activations
    record = {"epoch": 1, "train_loss": 1.5, "test_loss": 1.25, "test_accuracy": 0.5, "learning_rate": 0.1}
    record |= {"epoch_seconds": 1.0, "images_per_second": 24.0}
    names = tuple("0123456789")
    return Checkpoint(config, names, dict(model.state_dict()), [record], None, {"epoch": 1}, (1, 28, 28))


def _checkpoint_file(folder: Path) -> bytes:
    from qattrain.runs.checkpoint import save_checkpoint

    save_checkpoint(folder / "seed.pt", _checkpoint())
    return (folder / "seed.pt").read_bytes()


class _Seeds:
    """Made once."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def checkpoint(self) -> bytes:
        if "checkpoint" not in self.found:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                self.found["checkpoint"] = _checkpoint_file(Path(folder))
        return self.found["checkpoint"]  # type: ignore[no-any-return]

    def fields(self) -> dict[str, Any]:
        if "fields" not in self.found:
            body = self.checkpoint()[:-40]
            self.found["fields"] = torch.load(io.BytesIO(body), weights_only=True)
        return self.found["fields"]  # type: ignore[no-any-return]

    def packed(self) -> bytes:
        if "packed" not in self.found:
            from qattrain.integer import ModelFacts
            from qattrain.integer.lowering import lower
            from qattrain.integer.packed import write_packed

            model = torch.nn.Module.eval(restored(self.checkpoint()))
            facts = ModelFacts(CHAIN, "digits", tuple("0123456789"), 0.5)
            self.found["packed"] = write_packed(lower(model, (1, 28, 28)), facts)
        return self.found["packed"]  # type: ignore[no-any-return]


SEEDS = _Seeds()


def restored(data: bytes) -> Any:
    import tempfile

    from qattrain.runs.checkpoint import load_checkpoint, restore_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        path.write_bytes(data)
        return restore_model(load_checkpoint(path), "seed")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint_sealed(body: bytes) -> bytes:
    """A file with a valid digest."""
    from qattrain.runs.checkpoint import MAGIC

    return body + MAGIC + hashlib.sha256(body + MAGIC).digest()


def read_checkpoint(data: bytes, folder: Path) -> object:
    """Everything that is asked of a checkpoint before it is evaluated, and the integers."""
    from qattrain.evaluation.networks import Trained, load_network
    from qattrain.training.session import RunResult

    path = folder / "last.pt"
    path.write_bytes(data)
    network = load_network(path)
    assert isinstance(network, Trained), network
    assert network.facts, network.notice
    RunResult(folder, network.checkpoint).summary()
    assert network.checkpoint.warnings is not None, network.checkpoint.finished
    return network.integers() if network.quantized else None


def checkpoint_pickle(data: bytes, folder: Path) -> object:
    """The bytes are the pickle in torch's zip file."""
    source, made = zipfile.ZipFile(io.BytesIO(SEEDS.checkpoint()[:-40])), io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return read_checkpoint(checkpoint_sealed(made.getvalue()), folder)


def _pickle() -> list[bytes]:
    source = zipfile.ZipFile(io.BytesIO(SEEDS.checkpoint()[:-40]))
    return [source.read(next(name for name in source.namelist() if name.endswith("data.pkl")))]


def _plain(value: Any) -> Any:
    """Tensors as {"tensor": [dtype, shape, first numbers]}."""
    if isinstance(value, torch.Tensor):
        numbers = value.reshape(-1)[:3].tolist()
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), numbers]}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _as_tensors(value: Any, original: Any = None) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            with contextlib.suppress(Exception):
                dtype, shape, numbers = value["tensor"]
                if _plain(original) == value:
                    return original
                count = int(np.prod(shape, dtype=float))
                assert 0 <= count <= 10**6, count  # no larger file is made
                flat = torch.tensor((numbers * (count // max(1, len(numbers)) + 1))[:count])
                return flat.to(getattr(torch, dtype)).reshape(shape)
        known = original if isinstance(original, dict) else {}
        return {key: _as_tensors(one, known.get(key)) for key, one in value.items()}
    return [_as_tensors(one) for one in value] if isinstance(value, list) else value


def checkpoint_fields(data: bytes, folder: Path) -> object:
    """The bytes are JSON of the fields, which torch writes and a valid digest seals."""
    try:
        fields = _as_tensors(json.loads(data), SEEDS.fields())
        buffer = io.BytesIO()
        torch.save(fields, buffer)
    except Exception:  # no file comes of it
        return None
    return read_checkpoint(checkpoint_sealed(buffer.getvalue()), folder)


# --- packed files -----------------------------------------------------------------------------------------------------


def read_packed(data: bytes, _folder: Path) -> object:
    from qattrain.integer.packed import load_packed

    model, facts = load_packed(data)
    assert facts, model
    return model.run(np.zeros((1, *model.input_shape), np.uint8)) if sum(model.input_shape) < 200 else None


def packed_sealed(data: bytes, folder: Path) -> object:
    """The digest is made valid, if there is a place for it."""
    from qattrain.integer.packed import NO_DIGEST, _digest

    place = data.find(b'"digest\\":\\"')
    if place >= 0 and len(data) > place + 75:
        place += len(b'"digest\\":\\"')
        data = data[:place] + NO_DIGEST.encode() + data[place + 64 :]
        data = data[:place] + _digest(data, NO_DIGEST).encode() + data[place + 64 :]
    return read_packed(data, folder)


def packed_metadata(data: bytes, folder: Path) -> object:
    """The bytes are the metadata's JSON; the tensors stay."""
    import safetensors.numpy

    from qattrain.integer.packed import KEY, NO_DIGEST, _digest

    try:
        content = json.loads(data)
        content = {"digest": NO_DIGEST} | content | {"digest": NO_DIGEST}
    except Exception:
        return None
    made = safetensors.numpy.save(safetensors.numpy.load(SEEDS.packed()), {KEY: json.dumps(content)})
    return read_packed(made.replace(NO_DIGEST.encode(), _digest(made, NO_DIGEST).encode(), 1), folder)


def _metadata() -> list[bytes]:
    data = SEEDS.packed()
    length = int.from_bytes(data[:8], "little")
    return [json.loads(data[8 : 8 + length])["__metadata__"]["qattrain"].encode()]


# --- settings ---------------------------------------------------------------------------------------------------------


def read_config(suffix: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        from qattrain.config.sources import build_config

        path = folder / f"config{suffix}"
        path.write_bytes(data)
        config = build_config(path, [], {})
        return config.model.chain

    return read


def read_grid(data: bytes, folder: Path) -> object:
    from qattrain.experiments import grid

    path = folder / "sweep.toml"
    path.write_bytes(data)
    found = grid.read_grid(path, [], {})
    return found.asked(), grid.expand(found)


def read_set(data: bytes, _folder: Path) -> object:
    from qattrain.config.sources import build_config, parse_layer_bits, parse_values

    text = data.decode(errors="surrogateescape")  # as the system hands arguments over
    for parse in (lambda: parse_values(text, "lr"), lambda: parse_layer_bits(text)):
        with contextlib.suppress(QattrainError):
            parse()
    return build_config(None, [text], {})


def read_chain(data: bytes, _folder: Path) -> object:
    from qattrain.config.chain import canonical_name, is_chain, parse_chain

    text = data.decode(errors="surrogateescape")
    chain = parse_chain(text)
    assert is_chain(text) or "," not in text, text
    canonical_name(text)
    return chain.place((1, 28, 28), 10)


def read_reference(data: bytes, folder: Path) -> object:
    from qattrain.experiments.folder import read_reference

    path = folder / ("others.csv" if data[:1] != b"[" else "others.toml")
    path.write_bytes(data)
    return read_reference(path)


# --- images -----------------------------------------------------------------------------------------------------------


def read_image(data: bytes, _folder: Path) -> object:
    from qattrain.data.pictures import read_image, read_picture

    with contextlib.suppress(QattrainError):
        read_picture(data, "image", (8, 8), color=True)
    return read_image(data, "image")


def _images() -> list[bytes]:
    from PIL import Image, ImageDraw

    picture = Image.new("L", (40, 40), 255)
    ImageDraw.Draw(picture).line((10, 5, 30, 35), 0, 4)
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WebP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def read_idx(data: bytes, folder: Path) -> object:
    from qattrain.data import mnist

    path = folder / "idx"
    path.write_bytes(data)
    with contextlib.suppress(QattrainError):
        mnist.check_idx(path, kind="labels")
        mnist.read_idx(path, kind="labels")
    mnist.check_idx(path, kind="images")
    return mnist.read_idx(path, kind="images")


def _idx() -> list[bytes]:
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28)) + bytes(3 * 784)
    return [images, b"\0\0\x08\x01\0\0\0\x03\x01\x02\x03"]


def read_npz(data: bytes, folder: Path) -> object:
    from qattrain.data.npz import load_npz

    path = folder / "images.npz"
    path.write_bytes(data)
    dataset = load_npz(path, "npz:images")
    return dataset.train.labels.sum() + dataset.test.labels.sum()


def npz_arrays(data: bytes, folder: Path) -> object:
    """The bytes are the first array, in a zip file without faults."""
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays())  # type: ignore[arg-type]
    source, made = zipfile.ZipFile(buffer), io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name == ("x_train.npy", "y_train.npy")[len(data) % 2] else source.read(name))
    return read_npz(made.getvalue(), folder)


def _arrays() -> dict[str, Any]:
    labels = np.arange(4, dtype=np.uint8) % 2
    return {
        "x_train": np.zeros((4, 8, 8), np.uint8),
        "y_train": labels,
        "x_test": np.ones((4, 8, 8), np.uint8),
        "y_test": labels,
    }


def _npy(name: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _arrays()[name])
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_arrays())  # type: ignore[arg-type]
    return buffer.getvalue()


def read_answers(data: bytes, folder: Path) -> object:
    """A teacher's answers of an epoch, raw and with a valid digest."""
    from qattrain.files.kept import sealed
    from qattrain.training.distillation import Teacher

    teacher = Teacher.__new__(Teacher)  # what reads them needs nothing else of it
    teacher.folder, teacher.classes = folder, 10
    for content in (data, sealed(data)):
        (folder / "epoch-1.npy").write_bytes(content)
        found = teacher._read(0, 24)
    return found


def _answers() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((24, 10), np.float32))
    return buffer.getvalue()


def _json_config() -> list[bytes]:
    return [json.dumps({"config": _config().model_dump(mode="json"), "environment": {}}).encode()]


TOML = b"name = 'x'\n[model]\nname = 'conv 8 3x3 bn, pool 2, fc'\n[quant]\nbits = 4\nlayer_bits = {conv1 = 8}\n"
GRID = b"name = 'x'\n[sweep]\n'quant.bits' = [1, 2]\nseed = [0, 1]\n'ptq.bits' = [4]\n"
SETS = [b"train.lr=0.1", b"quant.layer_bits={conv1=8}", b"model.name='conv 8 3x3, fc'", b"data.limit_train=[1,A,'b c']"]
CHAINS = [
    b"conv 8 3x3 stride 2 pad 1 groups 1 bn, dw 3x3 bn, conv 16 1x1 bn, avgpool, fc",
    b"lenet",
    b"pool 2, fc 5 bn, fc",
]
REFERENCE = [b"name,weight_bytes,accuracy\nx,100,0.5\n", b"[[point]]\nname = 'x'\nweight_bytes = 100\naccuracy = 0.5\n"]


def all_of(*readers: Callable[[bytes, Path], object]) -> Callable[[bytes, Path], object]:
    """Gives the same bytes to each of them, whatever the others say."""

    def read(data: bytes, folder: Path) -> object:
        for one in readers:
            with contextlib.suppress(QattrainError):
                one(data, folder)
        return None

    return read


TARGETS: dict[str, Target] = {
    "arguments": Target(all_of(read_chain, read_set), lambda: [*CHAINS, *SETS]),
    "settings": Target(
        all_of(read_config(".toml"), read_config(".json"), read_grid, read_reference),
        lambda: [TOML, *_json_config(), GRID, *REFERENCE],
        json=True,
    ),
    "image": Target(read_image, _images),
    "arrays": Target(
        all_of(read_idx, read_npz, npz_arrays, read_answers),
        lambda: [*_idx(), _npz(), *map(_npy, _arrays()), _answers()],
    ),
    "checkpoint": Target(
        all_of(read_checkpoint, lambda data, folder: read_checkpoint(checkpoint_sealed(data), folder)),
        lambda: [SEEDS.checkpoint(), SEEDS.checkpoint()[:-40]],
    ),
    "checkpoint_pickle": Target(checkpoint_pickle, _pickle),
    "checkpoint_fields": Target(checkpoint_fields, lambda: [json.dumps(_plain(SEEDS.fields())).encode()], json=True),
    "packed": Target(all_of(read_packed, packed_sealed), lambda: [SEEDS.packed()]),
    "packed_metadata": Target(packed_metadata, _metadata, json=True),
}
