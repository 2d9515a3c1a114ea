"""Keeps what is in this process's memory from ending up on the disk or in another process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

__all__ = ["keep_memory_private"]

_PR_SET_DUMPABLE = 4
"""prctl(2)."""


def keep_memory_private() -> None:
    """Have no core file written, and let no other process of the user read the memory.

    With ``SDNET_DEBUG`` set a debugger or profiler may still attach.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    # A core pattern that pipes to a program ignores the limit; this it does not.
    if sys.platform == "linux" and os.environ.get("SDNET_DEBUG", "") in ("", "0"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
