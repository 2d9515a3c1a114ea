"""What has to be known of the machine to read a result; nothing that names it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

__all__ = ["OtherLoad", "describe"]


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def describe(*distributions: str) -> dict[str, Any]:
    """Cores, memory, kernel, Python, and the versions of the distributions that matter."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": _memory_gib(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in distributions},
    }


class OtherLoad:
    """How many cores others keep busy while a benchmark runs. Needs /proc (Linux)."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_s = self._all_busy_s()
        self._own_s = self._ours_s()

    @staticmethod
    def _all_busy_s() -> float | None:
        try:
            with open("/proc/stat", encoding="ascii") as stat:
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
                    int(n) for n in stat.readline().split()[1:]
                )
        except OSError:
            return None
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _ours_s() -> float:
        """Our CPU time and that of our children that have ended."""
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def cores(self) -> float | None:
        """The mean since the start, children ended; None if it cannot be known here."""
        busy_s = self._all_busy_s()
        if busy_s is None or self._busy_s is None:
            return None
        others_s = busy_s - self._busy_s - (self._ours_s() - self._own_s)
        return round(max(0.0, others_s) / (time.monotonic() - self._began), 2)
