"""The hybrid logical clock: stamps that follow the wall clock, never go back, and respect cause and effect.

A stamp is one integer, ``milliseconds since the epoch << 16 | counter``. Operations of one batch have consecutive
stamps, so a busy counter runs over into the milliseconds, which is harmless. The author's device id breaks ties.
"""

from __future__ import annotations

from sdnet_core import Clock
from sdnet_core.errors import ConflictError

from .limits import MAX_DRIFT_MS

__all__ = ["COUNTER_BITS", "FutureStampError", "HybridClock", "stamp_time_s"]

COUNTER_BITS = 16


class FutureStampError(ConflictError):
    """A stamp lies so far in the future that its author's clock, or ours, must be wrong."""


def stamp_time_s(stamp: int) -> float:
    """The wall-clock time of a stamp, seconds since the epoch."""
    return (stamp >> COUNTER_BITS) / 1000


class HybridClock:
    """One library's clock on one device. Not thread-safe: it belongs to the library's writer.

    :param wall: where the time comes from; may jump.
    :param last: the highest stamp given or observed before, as it was persisted; no lower one is given again.
    :param max_drift_ms: how far ahead of the wall clock an observed stamp may be.
    """

    __slots__ = ("_wall", "last", "max_drift_ms")

    def __init__(self, wall: Clock, last: int = 0, *, max_drift_ms: int = MAX_DRIFT_MS) -> None:
        self._wall = wall
        self.last = last
        self.max_drift_ms = max_drift_ms

    def take(self, count: int = 1) -> int:
        """Reserve consecutive stamps, all later than anything given or observed before.

        :returns: the first of them.
        """
        first = max(self.last + 1, self._now_ms() << COUNTER_BITS)
        self.last = first + count - 1
        return first

    def follow(self) -> int:
        """Take the stamp right after the last one, whatever the wall clock says."""
        self.last += 1
        return self.last

    def check(self, stamp: int) -> None:
        """Refuse a stamp from too far in the future.

        :raises FutureStampError: it is.
        """
        ahead_ms = (stamp >> COUNTER_BITS) - self._now_ms()
        if ahead_ms > self.max_drift_ms:
            raise FutureStampError(
                f"A change is stamped {ahead_ms / 3_600_000:.1f} hours in the future; check the devices' clocks."
            )

    def observe(self, stamp: int) -> None:
        """Move on past a stamp that came from another device.

        :raises FutureStampError: as `check`; the clock stays as it was.
        """
        self.check(stamp)
        self.last = max(self.last, stamp)

    def _now_ms(self) -> int:
        return max(0, int(self._wall.now() * 1000))
