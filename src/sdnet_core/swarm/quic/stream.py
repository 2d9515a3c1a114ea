"""One stream of a QUIC connection, as py-libp2p knows it."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections import deque
from typing import TYPE_CHECKING

import trio
from aioquic.quic.stream import QuicStream as CoreStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from ..muxed import MuxedStream
from .core import STREAM_WINDOW

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["QuicStream"]

_MAX_UNSENT_BYTES = 256 * 1024
"""What one stream may hold that was never sent."""
_MAX_CROWDED_UNSENT_BYTES = 16 * 1024
_CROWDED_BYTES = 1024 * 1024
_MAX_UNSENT_BYTES_IN_ALL = 4 * 1024 * 1024
"""The same for all streams of a connection."""
_FRESH_BYTES = 16 * 1024
"""A stream that had nothing to send and now has no more than this goes first."""
_MAX_WINDOW = 8 * 1024 * 1024
_WINDOW_ROUND_TRIPS = 4
"""A receive window of which half is read in so few round trips holds the sender up, and doubles."""
_YIELD_BYTES = 256 * 1024
"""What is read or written without letting other tasks run."""
_YIELD_CALL_BYTES = 8 * 1024
"""What one call counts for at least."""
_MAX_SEND_BYTES = 64 * 1024
"""What is handed to the core at a time."""
_RESET_CODE = 0


class QuicStream(MuxedStream):
    """One stream. One task may read while another writes."""

    muxed_conn: Connection

    def __init__(self, conn: Connection, core: CoreStream) -> None:
        assert core.stream_id is not None
        self.muxed_conn = conn
        self.stream_id: int = core.stream_id
        self._core = core
        self._chunks: deque[bytes] = deque()
        self._head = 0
        self._consumed = 0
        self._unreported = 0
        self._window = STREAM_WINDOW
        self._reported_at = trio.current_time()
        self._fin_received = False
        self._fin_sent = False
        self._read_closed = False
        self._refused = False
        self._broken: str | None = None
        self._resetting = False
        self._reset_sent = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._unyielded = _YIELD_BYTES

    # What the connection tells.

    def feed(self, data: bytes, end: bool) -> None:
        """Data has come in, within the window."""
        if self._read_closed or self._broken is not None:
            self.muxed_conn.consumed(len(data))
        elif data:
            self._chunks.append(data)
        if end:
            self._fin_received = True
        self._readers.unpark_all()
        self._forget_if_done()

    def reset_received(self) -> None:
        """The peer has reset its direction; for libp2p that ends both."""
        if self._broken is None:
            self._broken = "The stream was reset by the peer."
        self._reset_now()
        self._wake()
        self.muxed_conn.forget(self)

    def stop_received(self) -> None:
        """The peer takes no more; the core has reset our direction."""
        self._refused = True
        self._writers.unpark_all()

    def break_off(self, reason: str) -> None:
        """The connection is gone. What has arrived can still be read."""
        if self._broken is None:
            self._broken = reason
        self._wake()

    def flushed(self) -> bool:
        """Some of what was written may have gone out. True when nobody waits for that any more."""
        if self._resetting and not self.unacknowledged:
            self._reset_now()
        if self._writers and self.room:
            self._writers.unpark_all()
        return not self._writers and not self._resetting

    # What is to be sent.

    @property
    def unsent(self) -> int:
        """How many bytes were written and never sent."""
        sender = self._core.sender
        return 0 if sender._reset_error_code is not None else sender._buffer_stop - sender.highest_offset

    @property
    def unacknowledged(self) -> int:
        """How many bytes were written that the peer is not known to have."""
        sender = self._core.sender
        return 0 if sender._reset_error_code is not None else sender._buffer_stop - sender._buffer_start

    @property
    def room(self) -> int:
        """How many bytes can be taken now: within the peer's windows and our bounds."""
        waiting = self.muxed_conn.unsent
        if waiting >= _MAX_UNSENT_BYTES_IN_ALL:
            return 0
        most = _MAX_CROWDED_UNSENT_BYTES if waiting >= _CROWDED_BYTES else _MAX_UNSENT_BYTES
        window = self._core.max_stream_data_remote - self._core.sender._buffer_stop
        return max(0, min(window, most - self.unsent, self.muxed_conn.credit - waiting))

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Cancelling sends some of it and leaves the stream usable.

        It returns when everything is taken: at most 256 KiB of a stream wait to be sent, none of it without window.

        :raises MuxedStreamReset: the stream was reset, or its connection was lost.
        :raises MuxedStreamClosed: we have ended our direction.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        left = memoryview(data)
        while True:
            if self._broken is not None or self._refused:
                raise MuxedStreamReset(self._broken or "The peer takes no more data on this stream.")
            if self._fin_sent:
                raise MuxedStreamClosed("The stream is closed for writing.")
            if not left:
                break
            size = min(len(left), self.room, _MAX_SEND_BYTES)
            if not size:
                self._unyielded = 0
                self.muxed_conn.wait_for_room(self)
                await self._writers.park()
                continue
            if size <= _FRESH_BYTES and self._core.sender.buffer_is_empty:
                self.muxed_conn.hurry(self._core)
            self._core.sender.write(bytes(left[:size]))
            left = left[size:]
            self.muxed_conn.wake()
        await self._yield(len(data))

    def finish(self) -> None:
        """End our direction after everything written so far."""
        if self._fin_sent or self._broken is not None:
            return
        self._fin_sent = True
        if not self._refused:
            self._core.sender.write(b"", end_stream=True)
        self._writers.unpark_all()
        self.muxed_conn.wake()
        self._forget_if_done()

    async def close(self) -> None:
        """End our direction; what the other side sends can still be read."""
        self.finish()
        await trio.lowlevel.checkpoint()

    # What has come in.

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
                await self._yield(len(data))
                return data
            if self._fin_received:
                raise MuxedStreamEOF("The other side has ended the stream.")
            if self._broken is not None:
                raise MuxedStreamReset(self._broken)
            self._unyielded = 0
            await self._readers.park()

    def _take(self, n: int | None) -> bytes:
        most = _YIELD_BYTES if n is None or n < 0 else n
        first = self._chunks[0]
        if len(first) - self._head > most:
            data = first[self._head : self._head + most]
            self._head += most
        else:
            # Packets are small: as many as fit are handed over together.
            pieces = [first[self._head :] if self._head else first]
            self._chunks.popleft()
            self._head = 0
            size = len(pieces[0])
            while self._chunks and size + len(self._chunks[0]) <= most:
                pieces.append(self._chunks.popleft())
                size += len(pieces[-1])
            data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        self._consume(len(data))
        return data

    def _consume(self, size: int) -> None:
        """Tell the peer about the room that reading has made, and grow the window if that is what it waits for."""
        self._consumed += size
        self._unreported += size
        self.muxed_conn.consumed(size)
        if self._unreported * 2 < self._window or self._fin_received:
            return
        now = trio.current_time()
        if now - self._reported_at < _WINDOW_ROUND_TRIPS * self.muxed_conn.round_trip_s:
            growth = self.muxed_conn.take_growth(min(self._window, _MAX_WINDOW - self._window))
            self._window += growth
        self._reported_at = now
        self._unreported = 0
        self._core.max_stream_data_local = max(self._core.max_stream_data_local, self._consumed + self._window)
        self.muxed_conn.wake()

    def give_back_growth(self) -> None:
        """Return what the window has grown by to the connection's budget."""
        self.muxed_conn.give_growth(self._window - STREAM_WINDOW)
        self._window = STREAM_WINDOW

    def close_read(self) -> None:
        """Take no more data; a peer that goes on sending is told."""
        if self._read_closed:
            return
        self._read_closed = True
        self._drop_unread()
        self._readers.unpark_all()
        if not self._fin_received and self._broken is None:
            self._stop()
        self._forget_if_done()

    def _drop_unread(self) -> None:
        self.muxed_conn.consumed(sum(map(len, self._chunks)) - self._head)
        self._chunks.clear()
        self._head = 0

    def _stop(self) -> None:
        if not self._core.receiver.is_finished:
            self._core.receiver.stop(_RESET_CODE)
            self.muxed_conn.wake()

    # Both.

    def abort(self, reason: str = "The stream was reset by this side.") -> None:
        """Reset the stream: both directions end at once.

        What was written is sent first, what was not read is dropped.
        """
        if self._broken is not None or (self._fin_sent and self._fin_received):
            return
        self._drop_unread()
        self._broken = reason
        self._stop()
        if not self._fin_sent:
            if self.unacknowledged and self.muxed_conn.unsent < _CROWDED_BYTES:
                self._resetting = True
                self.muxed_conn.wait_for_room(self)
            else:
                self._reset_now()
        self._wake()
        self.muxed_conn.forget(self)

    async def reset(self) -> None:
        """Reset the stream; never raises anything but cancellation."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def _reset_now(self) -> None:
        self._resetting = False
        if not self._fin_sent or self.unacknowledged:
            self._core.sender.reset(_RESET_CODE)
        self.muxed_conn.wake()

    def _wake(self) -> None:
        self._readers.unpark_all()
        self._writers.unpark_all()

    def _forget_if_done(self) -> None:
        if self._fin_sent and (self._fin_received or self._read_closed):
            self.muxed_conn.forget(self)

    async def _yield(self, size: int) -> None:
        self._unyielded += max(size, _YIELD_CALL_BYTES)
        if self._unyielded >= _YIELD_BYTES:
            self._unyielded = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines belong to the caller.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Use a cancel scope.")

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self.muxed_conn.get_remote_address()
