"""All test images of MNIST, and 1,000 of noise, in the page itself, in a headless Chromium: by hand, for it takes long.

    python tests/export/prove_page.py DATA_DIR [--quick]

A small network is trained for some steps with every quantizer at every number of bits that it allows of 1, 2, 3, 4, 5
and 8; and ten random chains of one input channel are built. Each becomes a page, which is opened; what its own script
computes of every image, logits and hidden codes, is compared with the integers in Python.
"""

import base64
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_chains import Case, random_case, trained

from qattrain.config import ModelConfig, QuantConfig
from qattrain.data import load_dataset
from qattrain.export.browser import Page, browser_page
from qattrain.export.javascript import DRIVER, Machine
from qattrain.export.page_export import Entry, Pictures, build_page, trace
from qattrain.integer import IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.packed import write_packed
from qattrain.layers.network import build_model
from qattrain.quant import QUANTIZERS

BITS = (1, 2, 3, 4, 5, 8)
STEPS, BATCH = 60, 64
NOISE, CHAINS = 1000, 10


def networks(images: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[str, IntegerModel]]:
    """Every quantizer at every width, trained for some steps on these images, and random chains."""
    for name in QUANTIZERS:
        allowed = {*QUANTIZERS[QUANTIZERS[name].weights or name].weight_bits, *([] if name == "ternary" else [1])}
        for bits in sorted(allowed & set(BITS)):
            torch.manual_seed(bits)
            quant = QuantConfig(quantizer=name, bits=bits, act_bits=bits)
            net = build_model(ModelConfig(name="lenet-nano"), quant, 10, (1, 28, 28))
            optimizer = torch.optim.Adam(net.parameters(), 3e-3)
            for step in range(STEPS):
                part = slice(step * BATCH, (step + 1) * BATCH)
                loss = torch.nn.functional.cross_entropy(net(images[part]).float(), labels[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield f"{name} at {bits} bits", lower(net.eval(), (1, 28, 28))
    found, seed = 0, 0
    while found < CHAINS:
        case: Case = random_case(seed, list(QUANTIZERS)[seed % len(QUANTIZERS)])
        if case.shape[0] == 1 and case.model.name.count(",") >= 2:
            found += 1
            yield f"chain {seed}: {case.model.name}", lower(trained(case, seed), case.shape)
        seed += 1


def in_page(tab: Page, path: Path, content: bytes) -> Machine:
    """Runs the script of a page that is opened, with the network that it holds."""
    path.write_bytes(content)
    tab.open(path)
    tab.run(f"{DRIVER}; globalThis.proven = readPacked(fromBase64(JSON.parse(data.textContent).networks[0].packed)); 0")

    def run(_script: str, _packed: bytes, images: bytes) -> bytes:
        text = base64.b64encode(images).decode()
        return base64.b64decode(tab.run(f"toBase64(runAll(proven, fromBase64('{text}')))"))

    return Machine("the page", run)


def noise(shape: tuple[int, int, int], count: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(7)
    images = random.integers(0, 256, (count, *shape))
    return np.where(np.arange(count).reshape(-1, 1, 1, 1) % 2, images, images // 128 * 255).astype(np.uint8)


def main() -> int:
    data_dir, quick = Path(sys.argv[1]), "--quick" in sys.argv
    dataset, began, wrong, seen, numbers = load_dataset("mnist", data_dir), time.perf_counter(), 0, 0, 0
    train, test = dataset.train, dataset.test.images.numpy()[: 100 if quick else None]
    with tempfile.TemporaryDirectory() as folder, browser_page(Path(folder, "profile")) as tab:
        for label, model in networks(train.images[: STEPS * BATCH], train.labels[: STEPS * BATCH]):
            fits = model.input_shape == (1, 28, 28)
            images = noise(model.input_shape, 100 if quick else NOISE + (0 if fits else 10_000))
            images = np.concatenate([test, images]) if fits else images
            names = tuple(map(str, range(model.classes)))
            packed = write_packed(model, ModelFacts("net", "mnist", names, None))
            entry = Entry(label, "qat", model, packed)
            content, _ = build_page([entry], Pictures(images[:40], None, "test images"), label, fits, None)
            machine, expected = in_page(tab, Path(folder, "page.html"), content), trace(model, images)
            logits, hidden = machine.trace("", packed, model, images)
            codes = np.concatenate([np.zeros((len(images), 0), np.uint8), *expected.hidden], axis=1)
            differ = int((logits != expected.logits).sum()), int((hidden != codes).sum())
            wrong, seen = wrong + sum(differ), seen + len(images)
            numbers += logits.size + hidden.size
            sys.stdout.write(
                f"{label}: {len(images):,} images, {differ[0]} of {logits.size:,} logits and {differ[1]} of "
                f"{hidden.size:,} hidden codes differ\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{seen:,} images, {numbers:,} numbers, {wrong} differ; {time.perf_counter() - began:.0f} s\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
