"""Limits to how fast bytes go out and come in: in all, and for single devices; changed at any time."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

import anyio
import msgspec

from sdnet_core import PluginContext
from sdnet_core.errors import InvalidRequestError, SerializationError
from sdnet_core.wire import decode, encode

__all__ = ["Bucket", "LimitSettings", "LimitStore", "Limiter", "Rates", "Throttle"]

_BURST_S = 0.25
"""So much of a second's bytes may go at once after a pause."""
_STORED = "limits"
MIN_RATE = 1024
_MAX_RECORD_BYTES = 1 << 20
_MIN_RECORD_BYTES = 16 * 1024
_RECORD_S = 0.5
"""A record is at most what the limit lets through in so many seconds, so that a slow transfer does not go in jerks."""


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

    def up(self, device_id: uuid.UUID | None) -> Throttle:
        """What holds for all that is sent to a device; None for one that is not paired."""
        return Throttle(self._up, device_id)

    def down(self, device_id: uuid.UUID | None) -> Throttle:
        """What holds for all that comes from a device; None for one that is not paired."""
        return Throttle(self._down, device_id)


class LimitStore:
    """The limits, kept in the plugin's sealed store.

    :ivar limiter: what applies them.
    """

    def __init__(self, ctx: PluginContext) -> None:
        self._storage = ctx.storage
        self.limiter = Limiter(ctx.clock.monotonic)

    async def load(self) -> None:
        """Read and apply them.

        :raises StorageError: the store cannot be opened.
        """
        data = await self._storage.load(_STORED)
        if data is not None:
            with contextlib.suppress(SerializationError):
                self.limiter.change(decode(data, LimitSettings))

    async def change(self, rates: Rates, device_id: uuid.UUID | None) -> LimitSettings:
        """Apply and store other limits: for all together, or for one device.

        :raises InvalidRequestError: one is too low to be of use.
        :raises StorageError: it could not be stored; it holds until the node stops.
        """
        settings = self.limiter.settings
        if device_id is None:
            settings = msgspec.structs.replace(settings, total=rates)
        else:
            devices = {name: other for name, other in settings.devices.items() if name != str(device_id)}
            if rates != Rates():
                devices[str(device_id)] = rates
            settings = msgspec.structs.replace(settings, devices=devices)
        self.limiter.change(settings)
        await self._storage.store(_STORED, encode(settings))
        return settings


class Throttle:
    """The limits in one direction to one device, as they are at each moment."""

    def __init__(self, buckets: dict[uuid.UUID | None, Bucket], device_id: uuid.UUID | None) -> None:
        self._buckets = buckets
        # The limit of the device alone, if it has one, and the one for all together.
        self._keys = (None,) if device_id is None else (device_id, None)

    @property
    def limited(self) -> bool:
        """Whether there is a limit now."""
        return any((bucket := self._buckets.get(key)) is not None and bucket.rate is not None for key in self._keys)

    @property
    def record_bytes(self) -> int:
        """How large records are best now."""
        rates = [bucket.rate for key in self._keys if (bucket := self._buckets.get(key)) is not None]
        rate = min((rate for rate in rates if rate is not None), default=None)
        if rate is None:
            return _MAX_RECORD_BYTES
        return max(_MIN_RECORD_BYTES, min(_MAX_RECORD_BYTES, int(rate * _RECORD_S)))

    async def wait(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        for key in self._keys:
            bucket = self._buckets.get(key)
            if bucket is not None:
                await bucket.take(count)
