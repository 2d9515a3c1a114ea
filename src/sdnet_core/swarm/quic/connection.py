"""One QUIC connection: drives the core, and hands out streams.

One task sends and keeps the time. Datagrams are taken in by whoever reads the socket; everybody else only changes
state, without awaiting in between, so cancelling a caller leaves nothing half done.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.stream import QuicStream as CoreStream
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from ..muxed import OwnSecurity
from .abc import QuicError, Socket
from .core import CONNECTION_WINDOW, STREAM_WINDOW, Core
from .stream import QuicStream

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

_FLUSH_S = 0.25
_PING_S = 10.0
"""A connection is asked for a sign of life when it has been silent for so long, which also keeps NATs' tables."""
_LINGER_S = 60.0
"""How long the peer may take to end its direction of a stream that we have ended."""
_REFUSALS_APART_S = 0.1
_MAX_WAITING_STREAMS = 256
_MAX_BACKLOG = 8
_GROWTH_BUDGET_BYTES = 16 * 1024 * 1024
"""What all streams of one connection together may grow their receive windows by."""
_CERTIFICATE_REQUIRED = QuicErrorCode.CRYPTO_ERROR + 116


class Connection(OwnSecurity):
    """One connection. It is driven by :meth:`run`, which ends with it.

    :param make_core: makes the core when the handshake begins.
    :param address: the peer's socket address; of a client's own socket, which is connected, anything that is constant.
    :param multiaddr: tells the peer's address from a socket address.
    """

    def __init__(
        self,
        make_core: Callable[[], Core],
        sock: Socket,
        address: Any,
        multiaddr: Callable[[Any], Multiaddr],
        *,
        is_initiator: bool,
    ) -> None:
        self._is_initiator = is_initiator
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.on_fail: Callable[[], None] | None = None
        self.answered = trio.Event()
        self.refused = False
        self._make_core = make_core
        self._core: Core | None = None
        self._socket = sock
        self._address = address
        self._multiaddr = multiaddr
        self._failure: str | None = None
        self._streams: dict[int, QuicStream] = {}
        self._lingering: dict[int, float] = {}
        self._backlog: list[tuple[bytes, Any]] = []
        self._outbox: deque[tuple[bytes, Any]] = deque()
        self._secured = trio.Event()
        self._is_complete = False
        self._is_released = False
        self._waiting: deque[QuicStream] = deque()
        self._wanting_room: dict[QuicStream, None] = {}
        self._growth_budget = _GROWTH_BUDGET_BYTES
        self._heard_at = trio.current_time()
        self._asked_at = self._heard_at
        self._refused_at = 0.0
        self._wake = trio.lowlevel.ParkingLot()
        self._must_flush = False
        self._changed = trio.lowlevel.ParkingLot()

    # What the swarm asks.

    async def authenticate(self, expected: ID | None) -> None:
        """Do the handshake up to the point where the peer is known; the other side has no connection yet."""
        self.begin()
        await self._secured.wait()
        if self._failure is not None:
            raise QuicError(self._failure)
        if expected is not None and self.peer_id != expected:
            raise PeerIDMismatchesPubkey(f"{self.peer_id} answered in the place of {expected}.")

    async def agree(self) -> None:
        """Complete the handshake, and wait until the other side has."""
        self._is_released = True
        self.wake()
        while self._failure is None and not self.core.is_confirmed:
            await self._changed.park()
        if self._failure is not None:
            raise QuicError(self._failure)

    @property
    def core(self) -> Core:
        """The connection without I/O, once the handshake has begun."""
        if self._core is None:
            raise QuicError("The connection has not begun.")
        return self._core

    @property
    def peer_id(self) -> ID:  # type: ignore[override]
        """Who is at the other end."""
        remote = self.core.remote
        assert remote is not None
        return remote

    @property
    def streams(self) -> dict[int, QuicStream]:
        """The streams that are not done, by their ids."""
        return self._streams

    @property
    def failure(self) -> str | None:
        """Why the connection is gone, or None while it is not."""
        return self._failure

    @property
    def is_initiator(self) -> bool:
        """Whether we opened the connection."""
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and self._failure is None

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self._failure is not None

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The peer's address on this connection, which it may change."""
        return [self._multiaddr(self._peer_address())]

    def get_connection_type(self) -> ConnectionType:
        """Always direct."""
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer."""
        parts = [value for _, value in self._multiaddr(self._peer_address()).items()]
        return str(parts[0]), int(parts[1])

    def _peer_address(self) -> Any:
        path = self._core.get_peer_address() if self._core is not None else None
        return self._address if path is None else path

    async def open_stream(self) -> QuicStream:
        """Open a stream; waits while the peer lets us open no more.

        :raises MuxedStreamError: the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        while self._failure is None and not self.core.can_open:
            await self._changed.park()
        if self._failure is not None:
            raise MuxedStreamError(self._failure)
        return self._add_stream(self.core.open())

    async def accept_stream(self) -> QuicStream:
        """Wait for a stream that the peer opens.

        :raises MuxedConnUnavailable: the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._failure is not None:
                raise MuxedConnUnavailable(self._failure)
            await self._changed.park()
        return self._waiting.popleft()

    async def start(self) -> None:
        """Wait until the connection is gone; :meth:`run` does the work."""
        self.event_started.set()
        try:
            await self.event_closed.wait()
        finally:
            self.hang_up("The connection was closed.")
            if self.on_close is not None:
                with trio.CancelScope(shield=True):
                    await self.on_close()

    async def close(self) -> None:
        """Send what is written, if the peer takes it within a quarter of a second, and close."""
        if self._failure is None and self._is_released:
            with trio.CancelScope(shield=True), trio.move_on_after(_FLUSH_S):
                while self._failure is None and self._is_unacknowledged():
                    await self._changed.park()
        self.hang_up("The connection was closed by this side.")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _is_unacknowledged(self) -> bool:
        return any(stream.sender._buffer_stop > stream.sender._buffer_start for stream in self.core._streams.values())

    def hang_up(self, reason: str) -> None:
        """Close at once."""
        if self._failure is not None:
            return
        farewell: bytes | None = None
        if self._core is not None and not self._core.is_done and self._core._network_paths:
            self._core.close(QuicErrorCode.NO_ERROR)
            for farewell, address in self._core.datagrams_to_send(trio.current_time()):
                self._socket.send(farewell, address)
        self._fail(reason, farewell)

    # The driver.

    def begin(self) -> None:
        """Begin the handshake."""
        if self._core is None and self._failure is None:
            core = self._core = self._make_core()
            self._socket.add_id(core.host_cid, self)
            if self._is_initiator:
                core.connect(self._address, trio.current_time())
            backlog, self._backlog = self._backlog, []
            for datagram, address in backlog:
                self.receive(datagram, address)
            self.wake()

    async def run(self) -> None:
        """Drive the connection until it is gone. Raises nothing but cancellation."""
        try:
            while self._failure is None:
                self._must_flush = False
                if self._core is None or (self._is_complete and not self._is_released):
                    # What completes the handshake waits until we agree.
                    await self._wake.park()
                    continue
                await self._flush()
                if self._must_flush or self._failure is not None:
                    continue
                await self._wait(self._core)
        except Exception as exc:
            logger.exception("A QUIC connection failed.")
            self.hang_up(f"The connection was lost ({type(exc).__name__}).")
        finally:
            self.hang_up("The connection was closed.")

    async def _flush(self) -> None:
        core = self.core
        self._outbox.extend(core.datagrams_to_send(trio.current_time()))
        while self._outbox and self._failure is None:
            datagram, address = self._outbox[0]
            if not self._socket.send(datagram, address):
                await self._socket.writable()
                continue
            self._outbox.popleft()
        for stream in [one for one in self._wanting_room if one.flushed()]:
            self._wanting_room.pop(stream, None)
        self._take_events()
        self._changed.unpark_all()

    async def _wait(self, core: Core) -> None:
        timer = core.get_timer()
        ask_at = max(self._heard_at, self._asked_at) + min(_PING_S, core.idle_timeout_s / 3)
        if core.is_confirmed and (timer is None or ask_at < timer):
            timer = ask_at
        with trio.move_on_at(float("inf") if timer is None else timer) as scope:
            await self._wake.park()
        if not scope.cancelled_caught:
            return
        now = trio.current_time()
        if core.is_confirmed and now >= ask_at:
            self._asked_at = now
            core.send_ping(0)
            self._prune(now)
        if (due := core.get_timer()) is not None and now >= due:
            core.handle_timer(now)
        self._take_events()

    def wake(self) -> None:
        """There may be something to send."""
        self._must_flush = True
        self._wake.unpark_all()

    def receive(self, datagram: bytes, address: Any) -> None:
        """Take a datagram in."""
        if self._core is None:
            if len(self._backlog) < _MAX_BACKLOG:
                self._backlog.append((datagram, address))
            return
        if self._failure is not None:
            return
        self._heard_at = trio.current_time()
        self._core.receive_datagram(datagram, address, self._heard_at)
        self.answered.set()
        self._take_events()
        if not self._must_flush:
            # Once for all the datagrams that are read together.
            self.wake()

    def unreachable(self) -> None:
        """The peer's machine says that nobody listens there.

        Of a peer that has been heard, it must say so twice with nothing heard in between.
        """
        now = trio.current_time()
        if not self.answered.is_set():
            self.refused = True
            self.hang_up("Nobody listens there.")
        elif self._refused_at > self._heard_at and now - self._refused_at >= _REFUSALS_APART_S:
            self.hang_up("The peer is gone.")
        elif self._refused_at <= self._heard_at:
            self._refused_at = now
        if self._failure is None and self._is_released:
            self.core.send_ping(0)
            self.wake()

    # What the core tells.

    def _take_events(self) -> None:
        core = self.core
        while (event := core.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    self._data_received(event)
                case events.StreamReset(stream_id=stream_id):
                    self._reset_received(stream_id)
                case events.StopSendingReceived(stream_id=stream_id):
                    if (stream := self._streams.get(stream_id)) is not None:
                        stream.stop_received()
                case events.ConnectionIdIssued(connection_id=connection_id):
                    self._socket.add_id(connection_id, self)
                case events.ConnectionIdRetired(connection_id=connection_id):
                    self._socket.remove_id(connection_id)
                case events.HandshakeCompleted():
                    self._completed(core)
                case events.ConnectionTerminated(reason_phrase=reason):
                    self._fail(f"The connection ended: {reason or 'closed by the peer'}.", None)
        if core.is_done and self._failure is None:
            # What tells the peer why goes out first; for how the core winds down nobody has to wait.
            farewell: bytes | None = None
            for farewell, address in core.datagrams_to_send(trio.current_time()):
                self._socket.send(farewell, address)
            self._fail(f"The connection ended: {core.close_reason or 'closed by the peer'}.", farewell)

    def _completed(self, core: Core) -> None:
        if core.remote is None:
            core.close(_CERTIFICATE_REQUIRED, reason_phrase="A libp2p certificate is required.")
            return
        self._is_complete = True
        self._secured.set()

    def _data_received(self, event: events.StreamDataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            if event.stream_id in self._lingering:
                self.consumed(len(event.data))
                return
            stream = self._inbound(event.stream_id)
        if stream is None:
            self.consumed(len(event.data))
        else:
            stream.feed(event.data, event.end_stream)

    def _reset_received(self, stream_id: int) -> None:
        core_stream = self.core.stream(stream_id)
        if core_stream is not None:
            # What was never delivered counts against the connection's window, too.
            self.consumed(core_stream.receiver.highest_offset - core_stream.receiver._buffer_start)
        stream = self._streams.get(stream_id)
        if stream is None and stream_id not in self._lingering:
            stream = self._inbound(stream_id)
        if stream is not None:
            stream.reset_received()

    def _inbound(self, stream_id: int) -> QuicStream | None:
        core_stream = self.core.stream(stream_id)
        if core_stream is None:
            return None
        stream = self._add_stream(core_stream)
        if len(self._waiting) >= _MAX_WAITING_STREAMS:
            stream.abort("Too many streams wait to be accepted.")
        else:
            self._waiting.append(stream)
            self._changed.unpark_all()
        return stream

    def _add_stream(self, core_stream: CoreStream) -> QuicStream:
        stream = QuicStream(self, core_stream)
        self._streams[stream.stream_id] = stream
        return stream

    def _fail(self, reason: str, farewell: bytes | None) -> None:
        if self._failure is not None:
            return
        self._failure = reason
        logger.debug("the connection to %s: %s", self._address, reason)
        if self.on_fail is not None:
            # Handlers are cancelled before their streams break under them.
            self.on_fail()
        for stream in list(self._streams.values()):
            stream.break_off(reason)
        self._streams.clear()
        self._waiting.clear()
        self._wanting_room.clear()
        self._socket.forget(self, farewell)
        self._secured.set()
        self.answered.set()
        self.event_closed.set()
        self._wake.unpark_all()
        self._changed.unpark_all()

    # What streams ask.

    @property
    def unsent(self) -> int:
        """What of all streams was written and never sent."""
        return sum(stream.unsent for stream in self._streams.values())

    @property
    def credit(self) -> int:
        """How many bytes the peer takes beyond what was sent."""
        return self.core._remote_max_data - self.core._remote_max_data_used

    @property
    def round_trip_s(self) -> float:
        """The time of a round trip."""
        return self.core.round_trip_s

    def consumed(self, size: int) -> None:
        """What has come in was read, or never will be."""
        if size:
            self.core.consumed(size)

    def take_growth(self, wanted: int) -> int:
        """Have some of the budget by which windows may grow."""
        taken = max(0, min(wanted, self._growth_budget))
        self._growth_budget -= taken
        return taken

    def give_growth(self, size: int) -> None:
        """Give it back."""
        self._growth_budget += size

    def hurry(self, core_stream: CoreStream) -> None:
        """Let a stream be the next to send."""
        self.core.hurry(core_stream)

    def wait_for_room(self, stream: QuicStream) -> None:
        """Tell a stream when some of what it has written has gone."""
        self._wanting_room[stream] = None

    def forget(self, stream: QuicStream) -> None:
        """A stream is done for its user; what the peer still sends of it is dropped."""
        if self._streams.pop(stream.stream_id, None) is None:
            return
        stream.give_back_growth()
        self._lingering[stream.stream_id] = trio.current_time() + _LINGER_S
        if len(self._lingering) > 64:
            self._prune(trio.current_time())
        self._changed.unpark_all()

    def _prune(self, now: float) -> None:
        """Give up the streams that are done on both sides, and those that the peer does not end."""
        for stream_id, until in list(self._lingering.items()):
            core_stream = self.core.stream(stream_id)
            if core_stream is None:
                del self._lingering[stream_id]
            elif now >= until and not core_stream.receiver.is_finished:
                core_stream.receiver.is_finished = True
                self.wake()


assert CONNECTION_WINDOW >= 256 * STREAM_WINDOW + _GROWTH_BUDGET_BYTES
