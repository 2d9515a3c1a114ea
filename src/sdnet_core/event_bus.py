"""The base of all events, and the bus that brings them to whoever listens; public from :mod:`sdnet_core.events`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import msgspec

from .clock import Clock

__all__ = ["EventBus", "EventsDropped", "NetworkEvent", "Subscription"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvent:
    """Base of all events.

    :param at: wall-clock time, seconds since the epoch; filled in by the bus when 0.
    """

    kind: ClassVar[str] = "event"
    audited: ClassVar[bool] = False
    """Whether it goes into the audit log, being of concern for security."""
    at: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the event's ``kind``."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {"kind": self.kind, **values}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(NetworkEvent):
    """This subscriber was too slow: so many events before this one were dropped."""

    kind = "events-dropped"
    count: int


class Subscription:
    """One listener's bounded queue of events: ``async with`` it and iterate.

    When the listener falls behind, the oldest events give way and an :class:`EventsDropped` says how many.
    """

    def __init__(self, bus: EventBus, kinds: frozenset[str] | None, buffer: int) -> None:
        self._bus = bus
        self._kinds = kinds
        self._queue: deque[NetworkEvent] = deque()
        self._buffer = buffer
        self._dropped = 0
        self._wake = anyio.Event()
        self._ended = False

    def _offer(self, event: NetworkEvent) -> None:
        if self._kinds is not None and event.kind not in self._kinds:
            return
        if len(self._queue) >= self._buffer:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._wake.set()

    async def receive(self) -> NetworkEvent:
        """The next event.

        :raises anyio.EndOfStream: the bus has closed and everything was delivered.
        """
        while True:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return EventsDropped(at=self._bus.now(), count=count)
            if self._queue:
                return self._queue.popleft()
            if self._ended:
                raise anyio.EndOfStream
            self._wake = anyio.Event()
            await self._wake.wait()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> NetworkEvent:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._bus._subscriptions.discard(self)
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()


@dataclass(slots=True)
class EventBus:
    """Hands every event to every subscriber; publishing never blocks and never fails.

    :param clock: dates the events.
    """

    clock: Clock
    _subscriptions: set[Subscription] = field(default_factory=set)
    _taps: list[Callable[[NetworkEvent], None]] = field(default_factory=list)
    _closed: bool = False

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return self.clock.now()

    def publish(self, event: NetworkEvent) -> None:
        """Tell all subscribers."""
        if not event.at:
            object.__setattr__(event, "at", self.now())
        for tap in self._taps:
            tap(event)
        for subscription in tuple(self._subscriptions):
            subscription._offer(event)

    def add_tap(self, tap: Callable[[NetworkEvent], None]) -> None:
        """Have a function called with every event from now on, before it is published further.

        For the core's own parts that must not miss one: it returns at once and never raises.
        """
        self._taps.append(tap)

    def subscribe(self, kinds: Iterable[str] | None = None, *, buffer: int = 256) -> Subscription:
        """Listen from now on.

        :param kinds: only events of these kinds; all when None.
        :param buffer: events held for a slow listener before the oldest give way.
        """
        if buffer < 1 or math.isinf(buffer):
            raise ValueError("a subscription holds at least one event and not endlessly many")
        subscription = Subscription(self, None if kinds is None else frozenset(kinds), buffer)
        if self._closed:
            subscription._end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription once it has delivered what it holds."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription._end()
        self._subscriptions.clear()
