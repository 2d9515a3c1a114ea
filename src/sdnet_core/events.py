"""What happens in a node, as typed events, and the bus that brings them to whoever listens.

Plugins define their own events as further subclasses of :class:`NetworkEvent`.
"""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import msgspec

from .clock import Clock

__all__ = [
    "ApprovalDecided",
    "ApprovalRequested",
    "AuthenticationFailed",
    "ConnectionEstablished",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionStateChanged",
    "DeviceConfirmed",
    "DevicePaired",
    "DeviceRemoved",
    "DeviceRenamed",
    "DeviceRevoked",
    "EventBus",
    "EventsDropped",
    "MessageReceived",
    "NetworkEvent",
    "NodeStarted",
    "PairingEnded",
    "PairingStarted",
    "PeerDisconnected",
    "PeerDiscovered",
    "PeerRefused",
    "PluginFailed",
    "StoreRecovered",
    "Subscription",
    "TrustChanged",
    "VaultChanged",
]


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
class NodeStarted(NetworkEvent):
    """The node listens and is ready."""

    kind = "node-started"
    audited = True
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDiscovered(NetworkEvent):
    """A peer was seen on the network."""

    kind = "peer-discovered"
    peer_id: str
    addresses: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDisconnected(NetworkEvent):
    """The last connection to a peer, paired or not, is gone."""

    kind = "peer-disconnected"
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEstablished(NetworkEvent):
    """A paired device is connected and has proven itself."""

    kind = "connection-established"
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(NetworkEvent):
    """A paired device is no longer connected."""

    kind = "connection-lost"
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFailed(NetworkEvent):
    """An attempt to connect to a paired device failed; it will be tried again."""

    kind = "connection-error"
    device_id: uuid.UUID
    device_name: str
    reason: str
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStateChanged(NetworkEvent):
    """The way to a paired device has come to another state.

    :param state: ``connecting``, ``authenticating``, ``connected``, ``reconnecting``, ``disconnected`` or ``failed``.
    :param reason: why, where there is more to say.
    """

    kind = "connection-state"
    device_id: uuid.UUID
    device_name: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePaired(NetworkEvent):
    """A device was stored as paired."""

    kind = "device-paired"
    audited = True
    device_id: uuid.UUID
    device_name: str
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRemoved(NetworkEvent):
    """A device is no longer paired: it was revoked or forgotten, or it told us that it has forgotten us."""

    kind = "device-removed"
    audited = True
    device_id: uuid.UUID
    device_name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStarted(NetworkEvent):
    """A pairing with a peer has begun; ends with `DevicePaired` or `PairingEnded`."""

    kind = "peer-pairing-started"
    peer_id: str
    session_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingEnded(NetworkEvent):
    """A pairing with a peer has ended without success."""

    kind = "peer-pairing-ended"
    peer_id: str
    session_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfirmed(NetworkEvent):
    """The other side has confirmed a pairing that was pending."""

    kind = "device-confirmed"
    audited = True
    device_id: uuid.UUID
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRevoked(NetworkEvent):
    """A person has revoked a device: its connections are cut and it is refused from now on.

    :param told: whether it was connected, so that it could be told.
    """

    kind = "device-revoked"
    audited = True
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    told: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChanged(NetworkEvent):
    """A device is trusted more or less than before."""

    kind = "trust-changed"
    audited = True
    device_id: uuid.UUID
    device_name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRenamed(NetworkEvent):
    """A device has got another name on this one."""

    kind = "device-renamed"
    audited = True
    device_id: uuid.UUID
    old_name: str
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused(NetworkEvent):
    """Somebody was refused. Told at a bounded rate.

    :param what: was asked for: ``connection``, ``session``, or a protocol's name.
    :param device_id: None for a stranger.
    :param count: refusals of that kind since this was last told.
    """

    kind = "peer-refused"
    audited = True
    peer_id: str
    device_id: uuid.UUID | None
    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationFailed(NetworkEvent):
    """Somebody did not prove to be the device it should be. Told at a bounded rate.

    :param count: failures since this was last told.
    """

    kind = "authentication-failed"
    audited = True
    peer_id: str
    device_id: uuid.UUID | None
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested(NetworkEvent):
    """A device waits for a person to allow what it asks for.

    :param protocol: the protocol's name.
    :param what: more about it, for the person; may be empty.
    :param expires_at: when it counts as denied, seconds since the epoch.
    """

    kind = "approval-requested"
    audited = True
    approval_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    protocol: str
    what: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided(NetworkEvent):
    """What a device waited for was allowed or not.

    :param decision: ``approved``, ``denied``, ``timed-out``, or ``withdrawn`` when the device left before.
    """

    kind = "approval-decided"
    audited = True
    approval_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    protocol: str
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultChanged(NetworkEvent):
    """Another secret protects what lies on disk.

    :param mode: what protects it now, as `sdnet status` shows it.
    """

    kind = "vault-changed"
    audited = True
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered(NetworkEvent):
    """Something on disk was damaged, or was older than it should be, and was put right.

    :param detail: what and how, for a person.
    """

    kind = "store-recovered"
    audited = True
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived(NetworkEvent):
    """A request from a paired device was handed to a protocol's handler. Carries no content."""

    kind = "message-received"
    device_id: uuid.UUID
    protocol: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailed(NetworkEvent):
    """A plugin raised where it should not; the node goes on."""

    kind = "plugin-failed"
    plugin: str
    reason: str


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
