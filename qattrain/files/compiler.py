"""The system's C compiler: finding it, calling it, and keeping the libraries it makes of this package's C files."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from qattrain.errors import ConfigError
from qattrain.files import cache_dir

COMPILERS = ("cc", "gcc", "clang")
# Numbers may be contracted (a * b + c in one rounding), never reordered, but for the sums marked in the source.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
THREADS = "-fopenmp"
TIMEOUT_SECONDS = 120


def find_compiler() -> str | None:
    """Path of the C compiler: $CC, or the first of cc, gcc, clang."""
    named = os.environ.get("CC")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


def shared_library(package: str, source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    """The library of `source`, a file of `package`. Raises ConfigError, one line, where it cannot be had."""
    compiler = find_compiler()
    if compiler is None:
        raise ConfigError(f"no C compiler: none of {', '.join(COMPILERS)} is on the PATH; install one, or do without")
    text = files(package).joinpath(source).read_bytes()
    key = hashlib.sha256(b"\0".join([text, repr((compiler, FLAGS, defines)).encode(), _processor()])).hexdigest()[:16]
    library = cache_dir() / "compiled" / f"{Path(source).stem}-{key}.so"
    try:
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, text, defines, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{compiler} made no library of {source}: {_reason(error)}") from None


def _compile(compiler: str, text: bytes, defines: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        source, unit, made = (Path(name) / f"unit.{suffix}" for suffix in ("c", "o", "so"))
        source.write_bytes(text)

        def build(*threads: str) -> None:
            # Linked without a threading library of its own: it shares the one that torch has loaded, and its threads.
            _call(compiler, *FLAGS, *threads, *defines, "-c", str(source), "-o", str(unit))
            _call(compiler, "-shared", str(unit), "-lm", "-o", str(made))
            ctypes.CDLL(str(made), mode=os.RTLD_NOW)

        try:
            build(THREADS)
        except (OSError, subprocess.CalledProcessError):  # a compiler whose threads are not those of this torch
            build()
        made.replace(library)


def _call(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=True, text=True)


def _reason(error: Exception) -> str:
    said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in said if "error" in line), said[0] if said else type(error).__name__)


def _processor() -> bytes:
    """What -march=native depends on: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        ).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
