"""The base of all events, and the bus that brings them to whoever listens; public from :mod:`sdnet_core.events`."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar

import anyio
import msgspec

from .clock import Clock

__all__ = ["EventBus", "EventsDropped", "NetworkEvent", "Subscription", "event_kinds"]

KEPT_OF_EACH_KIND = 500
"""Past events that a bus keeps, of each kind: what happens often does not push out what happens rarely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvent:
    """Base of all events.

    :param at: wall-clock time, seconds since the epoch; filled in by the bus when 0.
    :param seq: counts the events of one run of a node, from 1 on; filled in by the bus.
    """

    kind: ClassVar[str] = "event"
    audited: ClassVar[bool] = False
    """Whether it goes into the audit log, being of concern for security."""
    at: float = 0.0
    seq: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the event's ``kind``."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {"kind": self.kind, **values}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(NetworkEvent):
    """A gap: so many events before this one are missing here. It has no number of its own.

    :param count: of all kinds, whichever were asked for.
    :param reason: why.
    """

    kind = "events-dropped"
    count: int
    reason: str = "the listener was too slow"


def event_kinds() -> dict[str, bool]:
    """The kinds of events of the core and of all imported plugins, and whether each goes into the audit log."""
    types, waiting = [], [NetworkEvent]
    while waiting:
        types.append(waiting.pop())
        waiting += types[-1].__subclasses__()
    # Bases are told by their names: making a class with slots leaves one without behind, until that is collected.
    bases = {(found.__module__, found.__qualname__) for found in types if found.__subclasses__()}
    return {found.kind: found.audited for found in types if (found.__module__, found.__qualname__) not in bases}


class Subscription:
    """One listener's bounded queue of events: ``async with`` it and iterate.

    When the listener falls behind, the oldest events give way and an :class:`EventsDropped` says how many.
    """

    def __init__(self, bus: EventBus, kinds: frozenset[str] | None, buffer: int) -> None:
        self._bus = bus
        self._kinds = kinds
        self._past: deque[NetworkEvent] = deque()
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
            self._bus.dropped += 1
        self._queue.append(event)
        self._wake.set()

    async def receive(self) -> NetworkEvent:
        """The next event.

        :raises anyio.EndOfStream: the bus has closed and everything was delivered.
        """
        while True:
            if self._past:
                return self._past.popleft()
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


class EventBus:
    """Hands every event to every subscriber and keeps the latest; publishing never blocks and never fails.

    :param clock: dates the events.
    :param keep: past events kept of each kind.
    :ivar run: names this run of the node: a number of an event means something within one run only.
    :ivar last: the number of the latest event, 0 before the first.
    :ivar dropped: events that slow subscribers lost, all together.
    """

    def __init__(self, clock: Clock, *, keep: int = KEPT_OF_EACH_KIND) -> None:
        self.clock = clock
        self.run = f"{int(clock.now() * 1000):x}"
        self.last = 0
        self.dropped = 0
        self._keep = keep
        self._kept: dict[str, deque[NetworkEvent]] = {}
        self._gone: dict[str, NetworkEvent] = {}
        """By kind, the latest event that is not kept any more."""
        self._subscriptions: set[Subscription] = set()
        self._taps: list[Callable[[NetworkEvent], None]] = []
        self._closed = False

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return self.clock.now()

    def publish(self, event: NetworkEvent) -> None:
        """Tell all subscribers."""
        if event.seq:  # it was published before, and whoever holds it must not see it change
            event = dataclasses.replace(event, at=0.0)
        if not event.at:
            object.__setattr__(event, "at", self.now())
        self.last += 1
        object.__setattr__(event, "seq", self.last)
        for tap in self._taps:
            tap(event)
        kept = self._kept.get(event.kind)
        if kept is None:
            kept = self._kept[event.kind] = deque(maxlen=self._keep)
        if len(kept) == self._keep:
            self._gone[event.kind] = kept[0] if kept else event
        kept.append(event)
        for subscription in tuple(self._subscriptions):
            subscription._offer(event)

    def add_tap(self, tap: Callable[[NetworkEvent], None]) -> None:
        """Have a function called with every event from now on, before it is published further.

        For the core's own parts that must not miss one: it returns at once and never raises.
        """
        self._taps.append(tap)

    def subscribe(
        self, kinds: Iterable[str] | None = None, *, buffer: int = 256, past: Iterable[NetworkEvent] = ()
    ) -> Subscription:
        """Listen from now on.

        :param kinds: only events of these kinds; all when None.
        :param buffer: events held for a slow listener before the oldest give way.
        :param past: what to begin with, from `history` just before.
        """
        if buffer < 1 or math.isinf(buffer):
            raise ValueError("a subscription holds at least one event and not endlessly many")
        subscription = Subscription(self, None if kinds is None else frozenset(kinds), buffer)
        subscription._past.extend(past)
        if self._closed:
            subscription._end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def history(
        self, kinds: Iterable[str] | None = None, *, after: int = 0, since: float = 0.0, run: str | None = None
    ) -> list[NetworkEvent]:
        """What has happened, oldest first, as far as it is kept; an `EventsDropped` at the beginning tells of a gap.

        :param kinds: only events of these kinds; all when None.
        :param after: only events with a higher number.
        :param since: only events from this time on, seconds since the epoch; the count of a gap may then be too high.
        :param run: the run that the number is of; this one when None. After another run's all of this one's count, as
            they do after a number that this run has not come to yet.
        """
        restarted = after > self.last or (run is not None and run != self.run)
        start = 0 if restarted else after
        start = max([start, *(event.seq for event in (*self._all(), *self._gone.values()) if event.at < since)])
        found = [event for event in self._all() if event.seq > start]
        wanted = None if kinds is None else set(kinds)
        lost = any(gone.seq > start for kind, gone in self._gone.items() if wanted is None or kind in wanted)
        past = sorted((e for e in found if wanted is None or e.kind in wanted), key=attrgetter("seq"))
        if restarted or lost:
            reason = "the node was restarted since" if restarted else "they are not kept any more"
            count = self.last - start - len(found)
            return [EventsDropped(at=self.now(), count=count, reason=reason), *past]
        return list(past)

    def _all(self) -> Iterable[NetworkEvent]:
        return chain.from_iterable(self._kept.values())

    def close(self) -> None:
        """End every subscription once it has delivered what it holds."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription._end()
        self._subscriptions.clear()
