"""Running JavaScript from Python, in Node.js or else in a headless Chromium: whichever is there.

A machine takes a script, a packed file and images, and gives what the script's own `run` makes of them: every logit and
every hidden code.
"""

import base64
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ExportError, reason
from qattrain.export.browser import BrowserError, Page, browser_page, find_browser
from qattrain.integer import IntegerModel

NODE_NAMES = ("node", "nodejs")
# Prints Node.js's version if it knows the newest syntax that the page's script uses.
PROBE = "(0n ?? 0n, process.versions.node)"
CHUNK_BYTES = 8_000_000  # of results that are passed over at a time
LONGEST_RUN_SECONDS = 600
# Of every image its logits, int32, and its hidden codes, uint8, layer after layer.
DRIVER = """
function runAll(network, images) {
  const size = network.inputShape.reduce((a, b) => a * b);
  const codes = network.layers.slice(0, -1).reduce((sum, layer) => sum + layer.outputShape.reduce((a, b) => a * b), 0);
  const logits = 4 * network.classNames.length, all = new Uint8Array((images.length / size) * (logits + codes));
  for (let n = 0, at = 0; n * size < images.length; n++) {
    const found = run(network, images.subarray(n * size, (n + 1) * size));
    all.set(new Uint8Array(found.logits.buffer), at);
    at += logits;
    for (const layer of found.hidden) {
      all.set(layer, at);
      at += layer.length;
    }
  }
  return all;
}
function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
}
"""
NODE_DRIVER = """
{
  const [packed, images, results] = process.argv.slice(2), fs = require("fs");
  const read = (path) => new Uint8Array(fs.readFileSync(path));
  fs.writeFileSync(results, runAll(readPacked(read(packed)), read(images)));
}
"""


@dataclass(frozen=True)
class Machine:
    """What runs JavaScript. name: with its version, "Node.js 20.1". run: script, packed file, images -> results."""

    name: str
    run: Callable[[str, bytes, bytes], bytes]

    def trace(
        self, script: str, packed: bytes, model: IntegerModel, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Logits (N, classes), and the codes of all hidden layers side by side (N, some), of a script's `run`.

        model: what the packed file holds, for its shapes. Raises ExportError if the script fails.
        """
        logits = 4 * model.classes
        width = logits + sum(int(np.prod(shape)) for shape in model.shapes[1:-1])
        step = max(1, CHUNK_BYTES // max(width, images[:1].size))
        chunks = [np.zeros((0, width), np.uint8)]
        for start in range(0, len(images), step):
            part = np.ascontiguousarray(images[start : start + step])
            found = np.frombuffer(self.run(script, packed, part.tobytes()), np.uint8)
            if found.size != len(part) * width:
                raise ExportError(f"{self.name} gave {found.size} bytes instead of {len(part) * width}")
            chunks.append(found.reshape(len(part), width))
        results = np.concatenate(chunks)
        return np.ascontiguousarray(results[:, :logits]).view("<i4").astype(np.int32), results[:, logits:]


@contextmanager
def find_machine() -> Iterator[Machine | None]:
    """Node.js if it is there, or else a Chromium that starts; None if there is neither."""
    node = find_node()
    if node is not None:
        path, version = node
        yield Machine(f"Node.js {version}", lambda script, packed, images: _run_node(path, script, packed, images))
        return
    if find_browser() is None:
        yield None
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            opened = browser_page(Path(folder))
            page = opened.__enter__()
        except BrowserError:
            yield None
            return
        try:
            yield browser_machine(page)
        finally:
            opened.__exit__(None, None, None)


def find_node() -> tuple[str, str] | None:
    """Path and version of a Node.js that is new enough, or None."""
    for path in filter(None, map(shutil.which, NODE_NAMES)):
        try:
            done = subprocess.run([path, "-p", PROBE], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return path, done.stdout.strip()
    return None


def _run_node(path: str, script: str, packed: bytes, images: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        files = {"script.js": (script + DRIVER + NODE_DRIVER).encode(), "packed": packed, "images": images}
        paths = [Path(name, file) for file in (*files, "results")]
        for file, content in zip(paths, files.values(), strict=False):
            file.write_bytes(content)
        try:
            command = [path, *map(str, paths)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_RUN_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExportError(f"Node.js could not run the page's script: {reason(error)}") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "Error" in line), done.stderr[-200:])
            raise ExportError(f"Node.js could not run the page's script: {said}; this is a bug: please report it")
        return paths[-1].read_bytes()


def browser_machine(page: Page) -> Machine:
    """A machine in that tab."""
    product = page.call("Browser.getVersion")["product"]  # "HeadlessChrome/140.0.7339.80"
    loaded: list[tuple[str, bytes]] = []

    def run(script: str, packed: bytes, images: bytes) -> bytes:
        if (script, packed) not in loaded:
            text = base64.b64encode(packed).decode()
            exported = f"return {{toBase64, runAll, fromBase64, network: readPacked(fromBase64('{text}'))}}"
            page.run(f"globalThis.proof = (() => {{{script}{DRIVER}{exported}}})(); 0")
            loaded[:] = [(script, packed)]
        text = base64.b64encode(images).decode()
        found = page.run(f"proof.toBase64(proof.runAll(proof.network, proof.fromBase64('{text}')))")
        return base64.b64decode(found)

    return Machine(f"Chromium {product.split('/')[-1].split('.')[0]}", run)
