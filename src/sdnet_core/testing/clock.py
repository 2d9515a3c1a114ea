"""Virtual time: hours of timeouts and back-offs pass as fast as they compute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["VirtualClock", "run_in_virtual_time", "run_inline"]

T = TypeVar("T")

_EPOCH = 1_700_000_000.0
"""The wall-clock time at which virtual time begins: 14 November 2023."""


class VirtualClock:
    """A node's clocks, driven by the event loop's: under `run_in_virtual_time` both stand still while work is done.

    :param wall_offset_s: change it to step the wall clock; the monotonic one does not follow.
    """

    def __init__(self) -> None:
        self.wall_offset_s = 0.0

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return _EPOCH + self.wall_offset_s + self.monotonic()

    def monotonic(self) -> float:
        """The event loop's time, seconds."""
        return anyio.current_time()


async def run_inline(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function right here: the runner for virtual time, which does not wait for threads.

    :returns: what the function returned.
    """
    await anyio.lowlevel.checkpoint()
    return function(*args)


def run_in_virtual_time(function: Callable[..., Awaitable[T]], /, *args: Any) -> T:
    """Run an async function on trio, with a clock that jumps to the next deadline whenever every task waits.

    Nodes inside are made with ``clock=VirtualClock(), runner=run_inline``, which `linked_nodes` takes too: work in
    threads would seem to take for ever. There is no network in virtual time, only the one in memory.

    Example::

        async def a_day():
            async with linked_nodes(2, clock=VirtualClock(), runner=run_inline) as (a, b):
                await anyio.sleep(24 * 3600)

        run_in_virtual_time(a_day)  # takes a second

    :returns: what the function returned.
    """
    from trio.testing import MockClock

    clock = MockClock(autojump_threshold=0)
    return anyio.run(function, *args, backend="trio", backend_options={"clock": clock})
