"""The commands, one file each: parse the options, call the library, show the result.

To add one: write a function in `qattrain/commands/<name>.py`, and add one line to COMMANDS. Nothing here imports
torch at the top of a module: help must appear at once.
"""

from collections.abc import Callable

from qattrain.commands.bench import bench
from qattrain.commands.compare import compare
from qattrain.commands.eval import evaluate
from qattrain.commands.explain import explain
from qattrain.commands.export import export
from qattrain.commands.fit import fit
from qattrain.commands.inspect import inspect
from qattrain.commands.playground import playground
from qattrain.commands.predict import predict
from qattrain.commands.ptq import ptq
from qattrain.commands.report import report
from qattrain.commands.runs import runs
from qattrain.commands.sensitivity import sensitivity
from qattrain.commands.sweep import sweep
from qattrain.commands.train import train

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "eval": evaluate,
    "ptq": ptq,
    "compare": compare,
    "sweep": sweep,
    "fit": fit,
    "inspect": inspect,
    "sensitivity": sensitivity,
    "explain": explain,
    "export": export,
    "predict": predict,
    "playground": playground,
    "report": report,
    "runs": runs,
    "bench": bench,
}
