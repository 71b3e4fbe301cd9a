"""The page exporter: networks as one HTML file in which one draws, and watches their integers.

The file holds packed files (`qattrain/integer/packed.py`), the script that runs them (ENGINE), and what people see
(SCRIPTS and the rest of `page/`). It needs no network: the browser runs these two scripts and no other, because the
page names their digests. Before it is written, the same script is run on all test images and on noise, in Node.js or in
a browser, and compared with the integers: every logit and every hidden code. It is the one exporter whose file may be
written without that, where there is neither; the file then says so. Opened, the page computes 32 images again and
compares them with what Python computed.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import qattrain
from qattrain.errors import ExportError, system_errors
from qattrain.export.base import MARKED_BYTES, Exporter, Files, Proven, Runner, noise_images
from qattrain.export.javascript import Machine, find_machine
from qattrain.files import replace_files
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.packed import load_packed, write_packed

FILE = "model.html"
FOLDER = Path(__file__).parent / "page"
ENGINE = ("packed.js", "engine.js", "cells.js", "prepare.js")
SCRIPTS = ("grids.js", "drawing.js", "answers.js", "stages.js", "inspector.js", "weights.js", "page.js")
PROOF_IMAGES = 32
EXAMPLES, HARD_EXAMPLES = 10, 8
NOT_EXECUTED = (
    "The page was not executed: there is neither Node.js nor Chromium here, so its script was not compared with the "
    "integers before it was written. The page says so, and checks itself when it is opened. To have it compared, "
    "install one of them (such as: apt-get install nodejs) and write it again."
)


class Entry(NamedTuple):
    """A network of a page. label: of its row. method: how its codes were made; None: unknown. packed: its file."""

    label: str
    method: Literal["qat", "ptq"] | None
    model: IntegerModel
    packed: bytes


class Pictures(NamedTuple):
    """What a page shows and is compared on. images: uint8 (N, 1, H, W). labels: (N,), or None. kind: in plain words."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    kind: str


class Traced(NamedTuple):
    """What a network makes of N images. logits: int32 (N, classes). hidden: per layer, uint8 (N, numbers)."""

    logits: NDArray[np.int32]
    hidden: list[NDArray[np.uint8]]


def engine_script() -> str:
    """What computes in the page: the text that is compared with the integers, and that the page holds."""
    return "\n".join(FOLDER.joinpath(name).read_text(encoding="utf-8") for name in ENGINE)


def check_channels(model: IntegerModel) -> None:
    """Raises ExportError if nobody can draw what the network takes."""
    channels, height, width = model.input_shape
    if channels != 1:
        raise ExportError(
            f"a page takes drawings in grey: networks of 1 channel; this one takes {channels}x{height}x{width} "
            "(channels x height x width); train it without --color, or use another --to"
        )


def build_page(
    entries: Sequence[Entry],
    pictures: Pictures | None,
    title: str,
    is_handwriting: bool,
    machine: Machine | None,
) -> tuple[bytes, int]:
    """The page, and on how many images every network was compared with its integers.

    pictures: None: nothing is shown or compared. machine: None: nothing is compared. Raises ExportError if a logit or a
    hidden code differs.
    """
    shape = entries[0].model.input_shape
    noise, images = noise_images(shape), pictures.images if pictures else np.zeros((0, *shape), np.uint8)
    everything, verified = np.concatenate([images, noise]), 0
    if pictures is None:
        everything = noise[:PROOF_IMAGES]
    traced = [trace(entry.model, everything) for entry in entries]
    if machine is not None and pictures is not None:
        for entry, expected in zip(entries, traced, strict=True):
            compare(machine, entry, everything, expected)
        verified = len(everything)
    count = len(images)
    proof = np.linspace(0, (count or PROOF_IMAGES) - 1, PROOF_IMAGES).astype(np.int64)
    answers = np.stack([one.logits[:count].argmax(1) for one in traced])
    labels = None if pictures is None else pictures.labels
    examples, first = choose_examples(answers, labels)
    data = {
        "generator": f"qattrain {qattrain.__version__}",
        "title": title,
        "handwriting": is_handwriting,
        "networks": [_network(entry, one, proof) for entry, one in zip(entries, traced, strict=True)],
        "examples": [
            {
                "image": _base64(images[index].tobytes()),
                "label": None if labels is None else int(labels[index]),
                "hard": is_hard,
            }
            for index, is_hard in examples
        ],
        "first": first,
        "proof": {
            "images": [_base64(everything[index].tobytes()) for index in proof],
            "from": pictures.kind if pictures and count else "noise",
        },
        "executed": {"by": machine.name, "images": verified} if machine and verified else None,
    }
    return page(data, title), verified


def _network(entry: Entry, traced: Traced, proof: NDArray[np.int64]) -> dict[str, Any]:
    bits = describe_bits(entry.model)
    crcs = [[zlib.crc32(codes[index].tobytes()) for codes in traced.hidden] for index in proof]
    return {
        "label": entry.label,
        "method": entry.method,
        "bits": bits["bits"],
        "actBits": bits["act_bits"],
        "packed": _base64(entry.packed),
        "expected": {"logits": traced.logits[proof].tolist(), "hidden": crcs},
    }


def trace(model: IntegerModel, images: NDArray[np.uint8]) -> Traced:
    """images: uint8 (N, C, H, W), N > 0."""
    parts = [model.trace(images[start : start + model.batch]) for start in range(0, len(images), model.batch)]
    *hidden, logits = (np.concatenate(layer) for layer in zip(*parts, strict=True))
    return Traced(logits.astype(np.int32), [codes.astype(np.uint8).reshape(len(images), -1) for codes in hidden])


def compare(machine: Machine, entry: Entry, images: NDArray[np.uint8], expected: Traced) -> None:
    """Raises ExportError if the page's script computes anything else for any of `images`."""
    logits, hidden = machine.trace(engine_script(), entry.packed, entry.model, images)
    codes = np.concatenate([np.zeros((len(images), 0), np.uint8), *expected.hidden], axis=1)
    wrong_logits, wrong_codes = logits != expected.logits, hidden != codes
    if wrong_logits.any() or wrong_codes.any():
        wrong = wrong_logits.any(1) | wrong_codes.any(1)
        raise ExportError(
            f"{FILE}: {entry.label}: {wrong.sum()} of {len(images)} images differ in {machine.name}, in "
            f"{wrong_logits.sum()} logits and {wrong_codes.sum()} hidden codes; the first: image {wrong.argmax()}; "
            "nothing was written; this is a bug: please report it"
        )


def choose_examples(
    answers: NDArray[np.int64], labels: NDArray[np.int64] | None
) -> tuple[list[tuple[int, bool]], int | None]:
    """Indices of the images that a page offers, each with whether it is hard; which of these examples comes first.

    answers: (networks, N), the class that each network gives. First come up to ten images that all networks read alike,
    and rightly, each of another class where there are labels; then up to eight on which they disagree or are wrong, as
    far as possible of different classes. The page opens with the first of these: one that divides the networks into two
    camps of which the last network's is right, as undivided in their order and as equal in size as there are.
    """
    count = answers.shape[1]
    if not count:
        return [], None
    truth = answers[-1] if labels is None else labels
    alike, right = (answers == answers[0]).all(0), answers[-1] == truth
    kinds = np.arange(count) if labels is None else labels
    easy: dict[int, int] = {}
    for index in (*np.flatnonzero(alike & right), *range(count)):
        if len(easy) < EXAMPLES:
            easy.setdefault(int(kinds[index]), int(index))
    camps = np.array([len(set(column)) for column in answers.T])
    changes = (answers[1:] != answers[:-1]).sum(0)
    minority = np.minimum((answers == truth).sum(0), (answers != truth).sum(0))
    is_hard = ~alike | ~right
    order = sorted(
        np.flatnonzero(is_hard).tolist(), key=lambda n: (camps[n] != 2, not right[n], changes[n], -minority[n], n)
    )
    seen: dict[int, int] = {}
    turns = []  # the first of every class, then the second, ...
    for index in order:
        turn = seen[int(truth[index])] = seen.get(int(truth[index]), 0) + 1
        turns.append((turn, index))
    hard = [index for _, index in sorted(turns, key=lambda pair: pair[0])][:HARD_EXAMPLES]
    first = len(easy) if hard else 0
    return [*((index, False) for _, index in sorted(easy.items())), *((index, True) for index in hard)], first


def page(data: dict[str, Any], title: str) -> bytes:
    """The HTML file. data: what the page's script reads, as JSON."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    engine = engine_script()
    script = "\n".join(FOLDER.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert "</script" not in (engine + script).lower()
    rendered = environment.get_template("page.html").render(
        title=title,
        generator=data["generator"],
        policy=(
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; worker-src blob:; base-uri 'none'; "
            f"form-action 'none'; script-src '{_digest(engine)}' '{_digest(script)}'"
        ),
        style=Markup(FOLDER.joinpath("page.css").read_text(encoding="utf-8")),
        engine=Markup(engine),
        script=Markup(script),
        # Nothing in it can end the element that it stands in.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    return rendered.strip().encode("utf-8", "surrogateescape") + b"\n"


def page_data(content: bytes) -> dict[str, Any]:
    """What `page` was given, read back from its file."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def _digest(script: str) -> str:
    return f"sha256-{_base64(hashlib.sha256(script.encode()).digest())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def headline(names: Sequence[str], models: Sequence[IntegerModel], facts: ModelFacts) -> str:
    """`Draw a digit: lenet-small at 1 to 8 bits`. names: of the networks. facts: of one of them."""
    bits = sorted({layer.bits for model in models for layer in model.products})
    widths = f"{bits[0]} to {bits[-1]} bits" if len(bits) > 1 else f"{bits[0]} bit{'' if bits == [1] else 's'}"
    what = names[0] if len(set(names)) == 1 else f"{len(names)} networks"
    return f"{'Draw a digit' if all(name.isdecimal() for name in facts.class_names) else 'Draw'}: {what} at {widths}"


def describe_bits(model: IntegerModel) -> dict[str, int | None]:
    """Of weights and of activations the bits that all layers have, None if they differ; an average's do not count."""
    weight_bits = {layer.bits for layer in model.products}
    act_bits = {layer.requantization.bits for layer in model.products if layer.requantization is not None}
    return {
        "bits": weight_bits.pop() if len(weight_bits) == 1 else None,
        "act_bits": act_bits.pop() if len(act_bits) == 1 else None,
    }


def check_page(path: Path, force: bool) -> None:
    """Raises ExportError if no page can be written there or, without `force`, if another program's file lies there."""
    if path.is_dir():
        raise ExportError(f"--out {path} is a folder; name a file, for example {path / 'play.html'}")
    if not path.parent.is_dir():
        raise ExportError(f"--out {path}: there is no folder {path.parent}; make it, or name another file")
    if force or not path.exists():
        return
    with system_errors(ExportError, f"--out {path}", "name another file"), path.open("rb") as file:
        start = file.read(MARKED_BYTES)
    if b'name="generator" content="qattrain ' not in start:
        raise ExportError(f"--out {path} exists and is not a page of qattrain; name another file, or give --force")


def write_html(path: Path, content: bytes) -> None:
    """Write the whole page or nothing. Raises ExportError."""
    with system_errors(ExportError, f"cannot write {path}", "name another file with --out"):
        replace_files(path.parent, {path.name: content})


def _prove(model: IntegerModel, facts: ModelFacts, pictures: Pictures | None) -> Proven:
    from qattrain.data import is_handwriting

    check_channels(model)
    title = headline([facts.name], [model], facts)
    entries = [Entry(facts.name, None, model, write_packed(model, facts))]
    like_mnist = model.input_shape == (1, 28, 28) and is_handwriting(facts.dataset)
    if pictures is None:
        return Proven({FILE: build_page(entries, None, title, like_mnist, None)[0]}, 0, None)
    with find_machine() as machine:
        content, verified = build_page(entries, pictures, title, like_mnist, machine)
    return Proven({FILE: content}, verified, None if machine else NOT_EXECUTED)


def write_page(model: IntegerModel, facts: ModelFacts, layout: str) -> Files:
    """`model.html`, not executed and without examples. layout: always "". Raises ExportError for images in colour."""
    assert not layout, layout
    return _prove(model, facts, None).files


def prove_page(
    model: IntegerModel, facts: ModelFacts, images: NDArray[np.uint8], labels: NDArray[np.int64] | None
) -> Proven:
    """`model.html` with examples from `images` and their labels, executed on them and on noise where that can be."""
    return _prove(model, facts, Pictures(images, labels, "test images"))


@contextmanager
def run_page(files: Files) -> Iterator[Runner]:
    """Runs the page's script. Raises ExportError where there is neither Node.js nor Chromium."""
    script = re.search(rb'<script id="engine">(.*?)</script>', files[FILE], re.DOTALL)
    assert script is not None
    packed = base64.b64decode(page_data(files[FILE])["networks"][0]["packed"])
    model, _ = load_packed(packed)
    text = script[1].decode()
    with find_machine() as machine:
        if machine is None:
            raise ExportError(f"{FILE} cannot be executed: there is neither Node.js nor Chromium here; install one")
        yield lambda images: machine.trace(text, packed, model, images)[0]


PAGE_EXPORTER = Exporter(write=write_page, run=run_page, prove=prove_page)
