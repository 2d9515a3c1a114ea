"""The queue behind :attr:`Swarm.events`."""

from __future__ import annotations

from collections import deque

import anyio
from anyio.abc import ObjectReceiveStream

from .abc import SwarmEvent

__all__ = ["EventQueue"]

_MAX_UNREAD = 1024


class EventQueue(ObjectReceiveStream[SwarmEvent]):
    """Events in order, for one reader; putting one never waits.

    Its length is bounded by the number of connections: a swarm makes no new one while the queue is :attr:`full`, and a
    connection that exists causes one more event at most.
    """

    def __init__(self) -> None:
        self._events: deque[SwarmEvent] = deque()
        self._closed = False
        self._changed: anyio.Event | None = None

    @property
    def full(self) -> bool:
        """Whether so many events are unread that no new connection must be made."""
        return len(self._events) >= _MAX_UNREAD

    def put(self, event: SwarmEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._notify()

    def finish(self) -> None:
        """There will be no more events; what is unread can still be read."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def receive(self) -> SwarmEvent:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._events:
            if self._closed:
                raise anyio.EndOfStream
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        event = self._events.popleft()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return event

    async def aclose(self) -> None:
        self._events.clear()
        self.finish()
        await anyio.lowlevel.checkpoint()
