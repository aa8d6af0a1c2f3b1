"""The host's CPU as a device, as far as this process uses it.

The busy fraction is the process's own CPU time over that of all its threads; other programs on the
host do not count. Energy is that of the processor packages (RAPL) of the whole host, where the
system allows reading it. Worker processes of a DataLoader are separate and not included.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from .probe import Device, Reading, why_missing

__all__ = ["CpuProbe", "usable_threads"]


class CpuProbe:
    """Reads this process's share of the host's CPU.

    Args:
        threads: How many threads make the whole device, at least 1; None: the logical CPUs that
            this process may run on. Ranks that share a host must all pass the host's total,
            because their busy seconds add up.
        root: Where ``proc`` and ``sys`` are; for tests.
        now: Monotonic seconds.
        process_time: CPU seconds of this process over all threads, user and system.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        root: Path | str = "/",
        now: Callable[[], float] = time.monotonic,
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads!r}; None takes them all")
        self._root = Path(root)
        self._threads = threads or usable_threads()
        self._now = now
        self._process_time = process_time
        self._last: tuple[float, float] | None = None  # wall and CPU seconds at the last reading
        self._zones: list[_Zone] | None = None
        self.missing: Mapping[str, str] = {}
        self.device = Device(key=_key(self._root), name=_model_name(self._root), kind="cpu")

    def read(self) -> Reading:
        why = {"power_watts": "CPUs count energy only, if at all; the mean power follows from that"}
        reading = Reading(
            busy_fraction=self._busy_fraction(why),
            energy_joules=self._energy_joules(why),
            memory_used_bytes=self._memory_bytes(why),
        )
        self.missing = why_missing(reading, why, "LScore reads it from GPUs only")
        return reading

    def close(self) -> None:
        """Forget the last reading; the RAPL totals continue and never run backwards."""
        self._last = None

    def _busy_fraction(self, why: dict[str, str]) -> float | None:
        t, cpu = self._now(), self._process_time()
        last, self._last = self._last, (t, cpu)
        if last is None or t <= last[0]:
            why["busy_fraction"] = (
                "it is a share of the time since the last reading, and this is the first"
            )
            return None
        return min(1.0, max(0.0, (cpu - last[1]) / (self._threads * (t - last[0]))))

    def _energy_joules(self, why: dict[str, str]) -> float | None:
        try:
            if self._zones is None:
                self._zones = _packages(self._root)
            joules = sum(zone.joules() for zone in self._zones)
        except PermissionError:
            why["energy_joules"] = (
                "only root may read the RAPL counters; an administrator can allow it with "
                "chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
            )
        except (OSError, ValueError) as error:
            why["energy_joules"] = f"RAPL cannot be read: {error}"
        else:
            if self._zones:
                return joules
            why["energy_joules"] = (
                "the system has no RAPL counter (a virtual machine, or not Linux on x86)"
            )
        return None

    def _memory_bytes(self, why: dict[str, str]) -> int | None:
        try:
            pages = int((self._root / "proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError, AttributeError):
            return _memory_peak_bytes(why)


class _Zone:
    """The RAPL counter of one processor package, unwrapped: it restarts after its maximum."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())
        self._total = 0

    def joules(self) -> float:
        """Return the joules since creation. More than one wrap between readings is missed."""
        microjoules = int(self._counter.read_text())
        gained = microjoules - self._last
        self._total += gained if gained >= 0 else gained + self._range
        self._last = microjoules
        return self._total / 1e6


def _packages(root: Path) -> list[_Zone]:
    """Return the packages alone: their parts (intel-rapl:0:1) and psys would count twice."""
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's too
    return [_Zone(f) for f in folders if (f / "name").read_text().startswith("package")]


def _memory_peak_bytes(why: dict[str, str]) -> int | None:
    try:
        import resource
    except ImportError:
        why["memory_used_bytes"] = "the system has neither /proc nor getrusage"
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def usable_threads() -> int:
    """Return how many CPUs this process may run on at a time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(root: Path) -> str:
    try:
        boot = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = f"{uuid.getnode():012x}"
    return f"cpu:{platform.node()}:{boot}"


def _model_name(root: Path) -> str:
    # Line by line: with hundreds of CPUs the whole file takes the kernel many milliseconds.
    with contextlib.suppress(OSError), open(root / "proc/cpuinfo", errors="replace") as lines:
        for line in lines:
            found = re.match(r"model name\s*:\s*(.+)$", line)
            if found:
                return found[1].strip()
    return platform.processor() or platform.machine() or "CPU"
