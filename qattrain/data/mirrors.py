"""Is anybody there? Asked with a deadline, because torchvision's downloads have none.

A name server that never answers blocks a thread beyond any socket timeout. So each mirror is asked in a daemon thread
of its own, and only the waiting is bounded. urllib asks, so the proxies of the environment are honoured.
"""

import http.client
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PROBE_SECONDS = 5.0
STALL_SECONDS = 30.0


def first_answer(urls: Sequence[str], seconds: float) -> str | None:
    """The URL that was first to answer a GET with success, or None if none did within `seconds` in total.

    Bodies are not read. Refused, unresolved, an error status and silence all count as no answer; never raises for them.
    """
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(target=_ask, args=(url, seconds, answers), daemon=True).start()
    deadline = time.monotonic() + seconds
    for _ in urls:
        try:
            answered = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if answered is not None:
            return answered
    return None


@contextmanager
def stall_timeout() -> Iterator[None]:
    """Inside, a connection that is silent for 30 s raises TimeoutError also where nobody asked for a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _ask(url: str, seconds: float, answers: "queue.SimpleQueue[str | None]") -> None:
    answer = None
    try:
        # A GET under torchvision's own name: servers that refuse HEAD or Python-urllib would serve the download.
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
        with urllib.request.urlopen(request, timeout=seconds):
            answer = url
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: an address or proxy setting that is no URL
        pass
    finally:
        answers.put(answer)
