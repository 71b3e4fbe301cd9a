"""How much other processes compute meanwhile: whatever they take, a measurement loses."""

import os
import time
from pathlib import Path

BUSY_CORES = 0.1  # of one core: more than this in other processes makes a benchmark doubtful
STAT = Path("/proc/stat")
_WORKING = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; not idle, nor waiting for disks


class BusyMeter:
    """Counts processor seconds of the whole machine less those of this process and its finished children."""

    def __init__(self) -> None:
        self._last = _seconds()

    def others_cores(self) -> float | None:
        """Cores that other processes kept busy since the last call; None where the system does not tell (not Linux)."""
        before, self._last = self._last, _seconds()
        if before is None or self._last is None:
            return None
        wall, machine, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(0.0, (machine - own) / wall) if wall > 0 else None


def _seconds() -> tuple[float, float, float] | None:
    """(wall clock, all processors at work, this process at work)."""
    try:
        fields = STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    ticks = sum(int(fields[index]) for index in _WORKING)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
