"""How long the page takes from a stroke to its answers, in a headless Chromium: by hand, on an idle machine.

    python tests/export/measure_page.py [CKPT or packed file ...]

Strokes are drawn with real pointer events, 20 ms apart; a movement is answered when every row of the page shows the
answer to it. Maps and other pictures are drawn in between, as for people. Without arguments: the page of the shipped
networks, then a lenet of random weights at 4 bits.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integer_models import LENET, random_images, random_model

from qattrain.export.browser import Page, browser_page
from qattrain.export.page_export import Entry, Pictures, build_page
from qattrain.export.page_shipped import TITLE, shipped_entries, shipped_pictures
from qattrain.integer import ModelFacts
from qattrain.integer.packed import load_packed, write_packed

STROKES, WARM_UP = 40, 8
MOVES, SECONDS_PER_MOVE = 10, 0.02  # of a stroke, as a hand draws
# Notes when a pointer's event arrives, and the next time the rows have been changed and are no longer busy.
WATCH = """
globalThis.times = [];
globalThis.sent = 0;
document.getElementById("pad").addEventListener("pointermove", () => { sent = performance.now(); }, true);
new MutationObserver(() => {
  if (sent && document.getElementById("rows").getAttribute("aria-busy") === "false") {
    times.push(performance.now() - sent);
    sent = 0;
  }
}).observe(document.getElementById("rows"), { subtree: true, childList: true, characterData: true, attributes: true });
"""


def measured(tab: Page, path: Path, content: bytes) -> list[float]:
    """Milliseconds of each stroke."""
    path.write_bytes(content)
    tab.show(1280)
    tab.open(path)
    deadline = time.monotonic() + 60
    while "equal" not in tab.run("document.getElementById('check').textContent") and time.monotonic() < deadline:
        time.sleep(0.2)
    tab.run(WATCH)
    tab.run("document.getElementById('clear').click()")
    box = tab.run(
        "(({left, top, width}) => [left, top, width])(document.getElementById('pad').getBoundingClientRect())"
    )
    left, top, width = box

    def mouse(kind: str, x: float, y: float) -> None:
        place = {"x": left + x * width, "y": top + y * width}
        tab.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)

    for number in range(STROKES + WARM_UP):
        x, length = 0.3 + 0.4 * (number % 8) / 7, 0.1 + 0.5 * (number % 5) / 4
        mouse("mousePressed", x, 0.2)
        for step in range(1, MOVES + 1):
            time.sleep(SECONDS_PER_MOVE)
            mouse("mouseMoved", x + 0.05 * step / MOVES, 0.2 + length * step / MOVES)
        mouse("mouseReleased", x + 0.05, 0.2 + length)
        time.sleep(0.3)
        if number == WARM_UP - 1:
            tab.run("times.length = 0")
        if number % 10 == 9:
            tab.run("document.getElementById('clear').click()")
            time.sleep(0.3)
            tab.run("sent = 0")
    times: list[float] = tab.run("times")
    return times


def main() -> None:
    pages = []
    if len(sys.argv) > 1:
        entries, models = [], []
        for name in sys.argv[1:]:
            packed = Path(name).read_bytes()
            model, _ = load_packed(packed)
            models.append(model)
            entries.append(Entry(name, None, model, packed))
        pages.append((f"{len(entries)} networks", build_page(entries, shipped_pictures(), TITLE, True, None)[0]))
    else:
        shipped = shipped_entries()
        content, _ = build_page(shipped, shipped_pictures(), TITLE, True, None)
        pages.append((f"{len(shipped)} widths of lenet-small", content))
        lenet = random_model(widths=LENET)
        facts = ModelFacts("lenet", "mnist", tuple("0123456789"), None)
        entry = Entry("lenet", None, lenet, write_packed(lenet, facts))
        pictures = Pictures(random_images(40), None, "noise")
        pages.append(("lenet", build_page([entry], pictures, TITLE, True, None)[0]))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser_page(Path(folder, "profile")) as tab,
    ):
        for label, content in pages:
            times = measured(tab, Path(folder, "page.html"), content)
            low, high = (sorted(times)[len(times) // 10 * tenth] for tenth in (1, 9))
            sys.stdout.write(
                f"{label}: median {statistics.median(times):.1f} ms from the pointer's event to the answers shown "
                f"(80 % within {low:.1f} to {high:.1f}; {len(times)} strokes); {len(content):,} bytes\n"
            )


if __name__ == "__main__":
    main()
