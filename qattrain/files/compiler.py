"""The system's C compiler: finding it, calling it, and caching the libraries compiled from this package's C files."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from qattrain.errors import ConfigError, QattrainError
from qattrain.files import cache_dir
from qattrain.files.kept import own_folder, read_own_sealed, write_own_sealed
from qattrain.files.locks import remove_leftovers, temporary_folder

COMPILERS = ("cc", "gcc", "clang")
NATIVE = "-march=native"  # use every instruction this processor has
# a * b + c may be rounded once. Sums are never reordered, except where the source allows it.
FLAGS = ("-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
THREADS = "-fopenmp"
TIMEOUT_SECONDS = 300
LIBRARY_FOLDER = "kernels"  # in the cache; not "compiled", where older versions kept libraries without a digest
MOST_LIBRARY_BYTES = 10_000_000
COMPILING = "compiling"  # a folder for this, in that one


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
    """The library of `source`, a file of `package`, compiled or kept from before. Raises ConfigError.

    What is promised: code runs that this program compiled for this user. A kept library is loaded only from a folder,
    and a file, that nobody but the user may write, and only if its SHA-256 is right; the bytes checked are the bytes
    loaded, from a private copy. Otherwise it is compiled anew; if the folder cannot be trusted, for this process only.
    """
    compiler = require_compiler(ConfigError, ", or do without")
    text = files(package).joinpath(source).read_bytes()
    key = hashlib.sha256(b"\0".join([text, repr((compiler, FLAGS, defines)).encode(), _processor()])).hexdigest()[:16]
    folder = _library_folder()
    name = f"{Path(source).stem}-{key}.so"
    kept = read_own_sealed(folder / name, MOST_LIBRARY_BYTES) if folder is not None else None
    try:
        with _private_folder(folder) as private:
            library = private / name
            if kept is not None:
                library.write_bytes(kept)
                with contextlib.suppress(OSError):  # made for a system that has changed since
                    return ctypes.CDLL(str(library))
            loaded = _make_library(compiler, text, defines, library)
            with contextlib.suppress(OSError):  # a full or read-only cache costs time, nothing else
                if folder is not None:
                    write_own_sealed(folder / name, library.read_bytes())
            return loaded
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{compiler} could not compile {source}: {failure(error)}") from None


def _library_folder() -> Path | None:
    """Where compiled libraries are kept; None, said once, if it cannot be trusted, or if it cannot be made."""
    path = cache_dir() / LIBRARY_FOLDER
    folder, why = own_folder(path)
    if why:
        _say_once(
            f"compiled kernels are not kept in {path}, and none is taken from there: {why}; they are compiled for this "
            "run only; to keep them, remove it"
        )
    return folder


@cache
def _say_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)  # to stderr, unless the program that uses this library decides otherwise


@contextlib.contextmanager
def _private_folder(folder: Path | None) -> Iterator[Path]:
    """A temporary folder of mode 0700: in `folder` if possible, as programs in /tmp may be forbidden to run."""
    handle, private = None, None
    with contextlib.suppress(OSError):
        if folder is not None:
            remove_leftovers(folder, {COMPILING})
            handle, private = temporary_folder(folder, COMPILING)
    if private is None or handle is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)
        os.close(handle)


def _make_library(compiler: str, text: bytes, defines: tuple[str, ...], library: Path) -> ctypes.CDLL:
    """Compiles into the folder of `library`, which is private, and loads it. Raises OSError, SubprocessError."""
    source, unit = (library.with_name(f"unit.{suffix}") for suffix in ("c", "o"))
    source.write_bytes(text)

    def build(*threads: str) -> ctypes.CDLL:
        # Not linked with a threading library, it uses the one that torch has loaded, and torch's threads.
        compile_c(compiler, *FLAGS, *threads, *defines, "-c", str(source), "-o", str(unit))
        call(compiler, "-shared", str(unit), "-lm", "-o", str(library))
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW)

    try:
        return build(THREADS)
    except (OSError, subprocess.CalledProcessError):  # this compiler needs another threading library than torch's
        return build()


def _processor() -> bytes:
    """The processor, which NATIVE compiles for: different machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        return "\n".join(sorted(known)).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
