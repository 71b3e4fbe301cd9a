"""The page in a real browser: drawing on it, its answers, its inspector, its address; all widths, light and dark."""

import base64
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from integer_models import SMALL, random_images, random_model
from numpy.typing import NDArray
from page_checks import CONTRASTS
from random_chains import Case, trained

from qattrain.config import ModelConfig, QuantConfig
from qattrain.data.pictures import read_image, read_picture
from qattrain.export.browser import Page, browser_page, find_browser
from qattrain.export.page_export import Entry, Pictures, build_page, page, page_data
from qattrain.integer import IntegerLayer, IntegerModel, ModelFacts
from qattrain.integer.lowering import lower
from qattrain.integer.packed import write_packed

DIGITS = tuple(map(str, range(10)))
CHAIN = "conv 4 3x3 stride 2 pad 1, dw 3x3 pad 1 bn, conv 6 3x3 groups 2, pool 2, avgpool, fc 12, fc"
WIDTHS = (1, 2, 3, 4)
LONGEST_WAIT_SECONDS = 30
MINUS, NO_ANSWER = "\u2212", "\u2013"
# What the page shows of itself.
ANSWERS = """[...document.querySelectorAll('.row')].filter(row => row.checkVisibility())
  .map(row => row.querySelector('.digit').textContent)"""
VERDICT = "document.getElementById('verdict').textContent"
CHECK = "document.getElementById('check').textContent"
PRESSED = "[...document.querySelectorAll('.row')].findIndex(r => r.getAttribute('aria-pressed') === 'true')"
SETTLED = """(async () => {
  await new Promise((done) => setTimeout(done, 30));
  const isBusy = () => document.getElementById('rows').getAttribute('aria-busy') !== 'false';
  while (isBusy()) await new Promise(requestAnimationFrame);
  for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
})()"""
# The bytes as they are drawn below the slate: squares of SIDE x SIDE pixels, one pixel from the edge.
PICTURE = """(() => {
  const canvas = document.querySelector('#fed canvas'), wide = canvas.width, copy = new OffscreenCanvas(wide, wide);
  copy.getContext('2d').drawImage(canvas, 0, 0);
  const all = copy.getContext('2d').getImageData(0, 0, wide, wide).data, count = (wide - 2) / SIDE;
  const at = (row, column) => all[4 * ((1 + SIDE * row + (SIDE >> 1)) * wide + 1 + SIDE * column + (SIDE >> 1))];
  return Array.from({length: count * count}, (_, i) => at(Math.floor(i / count), i % count));
})()"""
OWN_BITS = """[...document.querySelectorAll('.weights .byte')].reverse()
  .flatMap(byte => [...byte.children].filter(bit => bit.className).map(bit => bit.textContent))"""
# Elements beyond the right edge, except in boxes that scroll.
OUTSIDE = """[...document.body.querySelectorAll('*')]
  .filter(e => e.checkVisibility() && !e.closest('.map, .blocks, .unseen, .skip'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + .5)
  .map(e => e.outerHTML.slice(0, 200))"""
SMALL_TARGETS = """[...document.querySelectorAll('button, summary, input')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().height < 44 || e.getBoundingClientRect().width < 44)
  .map(e => e.outerHTML.slice(0, 200))"""
UNNAMED = """[...document.querySelectorAll('button, input, canvas[tabindex], section, [role=group], [role=img]')]
  .filter(e => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby'))
  .filter(e => !e.labels?.length && !e.textContent.trim()).map(e => e.outerHTML.slice(0, 200))"""


class Shown:
    """A page and what Python knows about it."""

    def __init__(self, path: Path, models: Sequence[IntegerModel]) -> None:
        self.path, self.models = path, models
        self.data = page_data(path.read_bytes())

    @property
    def uri(self) -> str:
        return self.path.resolve().as_uri()

    def example(self, index: int) -> NDArray[np.uint8]:
        return np.frombuffer(base64.b64decode(self.data["examples"][index]["image"]), np.uint8).reshape(1, 1, 28, 28)

    def answers(self, image: NDArray[np.uint8]) -> list[str]:
        return [str(model.run(image).argmax()) for model in self.models]


def entry(
    model: IntegerModel, label: str, method: Literal["qat", "ptq"] = "qat", names: tuple[str, ...] = DIGITS
) -> Entry:
    return Entry(label, method, model, write_packed(model, ModelFacts(label, "digits", names, 0.9876)))


def chain_model() -> IntegerModel:
    quant = QuantConfig(quantizer="affine", bits=3, act_bits=4)
    return lower(trained(Case(ModelConfig(name=CHAIN), quant, (1, 28, 28), 10)), (1, 28, 28))


def write(path: Path, entries: Sequence[Entry], title: str = "Draw a digit") -> Shown:
    models, images = [one.model for one in entries], random_images(40, seed=3)
    labels = models[-1].run(images).argmax(1)
    path.write_bytes(build_page(entries, Pictures(images, labels, "test images"), title, True, None)[0])
    return Shown(path, models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Page]:
    if find_browser() is None:
        pytest.skip("no Chromium here: apt-get install chromium, or any of its kin, to test the page in a browser")
    with browser_page(folder / "browser") as found:
        yield found


@pytest.fixture(scope="module")
def widths(folder: Path) -> Shown:
    """Four networks, of 1 to 4 bits."""
    models = [random_model(bits=bits, act_bits=bits, widths=SMALL, seed=bits) for bits in WIDTHS]
    return write(folder / "widths.html", [entry(model, f"w{bits}") for model, bits in zip(models, WIDTHS, strict=True)])


@pytest.fixture(scope="module")
def chain(folder: Path) -> Shown:
    return write(folder / "chain.html", [entry(chain_model(), "every kind of layer")])


def visit(tab: Page, shown: Shown, address: str = "", width: int = 1280, dark: bool = False) -> None:
    """Open the page anew and wait for its first answer."""
    tab.show(width, dark)
    tab.call("Page.navigate", url="about:blank")
    tab.events.clear()
    tab.call("Page.navigate", url=f"{shown.uri}{address}")
    until(tab, f"document.readyState === 'complete' && {VERDICT} !== ''")
    tab.run(SETTLED)


def until(tab: Page, condition: str) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while not tab.run(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def place(tab: Page, selector: str) -> tuple[float, float, float]:
    """Left and top of an element on the screen, and its width, after scrolling to it."""
    found = f"document.querySelector({json.dumps(selector)})"
    tab.run(f"{found}.scrollIntoView({{block: 'center'}})")
    left, top, width = tab.run(f"(b => [b.left, b.top, b.width])({found}.getBoundingClientRect())")
    return left, top, width


def draw(tab: Page, points: Sequence[tuple[float, float]], touch: bool = False) -> None:
    """One stroke by real events. points: in pixels of the slate's 280 x 280."""
    left, top, width = place(tab, "#pad")
    placed = [{"x": left + x * width / 280, "y": top + y * width / 280} for x, y in points]
    if touch:
        for kind, point in zip(("touchStart", *["touchMove"] * len(points)), placed, strict=False):
            tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=[point])
        tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        return
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    tab.call("Input.dispatchMouseEvent", type="mousePressed", **placed[0], **mouse)
    for point in placed[1:]:
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", **point, **mouse)
    tab.call("Input.dispatchMouseEvent", type="mouseReleased", **placed[-1], **mouse)


def press(tab: Page, *keys: str) -> None:
    for key in keys:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        tab.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def seven(scale: float = 1.0) -> list[tuple[float, float]]:
    corners = [(70.0, 60.0), (200.0, 55.0), (130.0, 230.0)]
    steps = [i / 8 for i in range(9)]
    legs = itertools.pairwise(corners)
    return [(scale * (x + t * (u - x)), scale * (y + t * (v - y))) for (x, y), (u, v) in legs for t in steps]


def fed(tab: Page, pixels: int = 28) -> NDArray[np.uint8]:
    """The bytes that the page feeds, (1, pixels, pixels)."""
    tab.run(SETTLED)
    numbers = tab.run(PICTURE.replace("SIDE", str(140 // pixels)))
    return np.array(numbers, np.uint8).reshape(1, pixels, pixels)


def slate(tab: Page) -> bytes:
    """What is drawn, as PNG."""
    return base64.b64decode(tab.run("document.getElementById('pad').toDataURL()").partition(",")[2])


def assert_answered(tab: Page, shown: Shown) -> NDArray[np.uint8]:
    """The bytes that are fed, (1, 28, 28): what `predict` makes of the slate, and the answers are the integers'."""
    picture = fed(tab)
    np.testing.assert_array_equal(picture, read_image(slate(tab), "the slate").image)
    assert tab.run(ANSWERS) == shown.answers(picture[None])
    return picture


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1280])
def test_opens_everywhere(tab: Page, widths: Shown, width: int, dark: bool) -> None:
    """With everything open: no console error, no request, nothing cut off, readable, large enough to touch, named."""
    visit(tab, widths, "#bits=3&example=0&cell=conv2.1.1.2", width, dark)
    tab.run("document.querySelectorAll('.line button').forEach(b => b.click())")
    until(tab, f"{CHECK}.includes('equal')")
    assert tab.run(CHECK) == "✓ Checked itself just now: 32 of 32 equal"
    tab.run("scrollTo(0, 0)")
    assert tab.run(SETTLED + ".then(() => document.documentElement.scrollWidth)") <= width
    assert tab.run(OUTSIDE) == []
    assert tab.run(SMALL_TARGETS) == []
    assert tab.run(UNNAMED) == []
    contrasts = tab.run(CONTRASTS)
    assert len(contrasts) > 60
    assert contrasts[0][0] >= 4.5, contrasts[:5]
    assert tab.problems() == []
    assert [url.partition("#")[0] for url in tab.requests() if url != "about:blank"] == [widths.uri]


def test_first_view_is_an_example_on_which_the_widths_disagree(tab: Page, widths: Shown) -> None:
    visit(tab, widths)
    answers = widths.answers(widths.example(widths.data["first"]))
    assert tab.run(ANSWERS) == answers
    assert len(set(answers)) > 1
    differing = tab.run(
        "[...document.querySelectorAll('.row')].map(r => [r.classList.contains('differs'), r.innerText])"
    )
    usual = max(
        answers, key=lambda answer: (answers.count(answer), max(i for i, a in enumerate(answers) if a == answer))
    )
    for answer, (is_marked, text) in zip(answers, differing, strict=True):
        assert is_marked == ("differs" in text) == (answer != usual)
    verdict = tab.run(VERDICT)
    for answer in set(answers):  # the words, taken apart again
        (bits,) = re.findall(rf"(?:^|; )([^;]*?)(?: bits?)? says? {answer}\b", verdict)
        found = {int(n) for part in re.split(", | and ", bits) for n in span(part)}
        assert found == {width for width, one in zip(WIDTHS, answers, strict=True) if one == answer}, verdict
    until(tab, f"document.getElementById('live').textContent.startsWith({json.dumps(verdict)})")


def span(part: str) -> range:
    """`3 to 8`, or `3`."""
    first, _, last = part.partition(" to ")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([3, 3, 8, 8, 8, 8, 8, 8], "1 and 2 bits say 3; 3 to 8 say 8."),
        ([3, 8, 8, 8, 8, 8, 8, 3], "1 and 8 bits say 3; 2 to 7 say 8."),
        ([3, 8, 8, 4, 8, 8, 8, 8], "1 bit says 3; 2, 3 and 5 to 8 say 8; 4 says 4."),
        ([3, 3, 3, 8, 8, 8, 4, 4], "1 to 3 bits say 3; 4 to 6 say 8; 7 and 8 say 4."),
        ([8] * 8, "All 8 widths say 8."),
    ],
)
def test_words_for_who_agrees_with_whom(tab: Page, widths: Shown, answers: list[int], words: str) -> None:
    if tab.run("typeof agreement") != "function":
        visit(tab, widths)
    entries = [{"bits": i + 1, "label": f"n{i}", "answer": answer} for i, answer in enumerate(answers)]
    assert tab.run(f"agreement({json.dumps(entries)}, {json.dumps(DIGITS)}, true)") == words


def test_a_drawing_is_answered_as_predict_would(tab: Page, widths: Shown) -> None:
    visit(tab, widths)
    tab.run("document.getElementById('clear').click()")
    tab.run(SETTLED)
    assert tab.run(ANSWERS) == [NO_ANSWER] * 4
    draw(tab, seven())
    first = assert_answered(tab, widths)
    draw(tab, [(90, 150), (190, 145)])
    crossed = assert_answered(tab, widths)
    assert (first != crossed).any()

    tab.run("document.getElementById('undo').click()")
    np.testing.assert_array_equal(assert_answered(tab, widths), first)
    tab.run("document.getElementById('undo').click(); document.getElementById('undo').click()")  # the clearing, too
    np.testing.assert_array_equal(fed(tab), widths.example(widths.data["first"])[0])
    assert tab.run("document.querySelectorAll('.draw [aria-pressed=true]').length") == 1
    tab.run("document.getElementById('undo').click()")
    tab.run(SETTLED)
    assert tab.run(ANSWERS) == [NO_ANSWER] * 4


def test_fingers_draw_too_and_the_brush_has_sizes(tab: Page, widths: Shown) -> None:
    visit(tab, widths, width=375)
    tab.run("document.getElementById('clear').click()")
    draw(tab, seven(), touch=True)
    thin = assert_answered(tab, widths)
    tab.run("document.getElementById('clear').click()")
    tab.run("brush = document.getElementById('brush'); brush.value = 40; brush.dispatchEvent(new Event('input'))")
    draw(tab, seven(), touch=True)
    assert assert_answered(tab, widths).sum() > 1.2 * thin.sum()
    assert tab.problems() == []


def test_keyboard_alone_draws(tab: Page, widths: Shown) -> None:
    visit(tab, widths)
    tab.run("document.getElementById('clear').click(); document.getElementById('pad').focus()")
    press(tab, *["ArrowUp"] * 8, " ", *["ArrowDown"] * 16, " ", *["ArrowRight"] * 4)
    picture = assert_answered(tab, widths)
    rows, columns = picture[0].any(1).sum(), picture[0].any(0).sum()
    assert rows >= 19  # one upright stroke: nothing was drawn with the pen lifted
    assert columns <= 6
    press(tab, "Backspace")
    tab.run(SETTLED)
    assert tab.run(ANSWERS) == [NO_ANSWER] * 4


def test_choosing_a_network_shows_its_inside(tab: Page, widths: Shown) -> None:
    visit(tab, widths, "#bits=4&example=1")
    for index, model in enumerate(widths.models):
        image = widths.example(index % 2)  # chosen at the same moment: the answer on its way is of another network
        example = f"document.querySelectorAll('.draw li button')[{index % 2}].click()"
        tab.run(f"{example}; document.querySelectorAll('.row')[{index}].click()")
        tab.run(SETTLED)
        assert tab.run(PRESSED) == index
        assert tab.run("document.getElementById('inside-heading').textContent").startswith(
            f"Inside: {WIDTHS[index]} bit"
        )
        lines = tab.run("[...document.querySelectorAll('.stage .line')].map(e => e.innerText)")
        for line, layer in zip(lines, model.layers, strict=True):
            bound = f"{layer.accumulator_bound:,}"
            assert layer.name in line
            assert f"at most ±{bound})" in line
        top = f"{model.run(image).max():,}".replace("-", MINUS)
        assert top in lines[-1]  # the range of the logits


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "").replace(MINUS, "-")) for number in re.findall(rf"{MINUS}?\d[\d,]*", text)]


def chosen_code(tab: Page) -> tuple[str, list[int]]:
    """What the inspector says: its title, and the numbers of its formula, from the sum to the code."""
    title = tab.run("document.querySelector('#inspector h4').textContent")
    formula = tab.run("document.querySelector('#inspector .formula').innerHTML.replace('<sup>', '^')")
    return title, numbers(formula)


def test_inspector_adds_up_for_every_kind_of_layer(tab: Page, chain: Shown) -> None:
    (model,) = chain.models
    assert {"conv1", "dw1", "conv2", "avg1", "fc1", "fc2"} == {layer.name for layer in model.layers}
    visit(tab, chain, "#example=1")
    image = chain.example(1)
    inputs, traced = image.astype(np.int64), model.trace(image)
    for layer, codes in zip(model.layers, traced, strict=True):
        sums = layer.accumulate(inputs.reshape(1, -1) if layer.kind == "linear" else inputs)
        shaped, added = codes[0].reshape(codes.shape[1], -1), sums[0].reshape(codes.shape[1], -1)
        shape = (*codes.shape[1:], 1, 1)[:3]
        for channel, inside in {(0, 0), (len(shaped) - 1, shaped.shape[1] // 2), (int(added.max(1).argmax()), 0)}:
            row, column = divmod(inside, shape[2])
            tab.run(f"location.hash = 'example=1&cell={layer.name}.{channel}.{row}.{column}'")
            until(tab, f"document.querySelector('#inspector h4')?.textContent.startsWith('{layer.name}, ')")
            tab.run(SETTLED)
            title, formula = chosen_code(tab)
            total, code, bias = int(added[channel, inside]), int(shaped[channel, inside]), 0
            expected, steps = [total, code], [total]
            if isinstance(layer, IntegerLayer):
                bias = int(layer.bias[channel])
                steps = [total - bias, total]
            if (how := layer.requantization) is None:
                steps.append(total)
            else:
                # an average has one multiplier for all channels
                m, k = (int(np.resize(column, len(shaped))[channel]) for column in (how.multiplier, how.shift))
                shifted = (total * m + 2 ** (k - 1)) >> k
                expected = [total, total, m, 2, k - 1, k, shifted, code]
                steps += [total * m, shifted, code]
            assert formula == expected, title
            told = tab.run(
                "[...document.querySelectorAll('#inspector .steps strong')].map(e => e.textContent).join(' ')"
            )
            assert numbers(told) == steps, title
            window = numbers(
                tab.run("[...document.querySelectorAll('.window span')].map(e => e.textContent).join(' ')")
            )
            assert len(window) == (layer.pool**2 if isinstance(layer, IntegerLayer) and layer.pool > 1 else 0)
            assert not window or max(window) == total
            assert title.endswith(f" {code}".replace("-", MINUS)), title
            text = tab.run("document.querySelector('#inspector .terms').textContent")
            left, _, right = text.replace(MINUS, "-").replace(",", "").rpartition(" = ")
            terms = [[int(factor.strip("()")) for factor in term.split("·")] for term in left.split(" + ")]
            assert sum(map(math.prod, terms)) == int(right) == total - bias
        inputs = codes
    assert tab.problems() == []


def test_a_click_and_the_keyboard_reach_a_cell(tab: Page, widths: Shown) -> None:
    visit(tab, widths, "#bits=4&example=1")
    maps = widths.models[3].trace(widths.example(1))[1][0]  # of conv2: (3, 4, 4)
    left, top, width = place(tab, ".stage:nth-child(2) canvas")
    side = (width - 2 - 2 * 8) / 12  # three maps of four columns, 8 pixels apart
    where = {"x": left + 1 + (4 * side + 8) + 2.5 * side, "y": top + 1 + 1.5 * side, "button": "left", "clickCount": 1}
    tab.call("Input.dispatchMouseEvent", type="mousePressed", **where)
    tab.call("Input.dispatchMouseEvent", type="mouseReleased", **where)
    tab.run(SETTLED)
    assert chosen_code(tab)[0] == f"conv2, map 1, row 1, column 2: code {maps[1, 1, 2]}"
    press(tab, "ArrowRight", "ArrowDown", "PageDown", "Enter")
    tab.run(SETTLED)
    assert chosen_code(tab)[0] == f"conv2, map 2, row 2, column 3: code {maps[2, 2, 3]}"
    tab.run("document.querySelector('#inspector [title=Up]').click()")
    tab.run(SETTLED)
    assert chosen_code(tab)[0] == f"conv2, map 2, row 1, column 3: code {maps[2, 1, 3]}"
    tab.run("document.querySelector('#inspector [title=Close]').click()")
    assert tab.run("document.querySelector('#inspector')") is None


def test_address_keeps_what_is_shown(tab: Page, widths: Shown) -> None:
    visit(tab, widths, "#bits=2&example=1&cell=fc1.3.0.0")
    assert tab.run(PRESSED) == 1
    assert tab.run(ANSWERS) == widths.answers(widths.example(1))
    assert chosen_code(tab)[0].startswith("fc1, number 3: code ")
    tab.call("Page.resetNavigationHistory")  # else it may be full
    history = tab.run("history.length")
    tab.run("document.querySelectorAll('.row')[2].click(); document.querySelectorAll('.draw li button')[0].click()")
    until(tab, "location.hash === '#bits=3&example=0&cell=fc1.3.0.0'")
    assert tab.run("history.length") == history
    tab.run("location.hash = 'bits=1&example=2'")  # as a link or the user would
    until(tab, f"{PRESSED} === 0")
    tab.run(SETTLED)
    assert tab.run(ANSWERS) == widths.answers(widths.example(2))
    assert tab.run("document.querySelector('#inspector')") is None
    tab.run("location.hash = 'bits=9&example=999&cell=conv1.99.0.0&nonsense=%'")
    tab.run(SETTLED)
    assert tab.run(PRESSED) == 0
    assert tab.problems() == []


def test_weights_are_shown_bit_by_bit(tab: Page, widths: Shown) -> None:
    visit(tab, widths, "#bits=3&example=0")
    layer = widths.models[2].products[1]
    tab.run("document.querySelectorAll('.line button')[1].click()")
    tab.run("document.querySelector('.weights [aria-label=\"Next output\"]').click()")
    tab.run("document.querySelector('.weights canvas').focus()")
    press(tab, "ArrowRight", "ArrowDown", "Enter")
    index = layer.codes[0].size + 5 + 1  # the second output's second row, second column
    code, number = layer.codes.flat[index], layer.numbers.flat[index]
    words = tab.run("document.querySelector('.weights .bits').previousElementSibling.textContent").replace(MINUS, "-")
    assert words.startswith(
        f"Weight {index} has code {code}. It is number {number} of the grid from -4 to 3: bits {number:03b}."
    )
    own = tab.run(OWN_BITS)
    assert "".join(own) == f"{number:03b}"
    counts = tab.run("document.querySelectorAll('.weights canvas')[1].getAttribute('aria-label')")
    assert counts.endswith(", ".join(f"{code}: {(layer.codes == code).sum()}" for code in range(-4, 4)))
    tab.run("document.querySelectorAll('.line button')[1].click()")
    assert tab.run("document.querySelector('.weights')") is None


def test_step_and_play_go_through_the_stages(tab: Page, chain: Shown) -> None:
    visit(tab, chain)
    waiting = "document.querySelectorAll('.stage.waiting').length"
    count = len(chain.models[0].layers)
    for done in range(count + 1):
        tab.run("document.getElementById('step').click()")
        tab.run(SETTLED)
        assert tab.run(waiting) == count - done
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    tab.run("document.getElementById('play').click()")
    until(tab, f"{waiting} === {count}")
    until(tab, f"{waiting} === {count - 2}")
    tab.run("document.getElementById('all').click()")
    tab.run(SETTLED)
    assert tab.run(waiting) == 0
    tab.call("Emulation.setEmulatedMedia", features=[])
    assert tab.problems() == []


def test_an_altered_page_says_so(tab: Page, widths: Shown, folder: Path) -> None:
    data = page_data(widths.path.read_bytes())
    data["networks"][1]["expected"]["logits"][3][0] += 1
    data["networks"][2]["expected"]["hidden"][5][1] ^= 1
    path = folder / "altered.html"
    path.write_bytes(page(data, "altered"))
    visit(tab, Shown(path, widths.models))
    until(tab, f"{CHECK}.includes('equal')")
    assert tab.run(CHECK) == "✗ Do not trust this page. Its check of itself failed: 30 of 32 equal"
    assert tab.run("document.getElementById('check').classList.contains('unequal')")
    data["networks"][0]["packed"] = base64.b64encode(base64.b64decode(data["networks"][0]["packed"])[:-9]).decode()
    path.write_bytes(page(data, "damaged"))
    tab.open(path)
    assert tab.run(CHECK).startswith("This page does not work: this packed file is damaged: ")


def test_says_whether_it_was_executed(tab: Page, widths: Shown, folder: Path) -> None:
    executed = "document.getElementById('executed').textContent"
    visit(tab, widths)
    assert "without its script having been executed" in tab.run(executed)
    data = widths.data | {"executed": {"by": "Node.js 20.1", "images": 10256}}
    path = folder / "executed.html"
    path.write_bytes(page(data, "executed"))
    visit(tab, Shown(path, widths.models))
    assert "executed by Node.js 20.1 on 10,256 images" in tab.run(executed)


def test_switch_between_methods_and_names_from_users(tab: Page, folder: Path) -> None:
    """Trained and quantized afterwards, side by side; and names of classes are text, whatever is in them."""
    names = ("<img src=x onerror=alert(1)>", "</script><b>two</b>", *map(str, range(2, 10)))
    models = [random_model(bits=bits, act_bits=bits, widths=SMALL, seed=seed) for seed, bits in enumerate((2, 4, 2, 4))]
    methods: list[Literal["qat", "ptq"]] = ["qat", "qat", "ptq", "ptq"]
    entries = [entry(m, f"n{i}", method, names) for i, (m, method) in enumerate(zip(models, methods, strict=True))]
    shown = write(folder / "methods.html", entries, "<i>Draw</i>")
    visit(tab, shown)
    answers = [names[int(answer)] for answer in shown.answers(shown.example(shown.data["first"]))]
    assert tab.run(ANSWERS) == answers[:2]
    tab.run("document.querySelectorAll('#methods button')[1].click()")
    tab.run(SETTLED)
    assert tab.run(ANSWERS) == answers[2:]
    assert tab.run(PRESSED) == 3  # of the same bits as the one before
    until(tab, "location.hash.startsWith('#bits=4&method=ptq')")
    assert tab.run(
        "[document.querySelectorAll('img, b > b, i > i, h1 i').length, document.querySelector('h1').textContent]"
    ) == [0, "<i>Draw</i>"]
    assert tab.problems() == []


def test_works_where_there_are_no_workers(tab: Page, widths: Shown) -> None:
    script = tab.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.Worker")["identifier"]
    try:
        visit(tab, widths, "#example=2")
    finally:
        tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    assert tab.run("typeof Worker") == "undefined"
    assert tab.run(ANSWERS) == widths.answers(widths.example(2))
    until(tab, f"{CHECK}.includes('32 of 32 equal')")
    assert tab.problems() == []


def test_other_images_are_drawn_in_their_own_size(tab: Page, folder: Path) -> None:
    """8x8 pixels, a single layer, no examples: it starts empty; a drawing is scaled, neither centred nor cropped."""
    case = Case(ModelConfig(name="fc"), QuantConfig(bits=4), (1, 8, 8), 3)
    model = lower(trained(case), (1, 8, 8))
    path = folder / "eight.html"
    names = ("a", "b", "long name")
    entries = [Entry("tiny", None, model, write_packed(model, ModelFacts("tiny", "npz", names, None)))]
    path.write_bytes(build_page(entries, None, "Draw", False, None)[0])
    visit(tab, Shown(path, [model]), width=375)
    assert tab.run(ANSWERS) == [NO_ANSWER]
    assert not tab.run("document.getElementById('examples-heading').checkVisibility()")
    draw(tab, seven(0.4))
    picture = fed(tab, 8)
    np.testing.assert_array_equal(picture, read_picture(slate(tab), "the slate", (8, 8), color=False))
    assert picture.any()
    assert tab.run(ANSWERS) == [names[model.run(picture[None]).argmax()]]
    assert tab.run("document.getElementById('fed-title').textContent") == "What the networks see: 8\u00d78 bytes."
    assert tab.run("document.querySelectorAll('.stage').length") == 1
    assert tab.problems() == []
