"""Limits to how fast bytes go out and come in: in all, and for single devices; changed at any time."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import anyio
import msgspec

from sdnet_core.errors import InvalidRequestError

__all__ = ["Bucket", "LimitSettings", "Limiter", "Rates"]

_BURST_S = 0.25
"""So much of a second's bytes may go at once after a pause."""
MIN_RATE = 1024


class Rates(msgspec.Struct, frozen=True):
    """Bytes a second, None for no limit.

    :param up: what is sent.
    :param down: what is received.
    """

    up: int | None = None
    down: int | None = None


class LimitSettings(msgspec.Struct, frozen=True):
    """All limits that are set.

    :param total: for everything together.
    :param devices: for single devices, by id.
    """

    total: Rates = Rates()
    devices: dict[str, Rates] = msgspec.field(default_factory=dict)


class Bucket:
    """A token bucket that may go into debt: what is larger than the burst passes whole, and the next one waits longer.

    Those who wait get their turn in order, so that all have the same share.

    :param monotonic: a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float], rate: int | None = None) -> None:
        self._monotonic = monotonic
        self._rate = rate
        self._tokens = 0.0 if rate is None else rate * _BURST_S
        self._at = monotonic()
        self._turn = anyio.Lock()
        self._changed = anyio.Event()

    @property
    def rate(self) -> int | None:
        """Bytes a second; None for no limit."""
        return self._rate

    def set_rate(self, rate: int | None) -> None:
        """Change the limit; who waits now is counted anew."""
        if rate == self._rate:
            return
        self._refill()
        self._rate = rate
        self._tokens = 0.0 if rate is None else min(max(self._tokens, -float(rate)), rate * _BURST_S)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        if self._rate is None:
            return
        async with self._turn:
            while self._rate is not None:
                self._refill()
                if self._tokens >= 0:
                    self._tokens -= count
                    return
                with anyio.move_on_after(-self._tokens / self._rate):
                    await self._changed.wait()

    def _refill(self) -> None:
        now = self._monotonic()
        if self._rate is not None:
            self._tokens = min(self._tokens + (now - self._at) * self._rate, self._rate * _BURST_S)
        self._at = now


class Limiter:
    """All buckets of a node."""

    def __init__(self, monotonic: Callable[[], float], settings: LimitSettings | None = None) -> None:
        self._monotonic = monotonic
        self._up: dict[uuid.UUID | None, Bucket] = {}
        self._down: dict[uuid.UUID | None, Bucket] = {}
        self.settings = settings or LimitSettings()
        self._apply()

    def change(self, settings: LimitSettings) -> None:
        """Set all limits anew.

        :raises InvalidRequestError: one is too low to be of use.
        """
        for rates in (settings.total, *settings.devices.values()):
            if any(rate is not None and rate < MIN_RATE for rate in (rates.up, rates.down)):
                raise InvalidRequestError(f"A limit is at least {MIN_RATE} bytes a second.")
        self.settings = settings
        self._apply()

    def _apply(self) -> None:
        wanted: dict[uuid.UUID | None, Rates] = {None: self.settings.total}
        wanted |= {uuid.UUID(name): rates for name, rates in self.settings.devices.items()}
        for buckets, which in ((self._up, "up"), (self._down, "down")):
            for key in {*buckets, *wanted}:
                rate = getattr(wanted.get(key, Rates()), which)
                bucket = buckets.get(key)
                if bucket is None:
                    buckets[key] = Bucket(self._monotonic, rate)
                else:
                    bucket.set_rate(rate)

    def sending_rate(self, device_id: uuid.UUID) -> int | None:
        """The lower of the limits that hold for what is sent to a device."""
        rates = [bucket.rate for key in (None, device_id) if (bucket := self._up.get(key)) is not None]
        return min((rate for rate in rates if rate is not None), default=None)

    async def sending(self, device_id: uuid.UUID, count: int) -> None:
        """Wait until so many bytes may be sent to a device."""
        await self._take(self._up, device_id, count)

    async def receiving(self, device_id: uuid.UUID, count: int) -> None:
        """Wait until so many bytes may be taken from a device."""
        await self._take(self._down, device_id, count)

    async def _take(self, buckets: dict[uuid.UUID | None, Bucket], device_id: uuid.UUID, count: int) -> None:
        own = buckets.get(device_id)
        if own is not None:
            await own.take(count)
        await buckets[None].take(count)
