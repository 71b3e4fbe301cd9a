"""The page's JavaScript computes what Python computes: logits, hidden codes, requantization, prepared drawings."""

import base64
import io
import json
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import GRIDS, KINDS, SMALL, random_images, random_model
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from random_chains import random_case, trained

from qattrain.data.pictures import read_image, read_picture
from qattrain.errors import DataError
from qattrain.evaluation.inspection import integer_costs
from qattrain.export import javascript
from qattrain.export.browser import find_browser
from qattrain.export.javascript import Machine, find_machine, find_node
from qattrain.export.page_export import Entry, compare, engine_script, trace
from qattrain.integer import AverageLayer, IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.packed import write_packed
from qattrain.quant import QUANTIZERS

IMAGES = random_images(300)
CHAINS = range(140, 150)  # together they have every option of the grammar


@pytest.fixture(scope="module", params=["Node.js", "Chromium"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Each of the two that is here."""
    if (find_node() if request.param == "Node.js" else find_browser()) is None:
        pytest.skip(f"not installed: {request.param}")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "Chromium":
                patch.setattr(javascript, "NODE_NAMES", ())
            found = stack.enter_context(find_machine())
        assert found is not None
        assert found.name.startswith(request.param)
        yield found


def node(script: str, *given: Any) -> Any:
    """The value of an expression over `given`, a list, after the page's script."""
    found = find_node()
    if found is None:
        pytest.skip("not installed: Node.js")
    text = f"{engine_script()}\nconst given = {json.dumps(given)};\nconsole.log(JSON.stringify({script}));"
    done = subprocess.run([found[0], "-"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def entry(model: IntegerModel) -> Entry:
    names = tuple(map(str, range(model.classes)))
    return Entry("it", None, model, write_packed(model, ModelFacts("net", "digits", names, None)))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_every_logit_and_hidden_code_is_that_of_the_integers(machine: Machine, arguments: dict[str, Any]) -> None:
    model = random_model(**{"widths": SMALL, "seed": 3} | arguments)
    compare(machine, entry(model), IMAGES, trace(model, IMAGES))


def test_every_grid_is_read_as_python_reads_it(machine: Machine) -> None:
    for number, (quantizer, bits) in enumerate(GRIDS[::2] if machine.name.startswith("Node") else GRIDS):
        model = random_model(quantizer, bits, bits, SMALL, seed=number)
        compare(machine, entry(model), IMAGES[:40], trace(model, IMAGES[:40]))


def chains() -> Iterator[IntegerModel]:
    for seed in CHAINS:
        case = random_case(seed, list(QUANTIZERS)[seed % len(QUANTIZERS)])
        yield lower(trained(case, seed), case.shape)


def test_random_chains_compute_the_same(machine: Machine) -> None:
    kinds, geometries = set(), set()
    for seed, model in enumerate(chains()):
        images = noise_of(model, seed)
        compare(machine, entry(model), images, trace(model, images))
        kinds |= {layer.kind for layer in model.layers}
        geometries |= {(layer.stride, layer.padding, layer.groups > 1, layer.pool) for layer in model.products}
    assert kinds == {"conv", "linear", "average"}
    strides, paddings, groups, pools = map(set, zip(*geometries, strict=True))
    assert (len(strides), len(paddings), len(groups), pools) == (3, 5, 2, {1, 2, 3})


def noise_of(model: IntegerModel, seed: int, count: int = 30) -> NDArray[np.uint8]:
    images = np.random.default_rng(seed).integers(0, 256, (count, *model.input_shape))
    return np.where(np.arange(count).reshape(-1, 1, 1, 1) % 2, images, images // 128 * 255).astype(np.uint8)


def test_a_difference_in_one_hidden_code_is_noticed(machine: Machine) -> None:
    model = random_model(widths=SMALL)
    expected = trace(model, IMAGES[:20])
    expected.hidden[1][7, 3] ^= 1
    with pytest.raises(
        Exception, match=r"1 of 20 images differ in .*, in 0 logits and 1 hidden codes; the first: image 7"
    ):
        compare(machine, entry(model), IMAGES[:20], expected)


def test_requantization_is_exact_for_every_sum_multiplier_and_shift() -> None:
    random = np.random.default_rng(0)
    ends = [0, 1, 2, 3, 2**15, 2**16 - 1, 2**24, 2**30, 2**31 - 2, 2**31 - 1]
    cases = [
        (acc, m, k, qmax)
        for acc in (*ends, *(-a for a in ends))
        for m in ends
        for k in range(1, 63, 3)
        for qmax in (1, 255)
    ]
    for _ in range(4000):
        # Sums right at, below and above the step from one code to the next, where rounding a double may cross it.
        m, k, qmax = int(random.integers(1, 2**31)), int(random.integers(1, 63)), int(2 ** random.integers(1, 9) - 1)
        step = ((2 * int(random.integers(1, qmax + 1)) - 1) << (k - 1)) // m
        cases += [(acc, m, k, qmax) for acc in range(step - 1, step + 3) if 0 <= acc < 2**31]
        # m and acc whose product is just below a half: odd and near it.
        cases.append((int(random.integers(2**30, 2**31)), m, 62, 255))
    for k in range(54, 63):
        for n in range(1, 9):
            half = (2 * n - 1) << (k - 1)
            for m in (2**31 - 1, 2**31 - 2, 2**30 + 1, 3 * 2**29 + 1):
                cases += [(acc, m, k, 255) for acc in (half // m, half // m + 1) if acc < 2**31]
    found = node("given[0].map((one) => requantize(...one))", cases)
    expected = [min(max((acc * m + (1 << (k - 1))) >> k, 0), qmax) for acc, m, k, qmax in cases]
    assert found == expected
    close = [
        (acc, m, k)
        for acc, m, k, _ in cases
        if acc > 0 and m and 0 < ((1 << (k - 1)) - acc * m) % (1 << k) < 2 ** (k - 53)
    ]
    assert close, "no case in which the double lies on the half and the product does not"


def test_a_packed_file_is_described_as_python_describes_it() -> None:
    for model in (
        random_model(quantizers=("lsq", "binary", "ternary", "affine"), bits=(8, 1, 2, 3)),
        *list(chains())[:4],
    ):
        given = entry(model)
        script = """((network) => {
          const weighted = (codes) => codes && codes.reduce((sum, code, i) => sum + code * (i % 97 + 1), 0);
          network.layers.forEach((layer) => {
            layer.weighted = weighted(layer.codes);
            for (const name of ["bias", "multipliers", "shifts"]) layer[name] = layer[name] && [...layer[name]];
          });
          return network;
        })(readPacked(fromBase64(given[0])))"""
        found = node(script, base64_of(given.packed))
        costs = integer_costs(model)
        assert (found["macs"], found["totalBytes"]) == (
            sum(cost.macs for cost in costs.values()),
            sum(cost.total_bytes for cost in costs.values()),
        )
        assert (found["inputShape"], found["logitScale"]) == (list(model.input_shape), model.logit_scale)
        for mine, layer, shape in zip(found["layers"], model.layers, model.shapes[1:], strict=True):
            assert (mine["name"], mine["kind"], mine["outputShape"]) == (layer.name, layer.kind, list(shape))
            assert mine["accumulatorBound"] == layer.accumulator_bound
            assert mine["registerBits"] == layer.accumulator_bound.bit_length() + 1
            if layer.requantization is not None:
                assert set(mine["multipliers"]) == set(layer.requantization.multiplier.tolist())
                assert set(mine["shifts"]) == set(layer.requantization.shift.tolist())
            if not isinstance(layer, AverageLayer):
                flat = layer.codes.reshape(-1)
                assert mine["weighted"] == int((flat * (np.arange(flat.size) % 97 + 1)).sum())
                assert mine["bias"] == layer.bias.tolist()
                grid = layer.grid
                assert (mine["lowest"], mine["highest"], mine["step"]) == (grid.start, grid[-1], grid.step)


def test_a_damaged_packed_file_is_one_clear_line() -> None:
    data = entry(random_model(widths=SMALL)).packed
    length = int.from_bytes(data[:8], "little")
    wrong = [
        data[:4],
        data[:-3],
        data[:40] + b"\0" + data[41:],
        data.replace(b'\\"groups\\":1', b"").replace(b'\\"bits\\":4', b'\\"bits\\":9'),
        data[: 8 + length] + data[8 + length + 1 :],
        b"not a packed file at all, but long enough",
    ]
    script = """given[0].map((text) => {
      try {
        return readPacked(fromBase64(text)) && "";
      } catch (error) {
        return error.message;
      }
    })"""
    for message in node(script, list(map(base64_of, wrong))):
        assert message.startswith("this packed file is damaged: ")
        assert "\n" not in message


def test_a_cell_tells_the_sum_that_run_computes() -> None:
    total = 0
    for model in (random_model(quantizers="affine", widths=SMALL), *list(chains())[:6]):
        image = noise_of(model, 1, 1)
        script = """((network, image) => {
          const { hidden, logits } = run(network, image);
          let x = image, wrong = 0, checked = 0;
          network.layers.forEach((layer, index) => {
            const outputs = hidden[index] || logits, all = sums(network, index, x), [, height, width] = layer.mapShape;
            for (let output = 0; output < outputs.length; output += 3) {
              const story = cell(network, index, x, output), { winner } = story;
              const products = story.terms.reduce((sum, term) => sum + term.x * term.w, 0);
              const right = story.code === outputs[output] && story.sum === products + story.bias
                && story.sums[winner.index] === story.sum && Math.max(...story.sums) === story.sum
                && story.running.at(-1) === products
                && all[(story.channel * height + winner.row) * width + winner.column] === story.sum
                && story.terms.every((term) => term.product === term.x * term.w && (term.inside || term.x === 0))
                && BigInt(story.product || 0) === BigInt(story.sum) * BigInt(story.multiplier || 0);
              wrong += !right;
              checked++;
            }
            x = outputs;
          });
          return [wrong, checked];
        })(readPacked(fromBase64(given[0])), fromBase64(given[1]))"""
        wrong, checked = node(script, base64_of(entry(model).packed), base64_of(image.tobytes()))
        assert wrong == 0
        total += checked
    assert total > 300


def test_the_check_of_itself_notices_a_logit_and_a_hidden_code() -> None:
    model = random_model(widths=SMALL)
    found, image = trace(model, IMAGES[2:3]), base64_of(IMAGES[2].tobytes())
    right = {"logits": found.logits.tolist(), "hidden": [[zlib.crc32(codes[0].tobytes()) for codes in found.hidden]]}
    wrong_logit = right | {"logits": [[value + (place == 4) for place, value in enumerate(right["logits"][0])]]}
    wrong_code = right | {"hidden": [[*right["hidden"][0][:-1], right["hidden"][0][-1] ^ 1]]}
    script = "given[2].map((expected) => check(readPacked(fromBase64(given[0])), fromBase64(given[1]), expected, 0))"
    assert node(script, base64_of(entry(model).packed), image, [right, wrong_logit, wrong_code]) == [True, False, False]


SIDE = 280


def drawing(random: np.random.Generator, kind: str) -> NDArray[np.uint8]:
    """Strokes as a pen leaves them on a canvas, light on dark, uint8 (SIDE, SIDE)."""
    canvas = Image.new("L", (SIDE, SIDE))
    pen, width = ImageDraw.Draw(canvas), int(random.integers(4, 40))
    low, high = (-10, SIDE + 10) if kind == "beyond the edge" else (20, SIDE - 20)
    for _ in range(int(random.integers(1, 5))):
        points = [tuple(map(int, point)) for point in random.integers(low, high, (int(random.integers(2, 7)), 2))]
        pen.line(points, fill=int(random.integers(30, 256)) if kind == "faint" else 255, width=width, joint="curve")
    if kind == "specks":
        for x, y in random.integers(0, SIDE, (int(random.integers(1, 30)), 2)).tolist():
            pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=255)
    if kind in ("frame", "edge", "symmetric"):
        pen.rectangle([0, 0, SIDE, SIDE], fill=0)
        margin = 0 if kind == "edge" else int(random.integers(5, 60))
        box = [
            margin,
            margin,
            SIDE - 1 - margin,
            SIDE - 1 - margin - (int(random.integers(0, 20)) if kind == "frame" else 0),
        ]
        if kind == "symmetric":
            pen.ellipse([box[0], margin, box[2], SIDE - 1 - margin], outline=255, width=width // 2 + 3)
        else:
            pen.rectangle(box, outline=255, width=int(random.integers(3, 12)))
            pen.line([(140, 90), (140 + int(random.integers(-30, 30)), 190)], fill=255, width=14)
    if kind == "blurred":
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(random.uniform(0.5, 3))))
    return np.asarray(canvas)


def test_a_drawing_is_prepared_as_predict_prepares_its_picture(tmp_path: Path) -> None:
    kinds = ("strokes", "faint", "beyond the edge", "specks", "frame", "edge", "symmetric", "blurred")
    random, sizes = np.random.default_rng(0), [(28, 28), (20, 33), (280, 140), (300, 280), (5, 7)]
    drawings = [drawing(random, kinds[n % len(kinds)]) for n in range(320)]
    drawings.append(np.zeros((SIDE, SIDE), np.uint8))
    path = tmp_path / "drawings"
    path.write_bytes(np.stack(drawings).tobytes())
    script = """((all, sizes) => Array.from({ length: all.length / 78400 }, (_, n) => {
      const grey = all.subarray(n * 78400, (n + 1) * 78400), size = sizes[n % sizes.length];
      const { image, notes } = prepare(grey, 280, 280, [1, 28, 28], true);
      const resized = prepare(grey, 280, 280, [1, ...size], false).image;
      return [image && crc32(image), notes, resized && crc32(resized)];
    }))(new Uint8Array(require("fs").readFileSync(given[0])), given[1])"""
    noted = set()
    for number, (canvas, (image, notes, resized)) in enumerate(
        zip(drawings, node(script, str(path), sizes), strict=True)
    ):
        file = io.BytesIO()
        Image.fromarray(canvas).save(file, "PNG")
        try:
            expected = read_image(file.getvalue(), "it")
        except DataError:
            assert (image, notes, resized) == (None, ["nothing drawn"], None), number
            continue
        assert (image, notes) == (zlib.crc32(expected.image.tobytes()), list(expected.notes)), (
            number,
            kinds[number % 8],
        )
        picture = read_picture(file.getvalue(), "it", sizes[number % len(sizes)], color=False)
        assert resized == zlib.crc32(picture.tobytes()), number
        noted |= {note.split()[-1] for note in notes}
    assert {"off", "removed", "out", "them"} <= noted
