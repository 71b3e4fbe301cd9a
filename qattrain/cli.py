"""The command line: the Typer app, and `main`, the only place that turns an error into one line and an exit code.

Nothing here imports torch. Exit codes: 0 done; 2 wrong usage, be it of an option or of a setting; 1 any other
QattrainError; 128 plus the number of the signal that ended it: 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
"""

import errno
import gc
import itertools
import os
import shutil
import signal
import sys
import textwrap
from types import FrameType
from typing import Annotated, TextIO

import typer

import qattrain
from qattrain.commands import COMMANDS
from qattrain.errors import ConfigError, QattrainError
from qattrain.files import stopping

app = typer.Typer(name="qattrain", rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
for command_name, command in COMMANDS.items():
    app.command(command_name, no_args_is_help=False)(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qattrain {qattrain.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a small network with quantization-aware training at 1 to 8 bits, by default a LeNet on MNIST, and export
    exactly the integers it was trained with.

    \b
    Examples:
      qattrain train --bits 4 --epochs 10       train a 4-bit network (a minute)
      qattrain eval lenet-w4a4-lsq-mnist-s0     evaluate it
      qattrain compare fp32 vs ptq vs qat       compare float, PTQ and QAT
      qattrain train --model 'conv 16 3x3 bn, pool 2, fc' --dataset folder:pets
    """


def main() -> None:
    """Entry point of `qattrain` and `python -m qattrain`."""
    # Must be set before torch is loaded. OpenMP threads that spin for long while they wait starve each other on a busy
    # machine. With 10,000 spins, W4A4 training on 2 cores was as fast as with GNU's default on an idle machine, and 1.3
    # times as fast beside two other trainings (mean images/s). No spinning is fastest on a busy machine, but a quarter
    # slower on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # What imports make lives to the end. Looking through it for garbage as often as by default takes a tenth of a
    # command of a few seconds.
    gc.set_threshold(100_000)
    stopping.received.clear()
    try:
        with stopping.handled(_on_signal):
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except QattrainError as error:
        if "--debug" in sys.argv:
            raise
        code = _fail(str(error), 2 if isinstance(error, ConfigError) else 1)
    except (stopping.Stopped, KeyboardInterrupt, typer.Abort) as error:
        code = _stopped(getattr(error, "number", signal.SIGINT))
    except OSError as error:
        if stopping.received:  # SIGHUP: the terminal is gone, nothing can be shown there
            code = _stopped(stopping.received[-1])
        elif error.errno == errno.ENOSPC:
            _print_nowhere(sys.stdout)  # what is left to print
            code = _fail(f"cannot write: {error.strerror}; make room, or send the output elsewhere", 1)
        else:
            raise
    except Exception as error:
        # A usage error of Typer, told by its attributes: Typer vendors Click, so the class has no stable path.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "qattrain"
        message = f"{error.format_message().rstrip('.')}{_offending_value(error)}; see '{path} --help'"
        code = _fail(message, error.exit_code)
    sys.exit(code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped`; end at once while something is imported, because an interrupted import fails in any way."""
    stopping.received.append(number)
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        raise stopping.Stopped(number)
    if sys.stderr.isatty():
        os.write(2, b"\r\x1b[?25h\n")  # a progress display may have hidden the cursor
    os._exit(_stopped(number))


def _stopped(number: int) -> int:
    """Say so, where that is still possible, and return the exit code."""
    code = stopping.exit_code(number)
    words = "interrupted" if code == 130 else stopping.stopped_words(number)
    try:
        _fail(f"{words}; the last checkpoint is kept", code)
        sys.stdout.flush()
    except OSError:
        _print_nowhere(sys.stdout)
        _print_nowhere(sys.stderr)
    return code


def _print_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _offending_value(error: Exception) -> str:
    """The value of the option that could not be parsed, which Typer's messages leave out."""
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [value for name, value in itertools.pairwise(sys.argv) if name in names]
    return f" (given: {given[-1]!r})" if given else ""


def _fail(message: str, code: int) -> int:
    is_colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    label = "\x1b[1;31merror:\x1b[0m" if is_colored else "error:"
    from qattrain.files.escapes import visible  # here, because only a command that fails needs it

    line = f"{label} {visible(' '.join(message.split()))}"
    if sys.stderr.isatty():  # elsewhere it stays one line
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return code
