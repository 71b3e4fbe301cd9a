"""The commands, one file each: parse, call the library, show the result.

To add one: write `qattrain/commands/<name>.py` with a function, and one line in COMMANDS. No module here imports torch
at its top: help must appear at once.
"""

from collections.abc import Callable

from qattrain.commands.bench import bench
from qattrain.commands.compare import compare
from qattrain.commands.eval import evaluate
from qattrain.commands.explain import explain
from qattrain.commands.export import export
from qattrain.commands.inspect import inspect
from qattrain.commands.predict import predict
from qattrain.commands.ptq import ptq
from qattrain.commands.report import report
from qattrain.commands.runs import runs
from qattrain.commands.sweep import sweep
from qattrain.commands.train import train

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "eval": evaluate,
    "ptq": ptq,
    "compare": compare,
    "sweep": sweep,
    "inspect": inspect,
    "explain": explain,
    "export": export,
    "predict": predict,
    "report": report,
    "runs": runs,
    "bench": bench,
}
