"""The page in a real browser: phone and desktop, light and dark, offline."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from page_checks import CONTRASTS

from qattrain.export.browser import Page, browser_page, find_browser
from qattrain.report.page import TEMPLATES

CHARTS = "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect(), s.getBBox()])"
CHARTS += ".map(([box, drawn]) => [box.width, box.height, box.right, drawn.width, drawn.height])"
# Elements that extend beyond the right edge, except inside a box that scrolls.
OUTSIDE = """
[...document.body.querySelectorAll('*')].filter(e => e.checkVisibility() && !e.closest('.scroll, svg')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + .5).map(e => e.outerHTML.slice(0, 200))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_browser() is None:
        pytest.skip("no Chromium here: apt-get install chromium, or any of its kin, to test the page in a browser")
    with browser_page(tmp_path_factory.mktemp("browser")) as page:
        yield page


def press(tab: Page, key: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)


def test_the_page_works_on_phone_and_screen_in_light_and_dark(
    tab: Page, main: Callable[..., Any], networks: Any, make_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    out, names = tmp_path / "page.html", sorted(path.name for path in networks.runs_dir.iterdir())
    done = main("report", *names, networks.packed, make_sweep(), "--runs-dir", networks.runs_dir, "--out", out)
    assert done.rc == 0, done
    tab.open(out)
    for width in (375, 768, 1280):
        for dark in (False, True):
            tab.show(width, dark)
            tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
            where = (width, dark)
            assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), where
            assert tab.run(OUTSIDE) == [], where
            charts = tab.run(CHARTS)
            assert len(charts) > 30
            for box_width, box_height, right, drawn_width, drawn_height in charts:
                assert min(box_height, drawn_width, drawn_height) > 100, where
                assert 250 < box_width <= right <= width, where
            contrasts = tab.run(CONTRASTS)
            assert len(contrasts) > 1000
            assert contrasts[0][0] >= 4.5, (where, contrasts[:5])
            ground = tab.run("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") != dark
    assert tab.requests() == [out.resolve().as_uri()]
    assert tab.problems() == []
    assert "script" in tab.run("document.body.innerText")


def test_the_keyboard_reaches_the_content_and_every_table_that_scrolls(
    tab: Page, main: Callable[..., Any], networks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert main("report", "float", "ptq", "--runs-dir", networks.runs_dir, "--out", out).rc == 0
    tab.show(375)
    tab.open(out)

    press(tab, "Tab", 9)
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().top >= 0")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(tab, "Enter", 13, "\r")
    assert tab.run("document.activeElement.id") == "content"
    press(tab, "Tab", 9)
    assert tab.run("document.activeElement.className") == "scroll"
    before = tab.run("document.activeElement.scrollLeft")
    for _ in range(5):
        press(tab, "ArrowRight", 39)
    tab.run("new Promise(done => setTimeout(done, 500))")
    assert tab.run("document.activeElement.scrollLeft") > before


# Tables that are wider than the page although they are open.
CUT = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth)"
CUT += ".map(e => [e.scrollWidth, e.clientWidth, e.innerText.slice(0, 80)])"
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture
def compared(tab: Page, main: Callable[..., Any], networks: Any, tmp_path: Path) -> Page:
    """The page of three networks, opened on a screen of 1280 pixels."""
    evil = next(path for path in networks.runs_dir.iterdir() if "script" in path.name)
    out = tmp_path / "page.html"
    assert main("report", "float", "ptq", evil, "--runs-dir", networks.runs_dir, "--out", out).rc == 0
    tab.show(1280)
    tab.open(out)
    return tab


def test_nothing_is_cut_at_1280_pixels(compared: Page) -> None:
    compared.run(OPEN_ALL)
    assert compared.run(CUT) == []


def test_a_phone_shows_the_accuracy_at_once_and_keeps_the_first_column(compared: Page) -> None:
    compared.show(375, height=667)
    heading = "document.querySelector('h1')"
    assert "%" in compared.run(f"{heading}.textContent")
    assert compared.run(f"{heading}.getBoundingClientRect().bottom < innerHeight")
    cells = "[...document.querySelector('#results tbody tr').cells]"
    assert "%" in compared.run(f"{cells}[1].textContent")
    # The accuracy is beside the name, and the name stays when the table is scrolled.
    assert compared.run(f"{cells}[1].getBoundingClientRect().right") <= 375
    first = f"Math.round({cells}[0].getBoundingClientRect().left)"
    before = compared.run(first)
    compared.run("document.querySelector('#results .scroll').scrollLeft = 200")
    assert compared.run("document.querySelector('#results .scroll').scrollLeft") > 50
    assert compared.run(first) == before
    compared.run("document.querySelector('#results .scroll').scrollLeft = 0")


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(compared: Page) -> None:
    table = "document.querySelector('#results table')"
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent))"
    head = f"{table}.tHead.rows[0].cells[1]"
    before = compared.run(column)
    compared.run(f"{head}.querySelector('button').click()")
    assert compared.run(column) == sorted(before)
    assert compared.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    compared.run(f"{head}.querySelector('button').focus()")
    press(compared, "Enter", 13, "\r")
    assert compared.run(column) == sorted(before, reverse=True)
    assert compared.run(f"{head}.getAttribute('aria-sort')") == "descending"
    # The row of totals stays the last one.
    total = "document.querySelector('#layers tr.total').closest('table')"
    compared.run(f"{total}.tHead.rows[0].cells[1].querySelector('button').click()")
    assert compared.run(f"[...{total}.tBodies[0].rows].at(-1).cells[0].textContent") == "total"


def test_a_chart_shows_values_under_the_pointer_and_hides_series(compared: Page) -> None:
    chart = "document.querySelector('#curves svg')"
    compared.run(f"{chart}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    place = compared.run(
        f"(() => {{ const s = {chart}, b = s.getBoundingClientRect(), k = b.width / s.viewBox.baseVal.width;"
        "const one = JSON.parse(s.dataset.chart).series[0], p = one.points[0];"
        "return [b.left + p[0] * k, b.top + p[1] * k, one.name, ...p.slice(2)]; })()"
    )
    compared.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + 2, y=place[1] + 2)
    tip = f"{chart}.parentElement.querySelector('.tip')"
    assert not compared.run(f"{tip}.hidden")
    words = compared.run(f"[...{tip}.children].map(line => line.textContent)")
    assert words[0] == place[2]
    assert [line.rpartition(": ")[2] for line in words[1:]] == place[3:]
    # The value is one of the chart's table.
    assert place[4] in compared.run("document.querySelector('#curves table').textContent")

    name = f"{chart}.querySelector('[data-toggle=\"0\"]')"
    part = f"{chart}.querySelector('[data-series=\"0\"]')"
    assert compared.run(f"getComputedStyle({part}).display !== 'none'")
    compared.run(f"{name}.focus()")
    press(compared, "Enter", 13, "\r")
    assert (compared.run(f"getComputedStyle({part}).display !== 'none'"), compared.run(f"{name}.ariaPressed")) == (
        False,
        "false",
    )
    compared.run(f"{name}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    assert (compared.run(f"getComputedStyle({part}).display !== 'none'"), compared.run(f"{name}.ariaPressed")) == (
        True,
        "true",
    )


def test_a_command_is_copied(compared: Page) -> None:
    compared.run("window.copied = []; navigator.clipboard.writeText = async text => { window.copied.push(text); }")
    compared.run("document.querySelector('.copy').click()")
    assert compared.run("window.copied")[0].startswith("qattrain train --model lenet-nano --bits 32 ")
    assert compared.run("window.copied[0] === document.querySelector('pre code').textContent.trim()")
    assert compared.run("document.querySelector('.copy').textContent") == "Copied"


def test_a_cell_of_the_confusion_matrix_lists_its_images(compared: Page) -> None:
    cells = compared.run("[...document.querySelectorAll('td[data-cell] button')].map(b => parseInt(b.textContent))")
    most = max(range(len(cells)), key=cells.__getitem__)
    compared.run(f"document.querySelectorAll('td[data-cell] button')[{most}].click()")
    picked = "document.querySelector('.picked:not([hidden])')"
    shown = compared.run(f"{picked}.querySelectorAll('img').length")
    said = compared.run(f"{picked}.querySelector('p').textContent")
    match = re.fullmatch(
        r"True (\S+), predicted (\S+): (\d+) of (\d+) images(; (\d+) more are not on this page)?\.", said
    )
    assert match is not None, said
    true, predicted, some, total, _, missing = match.groups()
    assert true != predicted
    assert shown == int(some) > 0
    assert int(total) == cells[most] == shown + int(missing or 0)
    labels = compared.run(f"[...{picked}.querySelectorAll('img')].map(i => i.alt)")
    assert all(f"true {true}, predicted {predicted}" in label for label in labels)
    assert compared.problems() == []


def test_the_page_is_whole_without_its_script(compared: Page) -> None:
    text = "document.body.innerText.replace(/[↕↑↓✓\\s]+|Copy/g, '')"
    compared.run(OPEN_ALL)
    with_script = compared.run(text)
    compared.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        compared.open(Path(unquote(compared.run("location.pathname"))))
        assert compared.run("document.querySelectorAll('button').length") == 0
        compared.run(OPEN_ALL)
        assert compared.run(text) == with_script
        assert compared.run("document.querySelectorAll('.errors li img').length") > 0
    finally:
        compared.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("dark", [False, True])
def test_a_print_has_no_cut_table_and_no_split_figure(compared: Page, dark: bool) -> None:
    compared.run(OPEN_ALL)
    # A4 without margins, in CSS pixels.
    compared.call("Emulation.setDeviceMetricsOverride", width=688, height=1017, deviceScaleFactor=1, mobile=False)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    compared.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    try:
        assert compared.run("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth + 1)")
        assert compared.run("document.documentElement.scrollWidth <= 688")
        assert compared.run(OUTSIDE) == []
        whole = "[...document.querySelectorAll('figure, tr, pre')]"
        assert compared.run(f"{whole}.every(e => getComputedStyle(e).breakInside === 'avoid')")
        tallest = compared.run(
            "Math.max(...[...document.querySelectorAll('svg, tr')].map(e => e.getBoundingClientRect().height))"
        )
        assert tallest < 1017
        assert compared.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert compared.run("getComputedStyle(document.body).color") == "rgb(28, 33, 38)"
        assert not compared.run("document.querySelector('.copy').checkVisibility()")
    finally:
        compared.call("Emulation.setEmulatedMedia", media="", features=[])


def test_every_colour_of_text_has_contrast_enough_on_every_ground() -> None:
    """Computed from the style sheet: also without a browser."""
    style = TEMPLATES.joinpath("page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in (light, dark)]
    assert [len(scheme) for scheme in schemes] == [len(schemes[0])] * 2

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in schemes:
        pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "raised")]
        pairs += [(name, "paper") for name in scheme if name.startswith("series")]  # also labels beside lines
        for text, ground in [*pairs, ("ink", "notice")]:
            low, high = sorted((luminance(scheme[text]), luminance(scheme[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
