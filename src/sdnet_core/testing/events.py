"""Records what happens in a node, so that a test waits for it instead of sleeping."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, overload

import anyio

from ..events import NetworkEvent, Subscription

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["EventRecorder", "record_events"]

E = TypeVar("E", bound=NetworkEvent)

_BUFFER = 100_000


class EventRecorder:
    """The events of a node since the recording began. Made by `record_events`; for one task at a time."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._recorded: list[NetworkEvent] = []
        self._given: set[int] = set()

    @property
    def events(self) -> tuple[NetworkEvent, ...]:
        """Everything so far, in order."""
        while self._subscription._queue:
            self._recorded.append(self._subscription._queue.popleft())
        return tuple(self._recorded)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of everything so far, in order."""
        return tuple(event.kind for event in self.events)

    def of(self, kind: type[E]) -> tuple[E, ...]:
        """Those of one class so far."""
        return tuple(event for event in self.events if isinstance(event, kind))

    @overload
    async def wait_for(
        self, kind: type[E], *, where: Callable[[E], bool] | None = None, timeout_s: float = 5.0
    ) -> E: ...

    @overload
    async def wait_for(
        self, kind: str, *, where: Callable[[NetworkEvent], bool] | None = None, timeout_s: float = 5.0
    ) -> NetworkEvent: ...

    async def wait_for(
        self, kind: type[E] | str, *, where: Callable[..., bool] | None = None, timeout_s: float = 5.0
    ) -> NetworkEvent:
        """Give the first event of a kind that this has not given before, waiting for it if need be.

        :param kind: its class, or its ``kind``.
        :param where: what else must hold of it.
        :raises AssertionError: none came in time; says what came instead.
        """
        position = 0
        with anyio.move_on_after(timeout_s):
            while True:
                for index, event in enumerate(self.events[position:], start=position):
                    if index not in self._given and _fits(event, kind) and (where is None or where(event)):
                        self._given.add(index)
                        return event
                position = len(self._recorded)
                try:
                    self._recorded.append(await self._subscription.receive())
                except anyio.EndOfStream:
                    break
        wanted = kind if isinstance(kind, str) else kind.__name__
        raise AssertionError(
            f"No {wanted} within {timeout_s:g} s. There were: {', '.join(self.kinds) or 'no events at all'}."
        )


@asynccontextmanager
async def record_events(core: NetworkingCore) -> AsyncIterator[EventRecorder]:
    """Record all events of a node from now on.

    Example::

        async with record_events(a) as events:
            nodes.cut(a, b)
            lost = await events.wait_for(ConnectionLost, timeout_s=2)
            assert lost.device_name == "node1"
    """
    async with core.events.subscribe(buffer=_BUFFER) as subscription:
        yield EventRecorder(subscription)


def _fits(event: NetworkEvent, kind: type[NetworkEvent] | str) -> bool:
    return event.kind == kind if isinstance(kind, str) else isinstance(event, kind)
