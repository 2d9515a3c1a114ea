"""The memory of the node's process: kept from ending up on the disk or in another process, and no more than needed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

__all__ = ["give_back_memory", "keep_memory_private"]

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


def give_back_memory() -> None:
    """Once the start is over: give back what only it needed, and look no more at what stays for ever."""
    gc.collect()
    gc.freeze()  # a full collection would otherwise go through some 600,000 objects of imported modules each time
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # glibc's
            ctypes.CDLL(None).malloc_trim(0)
