"""The exported program compiled with sanitizers, which end it where C is undefined."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qattrain.export.c_export import write_c
from qattrain.integer import IntegerModel, ModelFacts


def assert_sanitizers_find_nothing(
    model: IntegerModel, images: np.ndarray, layout: str, flags: tuple[str, ...], folder: Path
) -> None:
    """Every logit is right, too. The program gets its image on the standard input, in bytes (row, column, channel)."""
    if shutil.which("gcc") is None:
        pytest.skip("not installed: gcc")
    facts = ModelFacts("n", "d", tuple(map(str, range(model.classes))), None)
    for name, content in write_c(model, facts, layout).items():
        (folder / name).write_bytes(content)
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command = ["gcc", "-std=c99", "-O1", "-g", *flags, *checks, "model.c", "main.c", "-o", "classify"]
    subprocess.run(command, cwd=folder, timeout=120, check=True)
    for image, expected in zip(images, model.run(images), strict=True):
        done = subprocess.run(
            [folder / "classify"],
            input=image.transpose(1, 2, 0).tobytes(),
            capture_output=True,
            timeout=60,
            env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},  # which cannot run under a debugger
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert [int(line.split()[1]) for line in done.stdout.splitlines()[1:]] == expected.tolist()
