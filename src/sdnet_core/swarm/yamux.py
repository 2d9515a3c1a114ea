"""The stream multiplexer ``/yamux/1.0.0`` for py-libp2p: whole frames, enforced windows, no hidden time-outs.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md and, for libp2p,
https://github.com/libp2p/specs/blob/master/yamux/README.md. It replaces the library's own implementation, in which a
cancelled write breaks the connection, a reader that pauses for 5 s loses the stream, windows are not enforced, and a
reset looks like an orderly end (libp2p 0.8.1).

One task reads and one task writes. Everybody else only changes state and queues whole frames, without awaiting in
between, so cancelling a caller never leaves half a frame behind.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from .yamux_stream import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GO_AWAY_NORMAL,
    HEADER,
    MAX_QUEUED_BYTES,
    NOISE_PLAINTEXT_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    YamuxStream,
)

__all__ = ["PROTOCOL_ID", "Yamux", "YamuxStream"]

logger = logging.getLogger(__name__)

PROTOCOL_ID = "/yamux/1.0.0"

_MAX_QUEUED_CONTROL_FRAMES = 4096
"""A peer that makes us answer without reading the answers is cut off here."""
_GROWTH_BUDGET_BYTES = 32 * 1024 * 1024
"""What all streams of one connection together may grow their receive windows by."""
_FLUSH_S = 0.25
_LINGER_S = 60.0


class Yamux(IMuxedConn):
    """One multiplexed connection over a secured one.

    :param max_inbound_streams: streams that the peer may have open at a time; more are reset.
    """

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        *,
        max_inbound_streams: int = 256,
    ) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.on_fail: Callable[[], None] | None = None
        self.failure: str | None = None
        self.streams: dict[int, YamuxStream] = {}
        self.growth_budget = _GROWTH_BUDGET_BYTES
        self.queued_bytes = 0
        self.room = trio.lowlevel.ParkingLot()
        self._initiator: bool = conn.is_initiator
        self._next_id = 1 if self._initiator else 2
        self._last_inbound_id = 0
        self._max_inbound = max_inbound_streams
        self._inbound = 0
        self._accept_send, self._accept_receive = trio.open_memory_channel[YamuxStream](max_inbound_streams)
        self._control: deque[bytes] = deque()
        self._data: deque[bytes] = deque()
        self._wake = trio.lowlevel.ParkingLot()
        self._flushed = trio.lowlevel.ParkingLot()
        self._writing = False
        self._lingering: deque[tuple[float, YamuxStream]] = deque()
        self._remote_going_away = False
        # What of the incoming bytes is not a whole header yet, and the payload that is being received.
        self._partial = b""
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: YamuxStream | None = None

    # What py-libp2p asks a connection.

    @property
    def is_initiator(self) -> bool:
        """Whether we opened the connection."""
        return self._initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and self.failure is None

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self.failure is not None

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The peer's address on this connection."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Direct or relayed."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self.secured_conn.get_remote_address()

    async def open_stream(self) -> YamuxStream:
        """Open a stream; the peer has not agreed to it yet.

        :raises MuxedStreamError: the connection is closed or closing, or has run out of stream ids.
        """
        await trio.lowlevel.checkpoint()
        self._prune_lingering()
        if self.failure is not None or self._remote_going_away or self._next_id > 0xFFFFFFFF:
            raise MuxedStreamError(self.failure or "The peer takes no more streams on this connection.")
        stream = YamuxStream(self, self._next_id)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.queue_control(WINDOW_UPDATE, SYN, stream.stream_id, 0)
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Wait for a stream that the peer opens.

        :raises MuxedConnUnavailable: the connection is gone.
        """
        try:
            return await self._accept_receive.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable(self.failure or "The connection is closed.") from None

    async def start(self) -> None:
        """Run the connection until it is closed or lost. Raises nothing but cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_task, nursery.cancel_scope)
                nursery.start_soon(self._write_task, nursery.cancel_scope)
                self.event_started.set()
        finally:
            self.fail("The connection was closed.")
            with trio.CancelScope(shield=True):
                await self._close_secured()
                if self.on_close is not None:
                    await self.on_close()

    async def close(self) -> None:
        """Say good-bye, send what is queued if the peer takes it within a quarter of a second, and close."""
        with trio.CancelScope(shield=True):
            if self.failure is None:
                self.queue_control(GO_AWAY, 0, 0, GO_AWAY_NORMAL)
                with trio.move_on_after(_FLUSH_S):
                    while self.failure is None and (self._control or self._data or self._writing):
                        await self._flushed.park()
            self.fail("The connection was closed by this side.")
            await self._close_secured()

    async def _close_secured(self) -> None:
        with trio.move_on_after(_FLUSH_S):
            try:
                await self.secured_conn.close()
            except Exception as exc:
                logger.debug("closing the connection to %s: %s", self.peer_id, exc)

    def fail(self, reason: str) -> None:
        """End the connection: every stream breaks, everybody who waits is woken."""
        if self.failure is not None:
            return
        self.failure = reason
        if self.on_fail is not None:
            # Handlers are cancelled before their streams break under them.
            self.on_fail()
        for stream in list(self.streams.values()):
            stream.break_off(reason)
        self.streams.clear()
        self._control.clear()
        self._data.clear()
        self.queued_bytes = 0
        self._accept_send.close()
        self.event_closed.set()
        for lot in (self.room, self._wake, self._flushed):
            lot.unpark_all()

    # Sending.

    def queue_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue a frame without payload, ahead of all data."""
        if self.failure is not None:
            return
        if len(self._control) >= _MAX_QUEUED_CONTROL_FRAMES:
            self.fail("The peer does not read what it made us answer.")
            return
        self._control.append(HEADER.pack(0, kind, flags, stream_id, length))
        self._wake.unpark_all()

    def queue_data(self, stream_id: int, payload: memoryview) -> None:
        """Queue a data frame."""
        frame = b"".join((HEADER.pack(0, DATA, 0, stream_id, len(payload)), payload))
        self._data.append(frame)
        self.queued_bytes += len(frame)
        self._wake.unpark_all()

    def queue_end(self, flag: int, stream_id: int) -> None:
        """Queue a stream's orderly end or reset, behind its data."""
        if self.failure is not None:
            return
        if self.queued_bytes >= 2 * MAX_QUEUED_BYTES:
            self.fail("The peer does not read what it made us answer.")
            return
        self._data.append(HEADER.pack(0, WINDOW_UPDATE, flag, stream_id, 0))
        self.queued_bytes += HEADER.size
        self._wake.unpark_all()

    def _next_batch(self) -> bytes:
        """As many queued frames as fit one Noise message."""
        frames: list[bytes] = []
        size = 0
        for queue in (self._control, self._data):
            while queue and size + len(queue[0]) <= NOISE_PLAINTEXT_BYTES:
                frame = queue.popleft()
                frames.append(frame)
                size += len(frame)
                if queue is self._data:
                    self.queued_bytes -= len(frame)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def _write_task(self, scope: trio.CancelScope) -> None:
        try:
            while self.failure is None:
                if not self._control and not self._data:
                    self._flushed.unpark_all()
                    await self._wake.park()
                    continue
                batch = self._next_batch()
                self._writing = True
                await self.secured_conn.write(batch)
                self._writing = False
                self.room.unpark_all()
        except Exception as exc:
            self.fail(f"The connection was lost while sending ({_name(exc)}).")
        finally:
            scope.cancel()

    # Receiving.

    async def _read_task(self, scope: trio.CancelScope) -> None:
        try:
            while self.failure is None:
                data = await self.secured_conn.read(None)
                if not data:
                    break
                self._receive(data)
            self.fail("The peer closed the connection.")
        except Exception as exc:
            self.fail(f"The connection was lost ({_name(exc)}).")
        finally:
            scope.cancel()

    def _receive(self, data: bytes) -> None:
        """Take in what the peer sent, in pieces of any size."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at = 0
        while self.failure is None:
            if self._body_left:
                body = data[at : at + self._body_left]
                if not body:
                    return
                at += len(body)
                self._body_left -= len(body)
                if self._body_stream is not None:
                    self._body_stream.feed(body)
                if not self._body_left:
                    self._end_flags(self._body_stream, self._body_flags)
                    self._body_stream = None
            elif len(data) - at < HEADER.size:
                self._partial = data[at:]
                return
            else:
                self._frame(*HEADER.unpack_from(data, at))
                at += HEADER.size

    def _frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != 0 or kind > GO_AWAY:
            self._violation("an unknown frame")
        elif kind == PING:
            if flags & SYN:
                self.queue_control(PING, ACK, 0, length)
        elif kind == GO_AWAY:
            self._remote_going_away = True
        else:
            self._stream_frame(kind, flags, stream_id, length)

    def _stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        stream = self.streams.get(stream_id)
        if flags & SYN:
            if not self._accept(stream_id):
                return
            stream = self.streams.get(stream_id)
        if kind == WINDOW_UPDATE:
            if stream is not None:
                stream.credit(length)
                self._end_flags(stream, flags)
            return
        if stream is not None and length > stream.recv_window:
            stream.abort("The peer sent more than the window allows.")
            stream = None
        if stream is not None:
            stream.recv_window -= length
        self._body_left = length
        self._body_flags = flags
        self._body_stream = stream
        if not length:
            self._end_flags(stream, flags)

    def _accept(self, stream_id: int) -> bool:
        """A stream that the peer opens; returns False when that broke the protocol."""
        if stream_id == 0 or (stream_id % 2 == 1) == self._initiator or stream_id <= self._last_inbound_id:
            self._violation("a stream with an id that it may not use")
            return False
        self._last_inbound_id = stream_id
        self._prune_lingering()
        if self._inbound >= self._max_inbound:
            self.queue_control(WINDOW_UPDATE, RST, stream_id, 0)
            return True
        stream = YamuxStream(self, stream_id)
        self.streams[stream_id] = stream
        self._inbound += 1
        self.queue_control(WINDOW_UPDATE, ACK, stream_id, 0)
        try:
            self._accept_send.send_nowait(stream)
        except trio.WouldBlock:
            stream.abort("Too many streams wait to be accepted.")
        return True

    def _end_flags(self, stream: YamuxStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & FIN:
            stream.fin_received()
        if flags & RST:
            stream.break_off("The stream was reset by the peer.")

    def _violation(self, what: str) -> None:
        logger.warning("closing the connection to %s: it sent %s", self.peer_id, what)
        self.fail(f"The peer broke the multiplexer's protocol: it sent {what}.")

    # Bookkeeping.

    def forget(self, stream: YamuxStream) -> None:
        """A stream is done; its id is never used again."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        stream.give_back_growth()
        if (stream.stream_id % 2 == 1) != self._initiator:
            self._inbound -= 1

    def linger(self, stream: YamuxStream) -> None:
        """A stream nobody reads waits for the peer to end it, for a minute at most."""
        self._lingering.append((trio.current_time() + _LINGER_S, stream))

    def _prune_lingering(self) -> None:
        now = trio.current_time()
        while self._lingering and (self._lingering[0][1].is_closed or self._lingering[0][0] <= now):
            self._lingering.popleft()[1].abort("The peer did not end the stream.")


def _name(exc: Exception) -> str:
    return type(exc).__name__
