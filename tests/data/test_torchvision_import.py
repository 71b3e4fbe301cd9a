"""Each case runs in its own Python with a fake torchvision: operators and modules cannot be undeclared."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# What torchvision does next to a torch it was not built for: it imports a submodule, then mentions an operator.
NEEDS_OPERATORS = """
import torch, torchvision.half
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: None)
"""
REPORT = """
import sys
from qattrain.data.mnist import import_torchvision_datasets
from qattrain.errors import DataError
try:
    print(import_torchvision_datasets().__name__, sys.modules["torchvision.half"].imports)
except DataError as error:
    print(error)
"""


def import_pretended(folder: Path, init: str) -> str:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "half.py").write_text("import builtins\nimports = builtins.n = getattr(builtins, 'n', 0) + 1\n")
    (package / "datasets.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(REPOSITORY)!r}]\n{REPORT}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_missing_operators_are_declared_and_the_import_is_repeated_from_the_start(tmp_path: Path) -> None:
    assert import_pretended(tmp_path, NEEDS_OPERATORS) == "torchvision.datasets 2"


@pytest.mark.parametrize(
    "init", ["raise RuntimeError('operator torchvision::other does not exist')", "raise OSError('two\\nlines')"]
)
def test_any_other_failure_is_a_data_error_of_one_line(tmp_path: Path, init: str) -> None:
    message = import_pretended(tmp_path, init)
    assert "torchvision could not be imported" in message
    assert "Error: " in message
    assert "reinstall" in message
    assert "\n" not in message
