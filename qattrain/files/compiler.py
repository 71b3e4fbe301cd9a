"""The system's C compiler: finding it, calling it, and caching the libraries compiled from this package's C files."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from qattrain.errors import ConfigError, QattrainError
from qattrain.files import cache_dir

COMPILERS = ("cc", "gcc", "clang")
NATIVE = "-march=native"  # use every instruction this processor has
# a * b + c may be rounded once. Sums are never reordered, except where the source allows it.
FLAGS = ("-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
THREADS = "-fopenmp"
TIMEOUT_SECONDS = 300


def find_compiler() -> str | None:
    """Path of the C compiler: $CC, or the first of cc, gcc, clang; None if it is not on the PATH."""
    return next(filter(None, map(shutil.which, _candidates())), None)


def require_compiler(kind: type[QattrainError], advice: str) -> str:
    """Path of the C compiler. Raises `kind`, with `advice` at its end, if there is none."""
    compiler = find_compiler()
    if compiler is None:
        raise kind(f"no C compiler: none of {', '.join(_candidates())} is on the PATH; install one{advice}")
    return compiler


def _candidates() -> tuple[str, ...]:
    named = os.environ.get("CC")
    return (named,) if named else COMPILERS


def call(*command: str, folder: Path | None = None) -> str:
    """Run a compiler, or one of its tools, in `folder`, and return its output. Raises OSError, SubprocessError."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=True
    ).stdout


def compile_c(*command: str, folder: Path | None = None) -> None:
    """Call a compiler; if it fails, call it without NATIVE, which not every compiler supports. Raises as `call`."""
    try:
        call(*command, folder=folder)
    except subprocess.CalledProcessError:
        if NATIVE not in command:
            raise
        call(*(word for word in command if word != NATIVE), folder=folder)


def failure(error: Exception) -> str:
    """Why a call failed, on one line: the first line of the compiler's output that mentions an error."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not finished after {TIMEOUT_SECONDS} s"
    said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in said if "error" in line), said[0] if said else type(error).__name__)


def shared_library(package: str, source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    """The library of `source`, a file of `package`, compiled or from the cache. Raises ConfigError."""
    compiler = require_compiler(ConfigError, ", or do without")
    text = files(package).joinpath(source).read_bytes()
    key = hashlib.sha256(b"\0".join([text, repr((compiler, FLAGS, defines)).encode(), _processor()])).hexdigest()[:16]
    library = cache_dir() / "compiled" / f"{Path(source).stem}-{key}.so"
    try:
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            _make_library(compiler, text, defines, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{compiler} could not compile {source}: {failure(error)}") from None


def _make_library(compiler: str, text: bytes, defines: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        source, unit, made = (Path(name) / f"unit.{suffix}" for suffix in ("c", "o", "so"))
        source.write_bytes(text)

        def build(*threads: str) -> None:
            # Not linked with a threading library, it uses the one that torch has loaded, and torch's threads.
            compile_c(compiler, *FLAGS, *threads, *defines, "-c", str(source), "-o", str(unit))
            call(compiler, "-shared", str(unit), "-lm", "-o", str(made))
            ctypes.CDLL(str(made), mode=os.RTLD_NOW)

        try:
            build(THREADS)
        except (OSError, subprocess.CalledProcessError):  # this compiler needs another threading library than torch's
            build()
        made.replace(library)


def _processor() -> bytes:
    """The processor, which NATIVE compiles for: different machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        return "\n".join(sorted(known)).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
