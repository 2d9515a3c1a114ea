"""Which connections there are, and which one goes first when another device needs its place."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

from ..clock import Clock
from ..session import Session, Traffic
from .connection import DeviceConnection

__all__ = ["ConnectionPool"]


class ConnectionPool:
    """The live connections of a node, bounded.

    :param max_connections: devices connected at once.
    :param has_messages: whether messages wait for a device.
    """

    def __init__(self, clock: Clock, max_connections: int, has_messages: Callable[[uuid.UUID], bool]) -> None:
        self.max_connections = max_connections
        self._clock = clock
        self._has_messages = has_messages
        self._live: dict[Session, DeviceConnection] = {}
        self._waiting: dict[uuid.UUID, None] = {}
        self._ended = Traffic(0.0, 0.0)
        self._ended_rotations = 0

    def __iter__(self) -> Iterator[DeviceConnection]:
        return iter(tuple(self._live.values()))

    def __contains__(self, live: DeviceConnection) -> bool:
        return live.session in self._live

    def __len__(self) -> int:
        return sum(not live.ended.is_set() and not live.retiring for live in self._live.values())

    def add(self, live: DeviceConnection) -> None:
        """Take a connection in."""
        self._live[live.session] = live

    def remove(self, live: DeviceConnection) -> None:
        """Take a connection out."""
        if self._live.pop(live.session, None) is not None:
            self._ended = self._ended + live.session.traffic
            self._ended_rotations += live.session.rotations

    def traffic(self) -> Traffic:
        """What has moved over all connections since the node started."""
        return sum((live.session.traffic for live in self._live.values()), self._ended)

    def rotations(self) -> int:
        """How often keys were changed, over all connections since the node started."""
        return self._ended_rotations + sum(session.rotations for session in self._live)

    def by_session(self, session: Session) -> DeviceConnection | None:
        """The connection that a session belongs to."""
        return self._live.get(session)

    def of_device(self, device_id: uuid.UUID) -> list[DeviceConnection]:
        """The connections to a device: one, but while it ends."""
        return [live for live in self._live.values() if live.device_id == device_id]

    def uses(self, peer_id: str) -> bool:
        """Whether a session with a peer lives."""
        return any(live.peer_id == peer_id for live in self._live.values())

    def has_room(self, device_id: uuid.UUID | None) -> bool:
        """Whether a device may be connected without another one having to go."""
        if len(self) < self.max_connections:
            return True
        return any(live.device_id == device_id for live in self._live.values())

    def least_useful(self, *, but: DeviceConnection | None = None) -> DeviceConnection | None:
        """The connection that may go first: without running streams, better without messages, unused for longest."""
        now = self._clock.monotonic()
        idle = []
        for live in self._live.values():
            live.look(now)
            if live is not but and not live.busy and not live.ended.is_set() and not live.retiring:
                idle.append(live)
        return min(idle, key=lambda live: (self._has_messages(live.device_id), live.used_at), default=None)

    def wait_for_room(self, device_id: uuid.UUID) -> None:
        """A device would be connected if there were room."""
        self._waiting[device_id] = None

    def next_waiting(self) -> uuid.UUID | None:
        """The device that has waited for room the longest, if there is room; it waits no more."""
        if not self._waiting or len(self) >= self.max_connections:
            return None
        device_id = next(iter(self._waiting))
        del self._waiting[device_id]
        return device_id
