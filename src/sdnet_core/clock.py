"""Time, randomness and worker threads, passed in so that tests and simulations can own them."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

__all__ = [
    "Clock",
    "Randomness",
    "Runner",
    "SystemClock",
    "SystemRandomness",
    "last_beat",
    "next_beat",
    "run_in_thread",
    "sleep_to_beat",
]

T = TypeVar("T")


class Clock(Protocol):
    """The two clocks of a node."""

    def now(self) -> float:
        """Wall-clock time, seconds since the Unix epoch. May jump."""

    def monotonic(self) -> float:
        """Seconds that never go back and that count while the machine sleeps."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: CLOCK_MONOTONIC stands still during suspend
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()


def last_beat(moment: float, period_s: float) -> float:
    """The latest multiple of a period that is not after a moment, in the event loop's time.

    What need not be exact is done on beats, so that much of it happens in one wake-up: an idle node that wakes up for
    each connection by itself would cost more in waking than in work.

    :param moment: seconds.
    """
    beat = math.floor(moment / period_s) * period_s
    return beat if beat <= moment else beat - period_s


def next_beat(period_s: float) -> float:
    """The next multiple of a period, which is at most the period away, in the event loop's time."""
    now = anyio.current_time()
    beat = last_beat(now, period_s) + period_s
    return beat if beat > now else beat + period_s  # the sum of a large and a small float may lie a little lower


async def sleep_to_beat(period_s: float) -> None:
    """Sleep until the next multiple of a period: see `last_beat`."""
    await anyio.sleep_until(next_beat(period_s))


class Randomness(Protocol):
    """Where keys, nonces and jitter come from."""

    def bytes(self, length: int) -> bytes:
        """Cryptographically secure random bytes."""

    def uniform(self, low: float, high: float) -> float:
        """A number for jitter; need not be secure."""


class SystemRandomness:
    """The operating system's generator."""

    def __init__(self) -> None:
        self._jitter = random.Random()

    def bytes(self, length: int) -> bytes:
        return os.urandom(length)

    def uniform(self, low: float, high: float) -> float:
        return self._jitter.uniform(low, high)


class Runner(Protocol):
    """Runs a blocking function away from the event loop."""

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run ``function(*args)`` and give its result."""


async def run_in_thread(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function in a worker thread; a cancelled caller still waits for it to finish.

    :returns: what the function returned.
    """
    return await anyio.to_thread.run_sync(function, *args)
