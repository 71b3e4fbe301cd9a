"""Being stopped by a signal: Ctrl-C, SIGTERM (`kill`, SLURM, systemd), SIGHUP (the terminal is gone).

All three mean the same: save what is running and end, with 128 plus the signal's number as exit code. SIGTERM and
SIGHUP stay ignored if they were when the program started, as `nohup` does with SIGHUP.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
received: list[int] = []  # the numbers of the signals so far: where writing fails after SIGHUP, that is why


class Stopped(BaseException):
    """Raised by a signal, whose number it has. It is no KeyboardInterrupt, which Typer takes for itself."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


def exit_code(number: int) -> int:
    """128 plus the number, as shells have it."""
    return 128 + number


def stopped_words(number: int | None) -> str:
    """`stopped by SIGTERM`; for Ctrl-C, of which nobody has to be told, `stopped`."""
    return "stopped" if number in (None, signal.SIGINT) else f"stopped by {signal.Signals(number).name}"


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[dict[int, Any]]:
    """Within it `handler` gets the signals; yields the handlers before. In other threads than the main one: nothing."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            known = signal.getsignal(number)
            is_nohup = known == signal.SIG_IGN and number != signal.SIGINT  # scripts start jobs without SIGINT
            if known is not None and not is_nohup:
                before[number] = signal.signal(number, handler)
    try:
        yield before
    finally:
        restore(before)


def restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


class FirstSignal:
    """Within it the first signal only sets `stop`, to be looked at between two steps. A Ctrl-C after it acts as before.

    Others after it change nothing: a terminal that closes may send SIGHUP twice. number: of the first, None before.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.number: int | None = None
        self._handled = handled(self._handle)
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            received.append(number)
            self.stop.set()
            restore({one: handler for one, handler in self._before.items() if one == signal.SIGINT})

    def __enter__(self) -> "FirstSignal":
        self._before = self._handled.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handled.__exit__(*error)
