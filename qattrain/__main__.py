"""`qattrain`, and `python -m qattrain`: the command line, which takes a moment to load."""

import os
import signal
from types import FrameType


def _end(number: int, _frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


def main() -> None:
    """Load the command line and run it."""
    # An interrupted import fails in any way, and nothing is under way yet. `cli.main` has handlers of its own.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from qattrain import cli

    cli.main()


if __name__ == "__main__":
    main()
