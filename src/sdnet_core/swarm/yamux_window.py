"""One stream of a Yamux connection without I/O: its two windows, and what lies between them and the user."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .abc import ReceiveBuffer
from .yamux_frames import FIN, INITIAL_WINDOW, MAX_PAYLOAD_BYTES, MAX_SEND_WINDOW, MAX_WINDOW, RST, WINDOW_UPDATE

if TYPE_CHECKING:
    from .yamux_core import YamuxCore

__all__ = ["MAX_QUEUED_BYTES", "StreamCore"]

_MAX_PENDING_BYTES = MAX_PAYLOAD_BYTES
"""What a stream may have taken from its user and not sent."""
_FULL_BYTES = _MAX_PENDING_BYTES // 2
"""While more than this waits, a user with more than there is room for waits: it goes on in few large pieces."""
_MAX_CROWDED_PENDING_BYTES = 16 * 1024
"""The same where all streams of the connection together have taken much."""
_CROWDED_BYTES = 2 * 1024 * 1024
MAX_QUEUED_BYTES = 4 * 1024 * 1024
"""What may wait to be sent in all streams of a connection; only a peer that does not read brings it there."""
_COALESCE_BYTES = 4096
_EPOCH_S = 0.01
"""Shortest time over which the speed of a stream is measured."""
_WINDOW_ROUND_TRIPS = 16
"""Receive windows grow towards what is read in so many round trips."""


class StreamCore:
    """One stream. Its user is told by :meth:`readable` and :meth:`writable` that something may have changed."""

    __slots__ = (
        "_broken",
        "_buffer",
        "_chunks",
        "_consumed",
        "_epoch_began",
        "_epoch_bytes",
        "_fin_received",
        "_fin_sent",
        "_head",
        "_pending",
        "_read_closed",
        "_target_window",
        "acknowledged",
        "core",
        "end_pending",
        "is_queued",
        "pending_bytes",
        "recv_window",
        "send_window",
        "stream_id",
        "unread_bytes",
    )

    def __init__(self, core: YamuxCore[Any], stream_id: int) -> None:
        self.core = core
        self.stream_id = stream_id
        self.acknowledged = False
        # Sending. What is pending has been taken off the window already.
        self.send_window = INITIAL_WINDOW
        self.pending_bytes = 0
        self.is_queued = False
        self.end_pending = 0
        self._pending: deque[bytes | memoryview] = deque()
        self._fin_sent = False
        # Receiving.
        self.recv_window = INITIAL_WINDOW
        self.unread_bytes = 0
        self._target_window = INITIAL_WINDOW
        self._consumed = 0
        self._epoch_began = core.now()
        self._epoch_bytes = 0
        self._chunks: deque[bytes | bytearray | memoryview] = deque()
        self._head = 0
        self._buffer: ReceiveBuffer | None = None
        """Where everything goes that comes in, while it has room; nothing is in chunks then."""
        self._fin_received = False
        self._read_closed = False
        self._broken: str | None = None

    def readable(self) -> None:
        """There is something to read, or there will never be."""

    def writable(self) -> None:
        """There is room to write, or there will never be."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent or received any more."""
        return self._broken is not None or (self._fin_sent and self._fin_received)

    # Sending.

    @property
    def room(self) -> int:
        """How many bytes can be taken now."""
        queued = self.core.queued_bytes
        if queued >= MAX_QUEUED_BYTES:
            return 0
        most = _MAX_CROWDED_PENDING_BYTES if queued >= _CROWDED_BYTES else _MAX_PENDING_BYTES
        return max(0, min(self.send_window, most - self.pending_bytes))

    def put(self, data: bytes | memoryview) -> None:
        """Take data that is to be sent, not more than there is :attr:`room` for. It must not change any more."""
        size = len(data)
        self.send_window -= size
        self.pending_bytes += size
        self.core.queued_bytes += size
        self._pending.append(data)
        if not self.is_queued:
            self.is_queued = True
            self.core.queue_stream(self)

    def room_for(self, size: int) -> int:
        """How much to take of ``size`` bytes now; 0 to wait until :meth:`writable` is called."""
        room = self.room
        return 0 if room < size and self.pending_bytes > _FULL_BYTES else min(room, size)

    def take_pending(self, max_bytes: int) -> list[bytes | memoryview]:
        """The payload of the next frame, in pieces as they were put."""
        left = min(max_bytes, self.pending_bytes)
        self.pending_bytes -= left
        pieces: list[bytes | memoryview] = []
        while left:
            piece = self._pending[0]
            if len(piece) > left:
                view = memoryview(piece)
                piece, self._pending[0] = view[:left], view[left:]
            else:
                self._pending.popleft()
            pieces.append(piece)
            left -= len(piece)
        if self.pending_bytes <= _FULL_BYTES:
            self.writable()
        return pieces

    def finish(self) -> None:
        """End our direction after everything taken so far."""
        if self._fin_sent or self._broken is not None:
            return
        self._fin_sent = True
        self.writable()
        self._end(FIN)
        self._forget_if_done()

    def _end(self, flag: int) -> None:
        """Send a flag that ends the stream behind everything taken so far."""
        self.end_pending = flag
        if not self.is_queued:
            self.is_queued = True
            self.core.queue_stream(self)

    def credit(self, increment: int) -> None:
        """The other side takes ``increment`` more bytes."""
        self.send_window = min(self.send_window + increment, MAX_SEND_WINDOW)
        self.writable()

    # Receiving.

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Data has come in, within the window."""
        if self._read_closed:
            self.abort("Data came in after the stream was closed.")
            return
        if self._broken is not None or self._fin_received:
            return
        if self._buffer is not None:
            count = self._buffer.put(data)
            self._put_into_buffer(count)
            if count == len(data):
                return
            data = memoryview(data)[count:]
        self.count_unread(len(data))
        last = self._chunks[-1] if self._chunks else b""
        if isinstance(last, bytearray) and len(last) < _COALESCE_BYTES:
            last += data
        else:
            # Small pieces are joined, so that a window full of one-byte frames costs no more than its bytes.
            self._chunks.append(bytearray(data) if len(data) < _COALESCE_BYTES else data)
        self.readable()

    def take(self, max_bytes: int | None = None) -> bytes:
        """Some of what has come in; none if nothing has."""
        if not self._chunks:
            return b""
        chunk = self._chunks[0]
        left = len(chunk) - self._head
        if max_bytes is None or max_bytes < 0 or max_bytes >= left:
            data = chunk if isinstance(chunk, bytes) and not self._head else bytes(memoryview(chunk)[self._head :])
            self._chunks.popleft()
            self._head = 0
        else:
            data = bytes(memoryview(chunk)[self._head : self._head + max_bytes])
            self._head += max_bytes
        self._taken(len(data))
        return data

    def fill(self, buffer: ReceiveBuffer) -> None:
        """Put what has come in into a buffer, and what comes in until it is full."""
        while self._chunks and buffer.room:
            chunk = self._chunks[0]
            count = buffer.put(memoryview(chunk)[self._head :])
            self._head += count
            if self._head == len(chunk):
                self._chunks.popleft()
                self._head = 0
            self._taken(count)
        self._buffer = buffer if buffer.room else None

    def place(self, size: int) -> memoryview | None:
        """Where the next bytes go, if they all go into a buffer; :meth:`placed` says that they are there."""
        buffer = self._buffer
        if buffer is None or len(buffer.memory) - buffer.end < size:
            return None
        ended = self._read_closed or self._fin_received or self._broken is not None
        return None if ended else buffer.memory[buffer.end : buffer.end + size]

    def placed(self, size: int) -> None:
        """Bytes were put where :meth:`place` has said."""
        assert self._buffer is not None
        self._buffer.end += size
        self._put_into_buffer(size)

    def _put_into_buffer(self, size: int) -> None:
        if self._buffer is not None and not self._buffer.room:
            self._buffer = None
        self._consume(size)
        self.readable()

    def _taken(self, size: int) -> None:
        self.count_unread(-size)
        self._consume(size)

    def _consume(self, size: int) -> None:
        self._consumed += size
        if self._consumed * 2 >= self._target_window and not self._fin_received and self._broken is None:
            self._grant()

    def _grant(self) -> None:
        """Tell the peer about the room that reading has made, and grow the window if that is what it waits for."""
        increment = self._consumed
        now = self.core.now()
        self._epoch_bytes += self._consumed
        if now - self._epoch_began >= _EPOCH_S:
            growth = self._growth(self._epoch_bytes / (now - self._epoch_began))
            self.core.growth_budget -= growth
            self._target_window += growth
            increment += growth
            self._epoch_began = now
            self._epoch_bytes = 0
        self._allow(increment)
        self.core.measure_rtt()

    def _allow(self, increment: int) -> None:
        self._consumed = 0
        self.recv_window += increment
        self.core.queue_control(WINDOW_UPDATE, 0, self.stream_id, increment)

    def _growth(self, bytes_per_s: float) -> int:
        """How much the window is to grow by, given how fast the stream has been read of late.

        A window that holds the sender up is used up once in a round trip. It grows until only a part of it is.
        """
        wanted = int(_WINDOW_ROUND_TRIPS * bytes_per_s * self.core.rtt_s) if self.core.rtt_s is not None else 0
        most = min(2 * self._target_window, MAX_WINDOW, self._target_window + self.core.growth_budget)
        return max(0, min(wanted, most) - self._target_window)

    def give_back_growth(self) -> None:
        """Return what the window has grown by to the connection's budget."""
        self.core.growth_budget += self._target_window - INITIAL_WINDOW
        self._target_window = INITIAL_WINDOW

    def fin_received(self) -> None:
        """The other side has ended its direction."""
        self._fin_received = True
        self.readable()
        self._forget_if_done()

    def close_read(self) -> None:
        """Take no more data; a peer that goes on sending is reset."""
        if self._read_closed:
            return
        self._read_closed = True
        self._consumed += self.unread_bytes
        self._drop_unread()
        self.readable()
        if self.is_closed:
            return
        if self._consumed and not self._fin_received:
            # A peer whose window is used up would wait; with room it goes on sending, and learns that nobody reads.
            self._allow(self._consumed)
        self.core.linger(self)

    # Both.

    def abort(self, reason: str = "The stream was reset by this side.") -> None:
        """Reset the stream: both directions end at once. What was taken is sent first, what was not read is dropped."""
        if self.is_closed:
            return
        self._drop_unread()
        if self.core.queued_bytes >= _CROWDED_BYTES:
            self._drop_pending()
        self._stop(reason)
        self._end(RST)

    def break_off(self, reason: str) -> None:
        """The stream is broken from outside. What has arrived can still be read."""
        self._drop_pending()
        self.end_pending = 0
        self._stop(reason)

    def _drop_pending(self) -> None:
        self.core.queued_bytes -= self.pending_bytes
        self.pending_bytes = 0
        self._pending.clear()

    def _stop(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
        self.readable()
        self.writable()
        self.core.forget(self)

    def _drop_unread(self) -> None:
        self._chunks.clear()
        self._head = 0
        self.count_unread(-self.unread_bytes)

    def count_unread(self, change: int) -> None:
        """Keep the connection's account of what lies unread."""
        self.unread_bytes += change
        self.core.unread_bytes += change

    def __del__(self) -> None:
        # Nobody will read it any more, and py-libp2p's own protocols do not say so.
        self.core.unread_bytes -= self.unread_bytes

    def _forget_if_done(self) -> None:
        if self._fin_sent and self._fin_received:
            self.core.forget(self)
