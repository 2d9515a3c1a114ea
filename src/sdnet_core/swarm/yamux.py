"""The stream multiplexer ``/yamux/1.0.0`` for py-libp2p: whole frames, enforced windows, no hidden time-outs.

It replaces the library's own implementation, in which a cancelled write breaks the connection, a reader that pauses
for 5 s loses the stream, windows are not enforced, and a reset looks like an orderly end (libp2p 0.8.1).

What is sent and what received frames mean is decided in ``yamux_core.py`` and ``yamux_window.py``; this module moves
the bytes. One task reads and one task writes. Everybody else only changes state, without awaiting in between, so
cancelling a caller never leaves half a frame behind.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from .muxed import MuxedConnection
from .noise import NoiseSession
from .yamux_core import Buffer, YamuxCore
from .yamux_frames import MAX_PAYLOAD_BYTES
from .yamux_stream import YamuxStream

__all__ = ["PROTOCOL_ID", "Yamux", "YamuxStream"]

logger = logging.getLogger(__name__)

PROTOCOL_ID = "/yamux/1.0.0"

_FLUSH_S = 0.25
_MAX_UNACKNOWLEDGED = 256
"""Streams of ours that the peer may have left unanswered; other implementations refuse more."""
_MIN_BATCH_BYTES = 16 * 1024
_MAX_BATCH_BYTES = MAX_PAYLOAD_BYTES
_SLOW_SEND_S = 0.005
"""A batch that takes longer to hand over was too large: what comes next has to wait for all of it."""


class Yamux(MuxedConnection):
    """One multiplexed connection over a secured one.

    :param max_inbound_streams: streams that the peer may have open at a time; more are reset.
    :param max_waiting_streams: streams that the peer has opened and that nobody has accepted; more are reset.
    """

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        *,
        max_inbound_streams: int = 256,
        max_waiting_streams: int = 256,
    ) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.core = YamuxCore[YamuxStream](
            conn.is_initiator, self._make_stream, trio.current_time, max_inbound_streams=max_inbound_streams
        )
        self.core.on_output = self._output
        self.core.on_inbound = self._inbound
        self.core.on_failure = self._failed
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.on_fail: Callable[[], None] | None = None
        self._max_waiting = max_waiting_streams
        self._waiting: deque[YamuxStream] = deque()
        self._accepting = trio.lowlevel.ParkingLot()
        self._opening = trio.lowlevel.ParkingLot()
        self._flushing = trio.lowlevel.ParkingLot()
        self._wake = trio.lowlevel.ParkingLot()
        self._writing = False
        self._batch_bytes = 4 * _MIN_BATCH_BYTES

    # What py-libp2p asks a connection.

    @property
    def streams(self) -> dict[int, YamuxStream]:
        """The streams that are not done, by their ids."""
        return self.core.streams

    @property
    def failure(self) -> str | None:
        """Why the connection is gone, or None while it is not."""
        return self.core.failure

    @property
    def peer_left(self) -> bool:
        """Whether the peer has said that it leaves."""
        return self.core.remote_going_away

    @property
    def is_initiator(self) -> bool:
        """Whether we opened the connection."""
        return self.secured_conn.is_initiator

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
        """Open a stream; the peer has not agreed to it yet. Waits while it has not agreed to 256 others.

        :raises MuxedStreamError: the connection is closed or closing, or has run out of stream ids.
        """
        await trio.lowlevel.checkpoint()
        while self.core.can_open and self.core.unacknowledged >= _MAX_UNACKNOWLEDGED:
            await self._opening.park()
        if not self.core.can_open:
            raise MuxedStreamError(self.failure or "The peer takes no more streams on this connection.")
        return self.core.open()

    async def accept_stream(self) -> YamuxStream:
        """Wait for a stream that the peer opens.

        :raises MuxedConnUnavailable: the connection is gone.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self.failure is not None:
                raise MuxedConnUnavailable(self.failure)
            await self._accepting.park()
        return self._waiting.popleft()

    async def start(self) -> None:
        """Run the connection until it is closed or lost. Raises nothing but cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_task, nursery.cancel_scope)
                nursery.start_soon(self._write_task, nursery.cancel_scope)
                self.core.measure_rtt()
                self.event_started.set()
        finally:
            self.core.fail("The connection was closed.")
            with trio.CancelScope(shield=True):
                await self._say_last_words()
                await self._close_secured()
                if self.on_close is not None:
                    await self.on_close()

    async def close(self) -> None:
        """Say good-bye, send what is queued if the peer takes it within a quarter of a second, and close."""
        with trio.CancelScope(shield=True):
            if self.failure is None:
                self.core.go_away()
                with trio.move_on_after(_FLUSH_S):
                    while self.failure is None and (self.core.has_output or self._writing):
                        await self._flushing.park()
            self.core.fail("The connection was closed by this side.")
            await self._close_secured()

    async def _say_last_words(self) -> None:
        if self.core.has_output:
            with trio.move_on_after(_FLUSH_S):
                try:
                    await self._send(self.core.next_output())
                except Exception as exc:
                    logger.debug("closing the connection to %s: %s", self.peer_id, exc)

    async def _close_secured(self) -> None:
        with trio.move_on_after(_FLUSH_S):
            try:
                await self.secured_conn.close()
            except Exception as exc:
                logger.debug("closing the connection to %s: %s", self.peer_id, exc)

    # What the core asks of us.

    def _make_stream(self, stream_id: int) -> YamuxStream:
        return YamuxStream(self, stream_id)

    def _output(self) -> None:
        self._wake.unpark_all()

    def _inbound(self, stream: YamuxStream) -> None:
        if len(self._waiting) >= self._max_waiting:
            stream.abort("Too many streams wait to be accepted.")
            return
        self._waiting.append(stream)
        self._accepting.unpark_all()

    def _failed(self) -> None:
        if self.on_fail is not None:
            # Handlers are cancelled before their streams break under them.
            self.on_fail()
        self._waiting.clear()
        self.event_closed.set()
        for waiting in (self._accepting, self._opening, self._flushing):
            waiting.unpark_all()

    # The two tasks.

    async def _write_task(self, scope: trio.CancelScope) -> None:
        try:
            while self.failure is None:
                pieces = self.core.next_output(self._batch_bytes)
                if not pieces:
                    self._flushing.unpark_all()
                    # A stream of ours that was reset has made room for another.
                    self._opening.unpark_all()
                    await self._wake.park()
                    continue
                self._writing = True
                began = trio.current_time()
                await self._send(pieces)
                self._writing = False
                self._adapt_batches(slow=trio.current_time() - began > _SLOW_SEND_S)
        except Exception as exc:
            # What the peer has said before it went, and perhaps why, is still being read.
            with trio.move_on_after(_FLUSH_S):
                await self.event_closed.wait()
            self.core.fail(f"The connection was lost while sending ({_name(exc)}).")
        finally:
            scope.cancel()

    def _adapt_batches(self, *, slow: bool) -> None:
        before = self._batch_bytes
        self._batch_bytes = max(_MIN_BATCH_BYTES, before // 2) if slow else min(_MAX_BATCH_BYTES, before * 2)
        if self._batch_bytes != before and isinstance(self.secured_conn, NoiseSession):
            # What the kernel holds is waited for as well.
            self.secured_conn.limit_unsent(self._batch_bytes)

    async def _send(self, pieces: Sequence[Buffer]) -> None:
        if isinstance(self.secured_conn, NoiseSession):
            await self.secured_conn.write_messages(pieces)
        else:
            await self.secured_conn.write(b"".join(pieces))

    async def _read_task(self, scope: trio.CancelScope) -> None:
        try:
            while self.failure is None and await self._receive():
                if self.core.unacknowledged < _MAX_UNACKNOWLEDGED or not self.core.can_open:
                    self._opening.unpark_all()
            self.core.fail("The peer closed the connection.")
        except Exception as exc:
            self.core.fail(f"The connection was lost ({_name(exc)}).")
        finally:
            if self.failure is not None:
                logger.debug("the connection to %s: %s", self.peer_id, self.failure)
            scope.cancel()

    async def _receive(self) -> bool:
        if isinstance(self.secured_conn, NoiseSession):
            return await self.secured_conn.deliver(self.core)
        if data := await self.secured_conn.read(None):
            self.core.receive(data)
        return bool(data)


def _name(exc: Exception) -> str:
    return type(exc).__name__
