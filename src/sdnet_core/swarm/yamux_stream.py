"""One stream of a Yamux connection, and the constants of the protocol."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import struct
from collections import deque
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

if TYPE_CHECKING:
    from .yamux import Yamux

__all__ = ["YamuxStream"]

HEADER = struct.Struct("!BBHII")
"""Version, type, flags, stream id, length."""
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
GO_AWAY_NORMAL = 0
INITIAL_WINDOW = 256 * 1024
NOISE_PLAINTEXT_BYTES = 65_519
"""Most plaintext in one Noise message: 65,535 bytes less the 16 of the authentication tag."""
MAX_PAYLOAD_BYTES = NOISE_PLAINTEXT_BYTES - HEADER.size
MAX_QUEUED_BYTES = 4 * NOISE_PLAINTEXT_BYTES
"""Data frames of a connection that wait for the socket; a writer waits while there are more."""
_MAX_WINDOW = 4 * 1024 * 1024
_MAX_SEND_WINDOW = 2**32 - 1
_COALESCE_BYTES = 4096


class YamuxStream(IMuxedStream):
    """One stream. One task may read while another writes."""

    def __init__(self, conn: Yamux, stream_id: int) -> None:
        self.muxed_conn = conn
        self.conn = conn
        self.stream_id = stream_id
        self.send_window = INITIAL_WINDOW
        self.recv_window = INITIAL_WINDOW
        self._target_window = INITIAL_WINDOW
        self._consumed = 0
        self._last_grant = trio.current_time()
        self._chunks: deque[bytearray | bytes] = deque()
        self._head = 0
        self._broken: str | None = None
        self._fin_sent = False
        self._fin_received = False
        self._read_closed = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent or received any more."""
        return self._broken is not None or (self._fin_sent and self._fin_received)

    async def read(self, n: int | None = None) -> bytes:
        """Receive at least one and at most ``n`` bytes.

        :raises MuxedStreamEOF: the other side has ended its direction and everything was read.
        :raises MuxedStreamReset: the stream was reset, or its connection was lost.
        :raises MuxedStreamClosed: we have closed it for reading.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._read_closed:
                raise MuxedStreamClosed("The stream is closed for reading.")
            if self._chunks:
                data = self._take(n)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
            if self._fin_received:
                raise MuxedStreamEOF("The other side has ended the stream.")
            if self._broken is not None:
                raise MuxedStreamReset(self._broken)
            await self._readers.park()

    def _take(self, n: int | None) -> bytes:
        chunk = self._chunks[0]
        end = len(chunk) if n is None or n < 0 else min(len(chunk), self._head + n)
        data = bytes(chunk[self._head : end])
        if end == len(chunk):
            self._chunks.popleft()
            self._head = 0
        else:
            self._head = end
        self._consumed += len(data)
        if self._consumed * 2 >= self._target_window and not self._fin_received and self._broken is None:
            self._grant()
        return data

    def _grant(self) -> None:
        """Tell the peer about the room that reading has made, and grow the window of a fast stream."""
        increment = self._consumed
        now = trio.current_time()
        if now - self._last_grant < 0.1 and self._target_window < _MAX_WINDOW:
            growth = min(self._target_window, self.conn.growth_budget)
            self.conn.growth_budget -= growth
            self._target_window += growth
            increment += growth
        self._last_grant = now
        self._consumed = 0
        self.recv_window += increment
        self.conn.queue_control(WINDOW_UPDATE, 0, self.stream_id, increment)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``. Cancelling sends some of it, in whole frames, and leaves the stream usable.

        It returns when the last frame is queued for the socket.

        :raises MuxedStreamReset: the stream was reset, or its connection was lost.
        :raises MuxedStreamClosed: we have ended our direction.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while True:
            if self._broken is not None:
                raise MuxedStreamReset(self._broken)
            if self._fin_sent:
                raise MuxedStreamClosed("The stream is closed for writing.")
            if not view:
                break
            if self.send_window <= 0:
                await self._writers.park()
                continue
            if self.conn.queued_bytes >= MAX_QUEUED_BYTES:
                await self.conn.room.park()
                continue
            size = min(len(view), self.send_window, MAX_PAYLOAD_BYTES)
            self.send_window -= size
            self.conn.queue_data(self.stream_id, view[:size])
            view = view[size:]
            if view:
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def finish(self) -> None:
        """End our direction after everything written so far."""
        if self._fin_sent or self._broken is not None:
            return
        self._fin_sent = True
        self._writers.unpark_all()
        self.conn.queue_end(FIN, self.stream_id)
        self._forget_if_done()

    async def close(self) -> None:
        """End our direction; what the other side sends can still be read."""
        self.finish()
        await trio.lowlevel.checkpoint()

    def close_read(self) -> None:
        """Take no more data; a peer that goes on sending is reset."""
        if self._read_closed:
            return
        self._read_closed = True
        self._chunks.clear()
        self._readers.unpark_all()
        if not self.is_closed:
            self.conn.linger(self)

    def abort(self, reason: str = "The stream was reset by this side.") -> None:
        """Reset the stream: both directions end at once."""
        if self.is_closed:
            return
        self.conn.queue_end(RST, self.stream_id)
        self._chunks.clear()
        self.break_off(reason)

    async def reset(self) -> None:
        """Reset the stream; never raises anything but cancellation."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def break_off(self, reason: str) -> None:
        """The stream is broken: wake everybody who waits on it. What has arrived can still be read."""
        if self._broken is None:
            self._broken = reason
        self._readers.unpark_all()
        self._writers.unpark_all()
        self.conn.forget(self)

    def feed(self, data: bytes) -> None:
        """Data has come in, within the window."""
        if self._read_closed:
            self.abort("Data came in after the stream was closed.")
        elif data and self._broken is None:
            last = self._chunks[-1] if self._chunks else b""
            if isinstance(last, bytearray) and len(last) < _COALESCE_BYTES:
                last += data
            else:
                # Small pieces are joined, so that a window full of one-byte frames costs no more than its bytes.
                self._chunks.append(bytearray(data) if len(data) < _COALESCE_BYTES else data)
            self._readers.unpark_all()

    def fin_received(self) -> None:
        """The other side has ended its direction."""
        self._fin_received = True
        self._readers.unpark_all()
        self._forget_if_done()

    def credit(self, increment: int) -> None:
        """The other side takes ``increment`` more bytes."""
        self.send_window = min(self.send_window + increment, _MAX_SEND_WINDOW)
        self._writers.unpark_all()

    def give_back_growth(self) -> None:
        """Return what the window has grown by to the connection's budget."""
        self.conn.growth_budget += self._target_window - INITIAL_WINDOW
        self._target_window = INITIAL_WINDOW

    def _forget_if_done(self) -> None:
        if self._fin_sent and self._fin_received:
            self.conn.forget(self)

    def set_deadline(self, ttl: int) -> None:
        """Deadlines belong to the caller.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Use a cancel scope.")

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self.conn.get_remote_address()

    async def __aenter__(self) -> YamuxStream:
        return self
