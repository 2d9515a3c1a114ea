"""A live, proven connection to a paired device."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from ..session import ControlChannel, ControlEnd, EndReason, GoodbyeReason, Session

__all__ = ["ConnectionState", "DeviceConnection", "explain_end", "transport_of"]


class ConnectionState(StrEnum):
    """Where the way to a paired device stands."""

    CONNECTING = "connecting"
    """It is being dialled, for the first time since the node started."""
    AUTHENTICATING = "authenticating"
    """It was reached, and the two prove to each other who they are."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """It was connected, and is being dialled again."""
    DISCONNECTED = "disconnected"
    """Nothing is under way: the connection has just ended, or none is wanted now."""
    FAILED = "failed"
    """The last attempt failed; the next one comes by itself."""


def transport_of(address: str | None) -> str:
    """What a multiaddr goes over, such as ``tcp``, ``quic`` or ``ws``; empty if that is not known."""
    parts = (address or "").split("/")
    for name in ("p2p-circuit", "webrtc-direct", "webrtc", "wss", "ws", "quic-v1", "quic", "tcp", "memory"):
        if name in parts:
            return name.removesuffix("-v1")
    return ""


@dataclass(eq=False, slots=True)
class DeviceConnection:
    """One session with a device, its control channel, and the streams that live on it.

    :param address: of the other side, as the swarm knows it.
    :param dialled_address: the address, if the device can be dialled there again; None if it dialled us.
    :param opened_at: monotonic time, seconds.
    :param began_at: the same moment in seconds since the epoch.
    :ivar messages_sent: that were acknowledged on it.
    :ivar messages_received: messages and requests that handlers have taken from it.
    :ivar latency_s: smoothed round-trip time, None before the first ping.
    :ivar used_at: when a stream last ran on it, monotonic time, seconds; `look` moves it.
    :ivar pinged_at: when the round trip was last measured, the same.
    :ivar let_go: it made room for others, so that it is not made again at once.
    :ivar retiring: another connection to the device has taken over; what still runs on this one is to end.
    :ivar control_scope: the control channel runs in it; it outlives the streams for a last word.
    """

    device_id: uuid.UUID
    session: Session
    control: ControlChannel
    address: str | None
    dialled_address: str | None = None
    opened_at: float = 0.0
    began_at: float = 0.0
    messages_sent: int = 0
    messages_received: int = 0
    latency_s: float | None = None
    used_at: float = 0.0
    pinged_at: float = float("-inf")
    let_go: bool = False
    retiring: bool = False
    ended: anyio.Event = field(default_factory=anyio.Event)
    reason: str = ""
    control_scope: anyio.CancelScope | None = None
    _scopes: set[anyio.CancelScope] = field(default_factory=set)
    _streams_seen: int = 0

    @property
    def busy(self) -> bool:
        """Whether streams run on it."""
        return bool(self._scopes) or bool(self.session.streams)

    def retire(self) -> None:
        """Tell the streams to end: another connection has taken over."""
        self.retiring = True
        self.session.epoch.retire()

    def look(self, now: float) -> None:
        """Notice whether streams ran on it since the last look.

        :param now: monotonic time, seconds.
        """
        traffic = self.session.traffic
        seen = traffic.streams_opened + traffic.streams_accepted
        if seen != self._streams_seen or self.busy:
            self._streams_seen = seen
            self.used_at = now

    @property
    def peer_id(self) -> str:
        """The peer at the other end."""
        return self.session.peer_id

    def measured(self, round_trip_s: float) -> None:
        """Take one round-trip time into the average (EWMA, weight 1/8 as in RFC 6298)."""
        self.latency_s = round_trip_s if self.latency_s is None else self.latency_s * 0.875 + round_trip_s * 0.125

    def end(self, reason: str) -> None:
        """End the connection: its streams are cancelled and whoever supervises it wakes up. The first reason stays."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()
        self.cancel_streams()

    def cancel_streams(self) -> None:
        """Cancel what runs on streams of the connection."""
        for scope in tuple(self._scopes):
            scope.cancel()

    @contextmanager
    def bound(self) -> Iterator[anyio.CancelScope]:
        """A cancel scope that ends with the connection."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.ended.is_set():
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)


def explain_end(end: ControlEnd) -> str:
    """Say why a session ended, to a person."""
    match end.reason, end.goodbye:
        case EndReason.OUR_GOODBYE, GoodbyeReason.SHUTDOWN:
            return "this device stopped"
        case EndReason.OUR_GOODBYE, GoodbyeReason.IDLE:
            return "it made room for another device"
        case EndReason.OUR_GOODBYE, _:
            return f"this device hung up ({end.goodbye})"
        case EndReason.PEER_GOODBYE, GoodbyeReason.SHUTDOWN:
            return "the other device stopped"
        case EndReason.PEER_GOODBYE, GoodbyeReason.NOT_PAIRED:
            return "the other device ended the pairing"
        case EndReason.PEER_GOODBYE, GoodbyeReason.IDLE:
            return "the other device made room for others"
        case EndReason.PEER_GOODBYE, _:
            return f"the other device hung up ({end.goodbye})"
        case EndReason.STALE, _:
            return "the other device fell silent"
        case EndReason.EXPIRED, _:
            return "the session's keys expired"
        case EndReason.VIOLATION, _:
            return f"the other device broke the protocol: {end.detail}"
        case _:
            return "the connection was lost"
