"""The page in a real browser: phone and desktop, light and dark, offline."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser_page, find_browser

# For every visible element with text of its own: the contrast of that text to its background, by WCAG 2.1.
CONTRASTS = """
(() => {
  const rgba = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color') ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const own = rgba(getComputedStyle(element).backgroundColor);
    if (own[3] === 1) return own.slice(0, 3);
    return over(own, element.parentElement ? behind(element.parentElement) : [255, 255, 255]);
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
    if (!text || !element.checkVisibility() || ['title', 'desc'].includes(element.localName)) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = luminance(over(rgba(element.closest('svg') ? style.fill : style.color), ground));
    const paper = luminance(ground);
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    found.push([Math.round(ratio * 100) / 100, element.localName + ': ' + text.slice(0, 60)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""
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


def test_the_page_works_on_phone_and_screen_in_light_and_dark(
    tab: Page, main: Callable[..., Any], networks: Any, make_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    out, names = tmp_path / "page.html", sorted(path.name for path in networks.runs_dir.iterdir())
    done = main("report", *names, networks.packed, make_sweep(), "--runs-dir", networks.runs_dir, "--out", out)
    assert done.rc == 0, done
    tab.open(out)
    for width in (375, 1280):
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

    def press(key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    press("Tab", 9)
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().top >= 0")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Enter", 13, "\r")
    assert tab.run("document.activeElement.id") == "content"
    press("Tab", 9)
    assert tab.run("document.activeElement.className") == "scroll"
    before = tab.run("document.activeElement.scrollLeft")
    for _ in range(5):
        press("ArrowRight", 39)
    tab.run("new Promise(done => setTimeout(done, 500))")
    assert tab.run("document.activeElement.scrollLeft") > before
