"""A real browser: headless Chromium, controlled by its DevTools protocol over a pair of pipes. For the tests, and to
prove the page where there is no Node.js.

A message is JSON ended by a zero byte; Chromium reads them from file descriptor 3 and writes to 4. No port is opened.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qattrain.errors import ExportError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LONGEST_WAIT_SECONDS = 300  # for one answer; machines can be very busy
ARGUMENTS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-sandbox",  # it cannot be used as root or in most containers; only pages made here are opened
)
# Makes the child's ends of the pipes its descriptors 3 and 4, whatever their numbers are here.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 13); os.dup2(int(sys.argv[2]), 14); os.dup2(13, 3); os.dup2(14, 4)"
)
LAUNCHER += "; os.execv(sys.argv[3], sys.argv[3:])"


class BrowserError(ExportError):
    """The browser does not start, ended, is silent, or a script in it failed."""


def find_browser() -> str | None:
    """Path of an installed Chromium, or None; None where a process cannot be given pipes by number."""
    return next(filter(None, map(shutil.which, NAMES)), None) if os.name == "posix" else None


class Page:
    """One tab. events: everything the browser has reported so far, in order."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._buffer = to_browser, from_browser, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | self._session
        self._write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"the browser refuses {method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._to, data) :]
        except BrokenPipeError:
            raise BrowserError("the browser ended") from None

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        chunks = [self._buffer]
        while b"\0" not in chunks[-1]:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserError(f"the browser is silent for {LONGEST_WAIT_SECONDS} s")
            chunks.append(os.read(self._from, 1 << 20))
            if not chunks[-1]:
                raise BrowserError("the browser ended")
        line, _, self._buffer = b"".join(chunks).partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, path: Path) -> None:
        """Load the file and wait until it is loaded."""
        seen = len(self.events)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[seen:]):
            self.events.append(self._next())

    def show(self, width: int, dark: bool = False, height: int = 800) -> None:
        """Emulate a screen of that size, in CSS pixels, in light or dark mode."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, javascript: str) -> Any:
        """The value of an expression, evaluated in the page."""
        done = self.call("Runtime.evaluate", expression=javascript, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise BrowserError(f"a script in the browser failed: {done}")
        return done["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def problems(self) -> list[dict[str, Any]]:
        """Everything written to the console or logged, and every exception."""
        bad = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self.events if event["method"] in bad]

    def requests(self) -> list[str]:
        """The addresses of all requests, except for what lies within the page."""
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A tab in a new browser whose files are in `profile`."""
    found = find_browser()
    if found is None:
        raise BrowserError("no Chromium here")
    to_child, to_browser = os.pipe()
    from_browser, from_child = os.pipe()
    launcher = [sys.executable, "-c", LAUNCHER, str(to_child), str(from_child)]
    command = [*launcher, found, *ARGUMENTS, f"--user-data-dir={profile}"]
    home = {"HOME": str(profile), "XDG_CONFIG_HOME": str(profile), "XDG_CACHE_HOME": str(profile)}
    process = subprocess.Popen(
        command,
        pass_fds=(to_child, from_child),
        env=os.environ | home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)  # then the browser quits
        os.close(from_browser)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
