"""This machine: what it supports, and what a run records about it."""

import contextlib
import ctypes
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import qattrain
from qattrain.errors import ConfigError, did_you_mean
from qattrain.quant import native

IMAGES_WORTH_COMPILING = 50_000  # compiling takes seconds and saves microseconds per image
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
RECORDED_PACKAGES = ("torchvision", "numpy", "pydantic", "scikit-learn")


def pick_device(asked: str) -> torch.device:
    """`auto` is a GPU if there is one; any other device must work here. Raises ConfigError."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.partition(":")[0] not in ("cpu", "cuda"):
        hint = did_you_mean(asked, ("auto", "cpu", "cuda"))
        raise ConfigError(f"--device {asked!r}: {hint}allowed: auto, cpu, cuda, cuda:N")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--device {asked!r} cannot be used here: {reason}; use auto or cpu") from None
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware can multiply bfloat16: AMX or AVX512-BF16 on a CPU, compute capability 8 on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch does not say
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def pick_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 if the hardware can multiply it, else fp32. Raises ConfigError for bf16 on other hardware."""
    fast = has_fast_bf16(device)
    if asked == "auto":
        return "bf16" if fast else "fp32"
    if asked == "bf16" and not fast:
        raise ConfigError(f"--precision bf16: this {device.type} has no bfloat16 arithmetic; allowed here: fp32, auto")
    return asked


def pick_compile(asked: str, device: torch.device, images: int) -> str:
    """on or off: `auto` is on if the kernels can be compiled and `images`, of all epochs, are enough to be worth it.

    Raises ConfigError for `on` if they cannot be compiled.
    """
    if asked == "off" or (asked == "auto" and (device.type != "cpu" or images < IMAGES_WORTH_COMPILING)):
        return "off"
    if device.type != "cpu":
        raise ConfigError(
            f"train.compile = 'on' with --device {device}: the compiled kernels are for the CPU; use auto"
        )
    try:
        native.prepare()
    except ConfigError as error:
        if asked == "on":
            raise ConfigError(f"train.compile = 'on': {error}") from None
        return "off"
    return "on"


def keep_freed_memory() -> None:
    """Make the C library (glibc only) keep memory that torch frees: every step allocates the same again.

    By default large blocks return to the system, and a training step then spends a third of its time on page faults.
    A GPU does not need it: torch itself keeps that memory.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems, other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value allowed
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and commit, as plain values for `config.json`."""
    return {
        "qattrain": qattrain.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__} | {name: package_version(name) for name in RECORDED_PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else None,
    }


def package_version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree this package runs from, with `+` for local changes; None if it is installed."""
    source = Path(qattrain.__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(source)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], timeout=5, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed else "")
